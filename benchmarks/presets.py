"""Every preset that the trainer can run trains the tiny policy once, all from the same warm start.

``python -m benchmarks.presets`` prints the table of docs/algorithms/presets.md; ``toolgym bench presets`` the same
numbers. The warm start (tokenizer, copying, supervised steps on a noisy expert) is made once; then each preset gets
``steps`` RL steps of 16 groups of 8. Success is sampled at temperature 1 on held-out tasks, the same for all, with a
95 % interval. One seed: what is shown is that each method learns, not which is best.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from toolgym.config import load
from toolgym.config.recipes import load_recipe
from toolgym.trainer.config import RunConfig
from toolgym.trainer.presets import PRESETS, RUNNABLE
from toolgym.trainer.run import train

ENV = "toolgym/lookup-v0"
STEPS = 15
TASKS = 200


def warm_model(folder: Path) -> Path:
    """The model of a run of recipe ``lookup`` that has only just begun to learn by reinforcement."""
    config = load_recipe(RunConfig, "lookup", overrides=["train.steps=1", "evaluate.tasks=1"])
    anyio.run(partial(train, config, runs_dir=folder))
    run = (folder / "latest").resolve()
    return run / "model"


def learn(preset: str, model: Path, folder: Path, *, steps: int, tasks: int) -> dict[str, Any]:
    """Train one preset from ``model``; the run's summary."""
    config = load(
        RunConfig,
        {
            "name": preset,
            "env": {"id": ENV},
            "policy": {"type": "pretrained", "path": str(model)},
            "algorithm": preset,
            **{key: value for key, value in PRESETS[preset].advice.items() if "." not in key},
            "rollout": {"groups_per_step": 16, "group_size": 8, "max_staleness": 1},
            "train": {"steps": steps, "checkpoint_every": steps},
            "evaluate": {"tasks": tasks, "transcripts": 0},
        },
    )
    before = _cpu_s()
    summary = anyio.run(partial(train, config, runs_dir=folder))
    return {**summary, "cpu_s": _cpu_s() - before}


def _cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended (the engine's)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def run(steps: int = STEPS, tasks: int = TASKS, only: str = "", warm: str = "") -> dict[str, Any]:
    """Train every preset, or the comma-separated names in ``only``, from the model folder ``warm`` if there is one."""
    names = only.split(",") if only else list(RUNNABLE)
    details: dict[str, Any] = {"env": ENV, "steps": steps, "tasks": tasks}
    gains: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(warm) if warm else warm_model(Path(scratch) / "warm")
        for name in names:
            summary = learn(name, model, Path(scratch) / name, steps=steps, tasks=tasks)
            before, after = (summary[f"heldout_{when}"][ENV]["sampled"] for when in ("before", "after"))
            gains.append(after["mean"] - before["mean"])
            details[name] = {"before": before, "after": after, "cpu_s": summary["cpu_s"]}
    return {
        "name": "presets",
        "ours": min(gains),
        "baseline": 0.0,
        "ratio": float(all(gain > 0 for gain in gains)),
        "unit": "gain in sampled success of the preset that gained least; ratio 1: all learn",
        "details": details,
    }


def main() -> None:
    """Print the table as Markdown, one line as soon as a preset is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--only", default="")
    parser.add_argument("--warm", default="", help="folder of a warm-started model")
    args = parser.parse_args()
    print("| preset | before | after | CPU s |\n|---|---|---|---:|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        warm = args.warm or str(warm_model(Path(scratch)))
        for name in args.only.split(",") if args.only else RUNNABLE:
            row = run(args.steps, args.tasks, name, warm)["details"][name]
            shown = [f"{r['mean']:.3f} [{r['ci95'][0]:.3f}, {r['ci95'][1]:.3f}]" for r in (row["before"], row["after"])]
            print(f"| `{name}` | {shown[0]} | {shown[1]} | {row['cpu_s']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
