"""Entry point: picks the command, and turns every error into one line and an exit code.

Exit codes: 0 done; 2 the user's to mend (`ConfigError`); 1 a fault; 130 interrupted; 141 nobody reads the pipe.
Only the module of the chosen command is imported, so that ``toolgym --help`` is quick.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import toolgym
from toolgym.errors import ConfigError, ToolgymError, nearest

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE

# Command: the module that has `register(subparsers)`, and one line of help.
COMMANDS = {
    "train": ("toolgym.cli.train", "train an agent from a recipe, or resume a run"),
    "eval": ("toolgym.cli.evaluate", "evaluate a run's policy, or a model, on held-out tasks"),
    "env": ("toolgym.cli.env", "list, inspect and play environments"),
    "runs": ("toolgym.cli.runs", "list runs, show one with its transcripts"),
    "config": ("toolgym.cli.config", "list recipes, show one resolved"),
    "algo": ("toolgym.cli.algo", "list algorithms, show one with its equation and source"),
    "sandbox": ("toolgym.cli.sandbox", "check, build, list and clean up sandboxes"),
    "bench": ("toolgym.cli.bench", "run one of the project's benchmarks"),
}

DESCRIPTION = """\
An agentic RL gym: tool environments in sandboxes, verifiable rewards, asynchronous training.

  toolgym train                        train the tiny agent of the default recipe, on a laptop
  toolgym train lookup seed=1          another recipe, with one value changed
  toolgym runs show latest             what came of it
  toolgym env play toolgym/python-v0   play an environment yourself
"""
EPILOG = """\
Every command takes --help, with an example, and --debug, which shows where an error comes from.
Exit codes: 0 done, 2 something to mend in the call or the recipe, 1 a fault, 130 interrupted.
"""


class Parser(argparse.ArgumentParser):
    """Argparse with errors as `ConfigError` (one line, exit code 2) and descriptions printed as they are written."""

    def __init__(self, **options: object) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors go to standard error, one line each."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        code = run(words)
        sys.stdout.flush()  # here a full disk or a closed pipe can still be reported
        return code
    except BrokenPipeError:
        _silence(sys.stdout.fileno())
        return BROKEN_PIPE
    except BaseException as error:
        if debug:
            traceback.print_exception(error)
        cause = root_cause(error)
        if isinstance(cause, SystemExit):
            return cause.code if isinstance(cause.code, int) else 1
        code, text = verdict(cause)
        print(f"toolgym: {text}", file=sys.stderr)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            _silence(sys.stdout.fileno())  # what is buffered cannot be written at exit either
        return code


def run(words: Sequence[str]) -> int:
    """Parse and run; raises whatever goes wrong."""
    chosen = next((w for w in words if not w.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        raise ConfigError(nearest(chosen, COMMANDS, what="command"))
    parser = build_parser(chosen)
    args, rest = parser.parse_known_args(words)
    # Argparse takes positional words in one stretch only; ours may stand between options.
    if rest and hasattr(args, "words") and not any(w.startswith("-") for w in rest):
        args.words += rest
    elif rest:
        raise ConfigError(f"unknown argument {rest[0]!r}; see toolgym {chosen or ''} --help".replace("  ", " "))
    if chosen is None:
        parser.print_help()
        return 0
    return args.handler(args)


def build_parser(chosen: str | None) -> Parser:
    """The parser with one command in full and the others by name."""
    parser = Parser(prog="toolgym", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"toolgym {toolgym.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        if name == chosen:
            importlib.import_module(module).register(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def root_cause(error: BaseException) -> BaseException:
    """The exception that a group is about: an interrupt, else one of ours, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [root_cause(e) for e in error.exceptions]

    def rank(leaf: BaseException) -> int:
        order = (KeyboardInterrupt, SystemExit, ConfigError, ToolgymError)
        return next((i for i, kind in enumerate(order) if isinstance(leaf, kind)), len(order))

    return min(leaves, key=rank)


def verdict(error: BaseException) -> tuple[int, str]:
    """Exit code and one line for an error."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, ToolgymError):
        return error.exit_code, text
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" ({error.filename})" if error.filename else ""
        return 1, f"the disk is full{place}: free some space, then go on with --resume"
    if isinstance(error, OSError):
        return 1, text
    return 1, f"{type(error).__name__}: {text} (unexpected: --debug shows where)"


def _silence(fd: int) -> None:
    """Point a broken stream at nowhere, so that the interpreter's last flush does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
