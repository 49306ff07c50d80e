"""``toolgym runs``: what was run, and what came of it."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolgym.cli.output import print_json, print_table
from toolgym.cli.run_folder import DATABASE, RUNS_DIR, find_run, list_runs
from toolgym.errors import ConfigError

if TYPE_CHECKING:
    from toolgym.store import RunStore

LIST = """\
List runs: when they began, their last step, success on held-out tasks before and after.

  toolgym runs list
"""
SHOW = """\
Show a run: its summary, newest numbers, checkpoints, and how many groups became what; with --episodes transcripts.

  toolgym runs show latest
  toolgym runs show latest --episodes 3 --failed
"""


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("runs", help="list runs, show one", description=LIST + "\n" + SHOW)
    commands = parser.add_subparsers(metavar="list|show", required=True)
    lister = commands.add_parser("list", help="all runs, oldest first", description=LIST)
    lister.set_defaults(handler=show_runs)
    shower = commands.add_parser("show", help="one run", description=SHOW)
    shower.add_argument("run", metavar="RUN", help="a name in --runs-dir, a path, or latest")
    shower.add_argument("--episodes", metavar="N", type=int, default=0, help="print the newest N episodes")
    shower.add_argument("--split", help="only episodes of this split: train, validation, test")
    shower.add_argument("--failed", action="store_true", help="only episodes that failed")
    shower.set_defaults(handler=show_run)
    for command in (lister, shower):
        command.add_argument("--runs-dir", metavar="DIR", type=Path, default=RUNS_DIR, help="default: runs")
        command.add_argument("--json", action="store_true", help="print JSON")


def show_runs(args: argparse.Namespace) -> int:
    """Handler of ``toolgym runs list``."""
    if args.runs_dir != RUNS_DIR and not args.runs_dir.is_dir():
        raise ConfigError(f"no folder {args.runs_dir}")
    rows = [_row(folder) for folder in list_runs(args.runs_dir)]
    if args.json:
        print_json(rows)
    elif not rows:
        print(f"no runs in {args.runs_dir}/ yet: toolgym train makes one")
    else:
        head = list(rows[0])
        print_table(head, [[row[k] for k in head] for row in rows])
    return 0


def _row(folder: Path) -> dict[str, Any]:
    summary = read_summary(folder)
    with open_store(folder) as store:
        latest = store.latest_checkpoint()
        groups = store.group_states()
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / DATABASE).stat().st_ctime))
    return {
        "run": folder.name,
        "changed": began,
        "recipe": summary.get("recipe"),
        "seed": summary.get("seed"),
        "step": latest.step if latest else None,
        "groups": len(groups),
        "before": _success(summary.get("heldout_before")),
        "after": _success(summary.get("heldout_after")),
        "state": "finished" if summary else "unfinished",
    }


def _success(heldout: Any) -> float | None:
    """The mean over environments of sampled success."""
    means = [e["sampled"]["mean"] for e in (heldout or {}).values()]
    return sum(means) / len(means) if means else None


def read_summary(folder: Path) -> dict[str, Any]:
    """The run's ``summary.json``; empty while it is unfinished."""
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def open_store(folder: Path) -> RunStore:
    """The run's database, for reading."""
    return importlib.import_module("toolgym.store").RunStore.open(folder / DATABASE, read_only=True)


def show_run(args: argparse.Namespace) -> int:
    """Handler of ``toolgym runs show``."""
    folder = find_run(args.run, args.runs_dir)
    with open_store(folder) as store:
        data = _collect(folder, store)
        episodes = store.episodes(
            split=args.split, failed=True if args.failed else None, newest_first=True, limit=args.episodes
        )
    trajectories = [e.trajectory for e in episodes]
    if args.json:
        codec = importlib.import_module("toolgym.store.codec")
        data["episodes"] = [
            {
                "id": t.id,
                "task_id": t.task_id,
                "messages": [codec.message_to_json(m) for m in t.messages],
                "outcome": codec.outcome_to_json(t.outcome),
                "end": t.end,
            }
            for t in trajectories
        ]
        print_json(data)
        return 0
    _print(data)
    for t in trajectories:
        transcript = importlib.import_module("toolgym.trainer.report").transcript  # the trainer brings torch with it
        print(f"\n{t.id}, task {t.task_id} of {t.env_id}\n{transcript(t)}")
    return 0


def _collect(folder: Path, store: RunStore) -> dict[str, Any]:
    newest: dict[str, dict[str, Any]] = {}
    for m in store.metrics():  # in order of step: the last of a name is the newest
        newest.setdefault(m.phase, {})[m.name] = m.value
        newest[m.phase]["step"] = m.step
    states: dict[str, int] = {}
    for state in store.group_states().values():
        states[state] = states.get(state, 0) + 1
    return {
        "run": folder.name,
        "folder": str(folder),
        "summary": read_summary(folder),
        "groups": states,
        "checkpoints": [{"step": c.step, "path": str(c.path)} for c in store.checkpoints()],
        "metrics": newest,
    }


def _print(data: dict[str, Any]) -> None:
    output = importlib.import_module("toolgym.cli.output")
    print(f"{data['run']}  ({data['folder']})")
    summary = dict(data["summary"])
    for when in ("before", "after"):
        output.print_heldout(f"held out, {when}", summary.pop(f"heldout_{when}", {}))
    output.print_tree({"summary": summary, "groups": data["groups"], "metrics": data["metrics"]})
    if data["checkpoints"]:
        last = data["checkpoints"][-1]
        print(f"checkpoints: {len(data['checkpoints'])}, the last of step {last['step']} at {last['path']}")
