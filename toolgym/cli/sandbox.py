"""``toolgym sandbox``: check, build, list and clean up sandboxes."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from toolgym.cli.output import print_json, print_table
from toolgym.errors import ConfigError
from toolgym.sandboxes import SandboxSpec, open_sandbox
from toolgym.sandboxes.admin import doctor, list_sandboxes, prune
from toolgym.sandboxes.images import ensure_image
from toolgym.sandboxes.provider import choose_provider

DESCRIPTION = """\
Sandboxes are where a policy's programs run.

  toolgym sandbox doctor             what is there, what is isolated, and what to do about the rest
  toolgym sandbox build              make the default image, with or without a registry
  toolgym sandbox run program.py     run a file in a sandbox
"""


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("sandbox", help="check, build, list and clean up sandboxes", description=DESCRIPTION)
    commands = parser.add_subparsers(metavar="doctor|build|ps|prune|run|bench|check", required=True)

    def add(name: str, handler: Any, summary: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.\n\n  {example}\n")
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(handler=handler)
        return command

    add("doctor", _doctor, "say what is there and what is isolated, one line each", "toolgym sandbox doctor")
    build = add("build", _build, "make the default image on the Docker engine", "toolgym sandbox build")
    build.add_argument("--rebuild", action="store_true", help="even if it is there")
    add("ps", _ps, "list the sandboxes on the Docker engine", "toolgym sandbox ps")
    pruner = add("prune", _prune, "remove sandboxes whose owner is dead", "toolgym sandbox prune")
    pruner.add_argument("--all", action="store_true", help="also those in use")
    runner = add("run", _run, "run a Python file in a sandbox", "toolgym sandbox run program.py --provider docker")
    runner.add_argument("file", metavar="FILE", type=Path, help="a Python program; - is standard input")
    runner.add_argument("--provider", default="auto", help="docker, bubblewrap, local or auto (default)")
    runner.add_argument("--timeout-s", type=float, default=10.0, help="deadline in seconds (default: 10)")
    runner.add_argument("--memory-mb", type=int, default=512, help="memory limit (default: 512)")
    bench = add("bench", _bench, "compare executions per second with docker exec", "toolgym sandbox bench")
    bench.set_defaults(name="sandbox", words=[])
    check = add("check", _check, "run a provider through the conformance suite", "toolgym sandbox check docker")
    check.add_argument("provider", metavar="PROVIDER", nargs="?", default="auto", help="default: auto")


def _doctor(args: argparse.Namespace) -> int:
    found = anyio.run(doctor)
    if args.json:
        print_json([dataclasses.asdict(finding) for finding in found])
    else:
        for finding in found:
            print(f"{'ok  ' if finding.ok else 'MISS'}  {finding.name:<26} {finding.detail}")
            if not finding.ok:
                print(f"      {'':<26} fix: {finding.fix}")
    return 0 if all(finding.ok for finding in found if finding.name != "bubblewrap") else 1


def _build(args: argparse.Namespace) -> int:
    report = partial(print, file=sys.stderr, flush=True)
    tag = ensure_image(report=report, rebuild=args.rebuild)
    print_json({"image": tag}) if args.json else print(tag)
    return 0


def _ps(args: argparse.Namespace) -> int:
    rows = [dataclasses.asdict(row) for row in anyio.run(list_sandboxes)]
    if args.json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        print("no sandboxes")
    return 0


def _prune(args: argparse.Namespace) -> int:
    removed = anyio.run(partial(prune, everything=args.all))
    print_json({"removed": removed}) if args.json else print(f"removed {removed}")
    return 0


def _run(args: argparse.Namespace) -> int:
    code = sys.stdin.read() if str(args.file) == "-" else _text(args.file)
    spec = SandboxSpec(timeout_s=args.timeout_s, memory_mb=args.memory_mb)

    async def execute() -> Any:
        provider = await choose_provider(args.provider, spec)
        print(f"sandbox: {provider.describe(spec)}", file=sys.stderr)
        async with open_sandbox(provider.name, spec, run_id="cli") as sandbox:
            return await sandbox.run_code(code)

    result = anyio.run(execute)
    if args.json:
        print_json(dataclasses.asdict(result))
        return 0
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    if result.result is not None:
        print(result.result)
    if result.error is not None:
        print(result.error.traceback or f"{result.error.name}: {result.error.message}", file=sys.stderr, end="")
    if result.end != "exited":
        print(f"[{result.end}]", file=sys.stderr)
    return 0 if result.end == "exited" and result.exit_code == 0 else 1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no file {path}") from None


def _bench(args: argparse.Namespace) -> int:
    return importlib.import_module("toolgym.cli.bench").bench(args)


def _check(args: argparse.Namespace) -> int:
    conformance = importlib.import_module("toolgym.sandboxes.conformance")
    report = anyio.run(conformance.check_sandbox, args.provider)
    if args.json:
        print_json([dataclasses.asdict(row) for row in report])
    else:
        for row in report:
            print(f"{'ok  ' if row.ok else 'FAIL'}  {row.name:<40} {row.detail}")
    return 0 if all(row.ok for row in report) else 1
