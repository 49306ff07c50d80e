"""``toolgym train``: run a recipe, or go on with a run."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import anyio

from toolgym.cli.config import add_recipe_arguments, load_run_config, split_words
from toolgym.cli.output import finite, format_value, print_heldout
from toolgym.cli.progress import make_reporter
from toolgym.cli.run_folder import RUNS_DIR, find_run
from toolgym.errors import ConfigError, ToolgymError

FULL_BYTES = 1 << 20  # less room than the smallest file of a checkpoint takes

DESCRIPTION = """\
Train an agent as a recipe says. Everything that can be checked is checked first; the run's folder gets the resolved
recipe, the run database, checkpoints, the model, a learning curve and summary.json. A run that was stopped or killed
goes on with --resume: nothing finished is lost.

  toolgym train                             the default recipe: a tiny agent from scratch, on a laptop
  toolgym train lookup seed=1               another recipe, with a value changed (TOML; a bare word is a string)
  toolgym train mine.toml --runs-dir /data/runs
  toolgym train --resume latest
"""


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("train", help="train an agent, or resume a run", description=DESCRIPTION)
    add_recipe_arguments(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with this run: a name in --runs-dir, a path, or latest")
    parser.add_argument("--runs-dir", metavar="DIR", type=Path, default=RUNS_DIR, help="where runs go (default: runs)")
    parser.add_argument("--json", action="store_true", help="print JSON lines: progress, and last the summary")
    parser.set_defaults(handler=train)


def train(args: argparse.Namespace) -> int:
    """Handler of ``toolgym train``."""
    folder = None if args.resume is None else find_run(args.resume, args.runs_dir)
    config = load_run_config(args.words) if folder is None else _recorded_config(folder, args.words)
    _make_folder(args.runs_dir)
    run = importlib.import_module("toolgym.trainer.run").train
    reporter = make_reporter(as_json=args.json)

    async def main() -> Any:
        return await run(config, resume=folder, reporter=reporter, runs_dir=args.runs_dir)

    try:
        summary = anyio.run(main)
    except Exception as error:
        raise _disk_error(error, args.runs_dir) from error
    finally:
        reporter.done()
    _print(summary, as_json=args.json)
    return 0


def _make_folder(runs_dir: Path) -> None:
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {runs_dir} for runs: {error.strerror}") from None


def _disk_error(error: Exception, runs_dir: Path) -> Exception:
    """The error, or what it really is: libraries that save models word a full disk in their own obscure ways."""
    if isinstance(error, ToolgymError | OSError) or not runs_dir.is_dir():
        return error
    if shutil.disk_usage(runs_dir).free >= FULL_BYTES:
        return error
    return OSError(errno.ENOSPC, "no space left", str(runs_dir))


def _recorded_config(folder: Path, words: list[str]) -> Any:
    """The recipe that the run was started with; a run cannot be resumed as another one."""
    recipe, overrides = split_words(words)
    if recipe is not None or overrides:
        raise ConfigError(f"got {words[0]!r} beside --resume: a run goes on with its own recipe, {folder}/recipe.toml")
    config = importlib.import_module("toolgym.config")
    model = importlib.import_module("toolgym.trainer.config").RunConfig
    return config.load_recipe(model, str(folder / "recipe.toml"))


def _print(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(finite({"event": "summary", "summary": summary}), ensure_ascii=False))
        return
    for key, value in summary.items():
        if key in ("heldout_before", "heldout_after"):
            print_heldout(key.removeprefix("heldout_"), value)
        elif not isinstance(value, dict | list):
            print(f"{key}: {format_value(value)}")
