"""From a recipe to a policy that can be trained: the tiny one made from nothing, or a pretrained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread

from toolgym.agents.tiny import TINY_SPECIALS
from toolgym.envs.experts import Demonstration, demonstrations
from toolgym.toolcalls import format_assistant
from toolgym.trainer.config import RunConfig
from toolgym.trainer.policy import Policy, TinyPolicyConfig, load, make_tiny
from toolgym.trainer.reporter import Reporter
from toolgym.trainer.sft import encode_demonstration
from toolgym.trainer.tiny.warmup import copy_warmup


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A policy, the folder from which an engine can load it, and the demonstrations if there are any."""

    policy: Policy
    folder: Path
    demonstrations: tuple[Demonstration, ...]


async def prepare_policy(config: RunConfig, run_folder: Path, reporter: Reporter) -> Prepared:
    """Make or load the policy; the tiny one is saved under ``<run>/policy`` before its warm-up.

    Raises:  ConfigError: the environment has no expert (for demonstrations), or the model cannot be loaded.
    """
    shown: Sequence[Demonstration] = ()
    if config.sft is not None or isinstance(config.policy, TinyPolicyConfig):
        count = config.sft.demonstrations if config.sft is not None else 1000
        reporter.phase("demonstrations", total=count)
        shown = await demonstrations(config.env.id, count=count, seed=config.seed, **config.env.options)
        reporter.advance(count, expert_success=sum(d.score for d in shown) / len(shown))
    if not isinstance(config.policy, TinyPolicyConfig):
        policy = await anyio.to_thread.run_sync(lambda: load(config.policy.path, dtype=config.policy.dtype))
        return Prepared(policy=policy, folder=Path(config.policy.path), demonstrations=tuple(shown))
    tiny = config.policy
    texts = [text_of(d) for d in shown]
    policy = await anyio.to_thread.run_sync(lambda: make_tiny(tiny, texts=texts, seed=config.seed))
    folder = run_folder / "policy"
    policy.save(folder)
    return Prepared(policy=policy, folder=folder, demonstrations=tuple(shown))


def text_of(demonstration: Demonstration) -> str:
    """All that is said in a demonstration, for training a tokenizer."""
    return "\n".join(format_assistant(m) if m.role == "assistant" else m.content for m in demonstration.messages)


async def warm_up(config: RunConfig, policy: Policy) -> float | None:
    """The tiny policy's copy warm-up, in a thread; None where the policy needs none. Returns its last loss."""
    tiny = config.policy
    if not isinstance(tiny, TinyPolicyConfig):
        return None
    return await anyio.to_thread.run_sync(
        lambda: copy_warmup(policy.model, tiny.warmup, first_token=len(TINY_SPECIALS), seed=config.seed)
    )


def encode_all(
    policy: Policy, shown: Sequence[Demonstration], tools: Sequence[dict[str, Any]]
) -> list[tuple[list[int], list[bool]]]:
    """Demonstrations as tokens and loss masks."""
    return [encode_demonstration(policy.chat, d.messages, tools) for d in shown]
