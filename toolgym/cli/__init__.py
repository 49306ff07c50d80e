"""The command line: ``toolgym train``, ``eval``, ``env``, ``runs``, ``config``, ``algo``, ``sandbox`` and ``bench``."""

from toolgym.cli.main import main

__all__ = ["main"]
