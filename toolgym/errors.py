"""The error tree: one base, six boundary kinds, each also a standard-library type, all picklable.

A message says what was got, what was expected, where (key path, env id, turn) and what to do next. ``ValueError``
kinds are the user's to mend (exit code 2 on the command line), ``RuntimeError`` kinds are faults (exit code 1).
"""

import difflib
from collections.abc import Iterable


class ToolgymError(Exception):
    """Base of every error that toolgym raises on purpose."""

    exit_code: int = 1


class ConfigError(ToolgymError, ValueError):
    """A recipe, key, name or argument that cannot be used."""

    exit_code = 2


class EnvError(ToolgymError, RuntimeError):
    """An environment broke its contract, or was used outside it."""


class SandboxError(ToolgymError, RuntimeError):
    """A sandbox, or the engine behind it, could not do what was asked."""


class RewardError(ToolgymError, RuntimeError):
    """A reward raised, hung, or returned something that is not a finite number."""


class EngineError(ToolgymError, RuntimeError):
    """An inference engine died, hung, or serves other weights than were published."""


class TrainingError(ToolgymError, RuntimeError):
    """Training cannot go on: too many failures, a broken checkpoint, a non-finite loss."""


LISTED = 40  # more names than this are not a help in a message


def nearest(name: str, known: Iterable[str], *, what: str) -> str:
    """Say that ``name`` is unknown, with the nearest match and the list (where it is long, the nearest few).

    Example: ``nearest("quikstart", ["quickstart", "lookup"], what="recipe")`` gives
    ``"unknown recipe 'quikstart'; did you mean 'quickstart'? known: lookup, quickstart"``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    if len(names) > LISTED:
        listed = f"near it: {', '.join(close[1:])}" if close[1:] else f"{len(names)} are known"
    else:
        listed = f"known: {', '.join(names) if names else '(none)'}"
    return f"unknown {what} {name!r}{hint} {listed}"
