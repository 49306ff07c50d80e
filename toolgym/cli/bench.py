"""``toolgym bench``: the benchmarks that lie beside the package in a checkout."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import toolgym
from toolgym.cli.output import finite, print_json, print_tree
from toolgym.errors import ConfigError, TrainingError, nearest

FOLDER = Path(toolgym.__file__).resolve().parent.parent / "benchmarks"
_RUN = re.compile(r"^def run\(", re.MULTILINE)
KEYS = ("name", "ours", "baseline", "ratio", "unit", "details")

DESCRIPTION = """\
Run one of the project's benchmarks and compare it with its baseline. A ratio above 1 is better than the baseline.

  toolgym bench rollout
  toolgym bench rollout episodes=512 --json
"""


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("bench", help="run a benchmark", description=DESCRIPTION)
    parser.add_argument("name", metavar="NAME", nargs="?", help="which; without it, the list")
    parser.add_argument("words", metavar="key=value", nargs="*", help="options of the benchmark")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=bench)


def bench(args: argparse.Namespace) -> int:
    """Handler of ``toolgym bench``."""
    if args.name is None:
        return _list(args)
    module = load_benchmark(args.name)
    result = finite(module.run(**_options(module, args.name, args.words)))
    if missing := [key for key in KEYS if key not in result]:
        raise TrainingError(f"benchmark {args.name!r} returned no {', '.join(missing)}")
    if args.json:
        print_json(result)
        return 0
    print_tree({key: result[key] for key in KEYS})
    return 0


def list_benchmarks() -> list[str]:
    """The names of the modules in ``benchmarks/`` that have a ``run``.

    Raises:
        ConfigError: there is no such folder: toolgym is installed without its checkout.
    """
    if not FOLDER.is_dir():
        raise ConfigError(f"no folder {FOLDER}: benchmarks come with a checkout of the repository (pip install -e .)")
    return sorted(p.stem for p in FOLDER.glob("*.py") if _RUN.search(p.read_text(encoding="utf-8")))


def load_benchmark(name: str) -> ModuleType:
    """Import a benchmark by its file, as ``benchmarks.<name>``.

    Raises:
        ConfigError: no such benchmark, with the nearest.
    """
    known = list_benchmarks()
    if name not in known:
        raise ConfigError(nearest(name, known, what="benchmark"))
    spec = importlib.util.spec_from_file_location(f"benchmarks.{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(FOLDER.parent) not in sys.path:
        sys.path.insert(0, str(FOLDER.parent))  # benchmarks share helpers as `benchmarks.<module>`
    sys.modules[spec.name] = module  # dataclasses and child processes look their module up
    spec.loader.exec_module(module)
    return module


def _options(module: ModuleType, name: str, words: list[str]) -> dict[str, Any]:
    parse = importlib.import_module("toolgym.config").parse_override
    parameters = inspect.signature(module.run).parameters
    options: dict[str, Any] = {}
    for word in words:
        path, value = parse(word)
        key = ".".join(path)
        if key not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ConfigError(nearest(key, parameters, what=f"option of benchmark {name!r}"))
        options[key] = value
    return options


def _list(args: argparse.Namespace) -> int:
    names = list_benchmarks()
    if args.json:
        print_json(names)
    else:
        print("\n".join(names))
    return 0
