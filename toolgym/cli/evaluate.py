"""``toolgym eval``: a run's policy, or any model, on held-out tasks."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import anyio

from toolgym.cli.output import finite, print_heldout
from toolgym.cli.progress import make_reporter
from toolgym.cli.run_folder import DATABASE, RUNS_DIR, find_run
from toolgym.errors import ConfigError

DESCRIPTION = """\
Evaluate the policy of a finished run, or a model folder, on held-out tasks: sampled and greedy, with 95 % intervals.
Values of the run's recipe (of the default ones, for a model) can be changed.

  toolgym eval latest
  toolgym eval latest evaluate.tasks=100 evaluate.split=validation
  toolgym eval path/to/model env.id=toolgym/lookup-v0 --json
"""


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("eval", help="evaluate on held-out tasks", description=DESCRIPTION)
    parser.add_argument("target", metavar="RUN|MODEL", help="a run (name, path or latest), or a model's folder")
    parser.add_argument("words", metavar="key=value", nargs="*", help="values of the recipe to change")
    parser.add_argument("--runs-dir", metavar="DIR", type=Path, default=RUNS_DIR, help="default: runs")
    parser.add_argument("--json", action="store_true", help="print JSON lines: progress, and last the result")
    parser.set_defaults(handler=evaluate)


def evaluate(args: argparse.Namespace) -> int:
    """Handler of ``toolgym eval``."""
    config, folder = resolve(args.target, args.words, args.runs_dir)
    run = importlib.import_module("toolgym.trainer.held_out").evaluate_model
    reporter = make_reporter(as_json=args.json)

    async def main() -> Any:
        return await run(config, folder, reporter=reporter)

    try:
        result = anyio.run(main)
    finally:
        reporter.done()
    if args.json:
        print(json.dumps(finite({"event": "result", "result": result}), ensure_ascii=False))
    else:
        print_heldout(f"{result['split']} tasks", result["heldout"])
    return 0


def resolve(target: str, words: list[str], runs_dir: Path) -> tuple[Any, Path]:
    """The configuration and the model folder that are meant.

    Raises:
        ConfigError: neither a run nor a model, or a run that has not saved its model yet.
    """
    path = Path(target)
    is_model = (path / "config.json").is_file()
    if not is_model and path.is_dir() and not (path / DATABASE).is_file():
        raise ConfigError(f"{target} is neither a run (no {DATABASE}) nor a model folder (no config.json)")
    folder = None if is_model else find_run(target, runs_dir)
    if folder is not None and not (folder / "model" / "config.json").is_file():
        raise ConfigError(
            f"the run {folder.name} has no model yet: finish it with toolgym train --resume {folder.name}"
        )
    config = importlib.import_module("toolgym.config")
    model = importlib.import_module("toolgym.trainer.config").RunConfig
    if folder is None:
        return config.load(model, {}, overrides=words, source="the defaults"), path
    return config.load_recipe(model, str(folder / "recipe.toml"), overrides=words), folder / "model"
