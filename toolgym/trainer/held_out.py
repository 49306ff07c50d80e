"""Evaluating a finished policy on its own, outside any run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio.to_thread

from toolgym.agents.chat import ChatFormat
from toolgym.agents.rollout import Budget
from toolgym.engines import open_engine
from toolgym.envs.factory import open_envs
from toolgym.trainer.config import RunConfig
from toolgym.trainer.evaluate import Evaluator, score_of
from toolgym.trainer.policy import load_tokenizer
from toolgym.trainer.reporter import Reporter, SilentReporter


async def evaluate_model(config: RunConfig, folder: Path, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Play ``config.evaluate.tasks`` tasks of its split, sampled and greedy, with the model in ``folder``.

    Args:
        config: the environment, budgets, engine and evaluation; its policy and training are not looked at.
        folder: config.json, safetensors, and a tokenizer with a chat template.
        reporter: shown the progress.

    Returns:
        ``model``, ``env``, ``split``, ``sandbox``, ``wall_s``, and ``heldout`` as in a run's summary.

    Raises:
        ConfigError: no model there, or one without chat template; the environment or engine cannot be used so.
        EngineError, SandboxError: they cannot be started.
    """
    shown = reporter or SilentReporter()
    start = time.monotonic()
    rollout, chosen = config.rollout, config.evaluate
    chat = ChatFormat(await anyio.to_thread.run_sync(load_tokenizer, folder))
    scores: dict[str, Any] = {}
    async with (
        open_envs(config.env.id, **config.env.options) as envs,
        open_engine(config.engine.type, model_path=folder, **config.engine.model_dump(exclude={"type"})) as engine,
    ):
        sandbox = envs.describe()
        shown.note(sandbox)
        tasks = list(envs.tasks(chosen.split))[: chosen.tasks]
        evaluator = Evaluator(
            envs=envs,
            chat=chat,
            engine=engine,
            budget=Budget(max_turns=rollout.max_turns, max_tokens=rollout.max_tokens, max_time_s=rollout.max_time_s),
            max_new_tokens=rollout.max_new_tokens,
            seed=config.seed,
            concurrency=config.engine.slots,
        )
        for mode, temperature in (("sampled", rollout.temperature), ("greedy", 0.0)):
            shown.phase(f"{mode} on {chosen.split}", total=len(tasks))
            played = await evaluator.run(
                tasks, temperature=temperature, label=f"eval-{mode}", on_episode=lambda _: shown.advance(1)
            )
            scores[mode] = score_of(played).to_dict()
        shown.done()
    return {
        "model": str(folder),
        "env": config.env.id,
        "split": chosen.split,
        "sandbox": sandbox,
        "heldout": {config.env.id: scores},
        "wall_s": time.monotonic() - start,
    }
