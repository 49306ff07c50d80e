"""Runs a small recipe in a process of its own, so that tests can kill it: ``python play_run.py RUNS_DIR [options]``.

Options: ``--resume`` (the latest run), ``--delays`` (random sleeps before every answer of the environment), and
``key=value`` overrides.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio

from toolgym.config import load
from toolgym.envs import register
from toolgym.envs.lookup.env import LookupEnv
from toolgym.trainer import RunConfig, train
from toolgym.types import Message, Step, Task


@register("tests/odd-lookup-v0")
class OddLookup(LookupEnv):
    """Pays for conversations whose bytes add up to an odd number: about half of them, whatever the policy can do.

    So every step has something to learn: with the true reward all would be 0, and no kill could change the parameters.
    """

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.reward = self.judge  # type: ignore[assignment]

    async def judge(self, task: Task, messages: Sequence[Message], answer: str) -> float:
        """1 or 0."""
        return float(sum("".join(m.content for m in messages).encode() + answer.encode()) % 2)


SMALL = {
    "name": "small",
    "env": {"id": "tests/odd-lookup-v0"},
    "policy": {"type": "tiny", "warmup": {"max_steps": 40, "until_loss": 100.0}},
    "sft": {
        "demonstrations": 200,
        "until_success": 0.0,
        "check_every": 20,
        "min_steps": 60,
        "check_tasks": 8,
        "decay_steps": 0,
    },
    "engine": {"type": "transformers", "slots": 16, "max_context": 256},
    "rollout": {"groups_per_step": 4, "group_size": 4, "max_new_tokens": 32, "max_turns": 4, "max_tokens": 160},
    "train": {"steps": 5, "checkpoint_every": 2},
    "evaluate": {"tasks": 8, "transcripts": 1},
}


def main(runs_dir: Path, words: list[str]) -> None:
    """Play or resume the run and print its folder."""
    if "--delays" in words:
        _delay_answers()
    overrides = [w for w in words if "=" in w]
    config = load(RunConfig, SMALL, overrides=overrides, source="the small recipe")
    resume = (runs_dir / "latest").resolve() if "--resume" in words else None

    async def run() -> None:
        summary = await train(config, resume=resume, runs_dir=runs_dir)
        print(summary["run"])

    anyio.run(run)


def _delay_answers() -> None:
    answer = LookupEnv.astep
    rng = random.SystemRandom()

    async def slowly(self: LookupEnv, action: Message) -> Step:
        await anyio.sleep(rng.random() * 0.03)
        return await answer(self, action)

    LookupEnv.astep = slowly


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
