"""What a finished run leaves for people and programs: summary.json, a learning curve, transcripts."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolgym.store import RunStore
from toolgym.toolcalls import format_assistant
from toolgym.types import Failed, Trajectory


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write beside and rename, so that a reader or a kill never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def transcript(trajectory: Trajectory) -> str:
    """One episode as text: each message under its role, then how it ended."""
    lines = []
    for message in trajectory.messages:
        text = format_assistant(message) if message.role == "assistant" else message.content
        first, *rest = text.split("\n")
        lines.append(f"  {message.role:>9}  {first}")
        lines += [f"             {line}" for line in rest]
    outcome = trajectory.outcome
    verdict = (
        f"failed ({outcome.kind}: {outcome.detail})" if isinstance(outcome, Failed) else f"score {outcome.value:g}"
    )
    return "\n".join([*lines, f"  => {verdict}, {trajectory.end}"])


def transcripts_text(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> str:
    """The same tasks before and after training, one under the other."""
    blocks = []
    for old, new in zip(before, after, strict=False):
        blocks.append(f"task {new.task_id}\n before training\n{transcript(old)}\n after training\n{transcript(new)}")
    return "\n\n".join(blocks) + "\n"


def plot_learning_curve(store: RunStore, path: Path, *, title: str, held_out: Mapping[str, Any]) -> None:
    """Success per step, with the held-out scores before and after, as a PNG.

    Args:  held_out: ``{"before": {"sampled": {...}, "greedy": {...}}, "after": {...}}``, entries of `Score.to_dict`.
    """
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    success = store.metrics("success", phase="train")
    steps = [m.step for m in success]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(steps, [m.value for m in success], color="#4c72b0", label="training episodes (sampled)")
    last = max(steps, default=0)
    for name, colour, marker in (("sampled", "#4c72b0", "o"), ("greedy", "#dd8452", "s")):
        for when, x in (("before", 0), ("after", last + 1)):
            score = held_out.get(when, {}).get(name)
            if score and score["n"]:
                low, high = score["ci95"]
                # An interval that ends at the mean (0 or 1) may end a rounding error inside it.
                errors = [[max(0.0, score["mean"] - low)], [max(0.0, high - score["mean"])]]
                label = f"held out, {name}" if when == "after" else None
                axes.errorbar([x], [score["mean"]], yerr=errors, fmt=marker, color=colour, capsize=3, label=label)
    axes.set(xlabel="learner step", ylabel="mean score", ylim=(-0.02, 1.02), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
