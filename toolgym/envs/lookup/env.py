"""The encyclopaedia environment and its scripted expert."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from toolgym.envs.experts import Play, ask, choose_way, say
from toolgym.envs.lookup.world import questions, world
from toolgym.envs.registry import register
from toolgym.envs.tool_env import ToolEnv
from toolgym.envs.tools import tool
from toolgym.errors import ConfigError
from toolgym.rewards import ExactMatch
from toolgym.types import Task


@register("toolgym/lookup-v0")
class LookupEnv(ToolEnv):
    """Answer questions by looking names up, one after another: "Which country does Zaka live in?".

    Each page of the encyclopaedia holds one fact, so a question of n hops takes n searches. The names of the three
    splits are disjoint.
    """

    reward = ExactMatch()

    def __init__(self, *, hops: Sequence[int] = (1, 2), **kwargs: Any) -> None:
        """Make an instance; see `ToolEnv` for the other arguments.

        Args:
            hops: which questions to ask: of one, two, three hops.
            **kwargs: for `ToolEnv`.

        Raises:
            ConfigError: no hops, or others than 1, 2 and 3.
        """
        super().__init__(**kwargs)
        self.hops = tuple(sorted(set(hops)))
        if not self.hops or not set(self.hops) <= {1, 2, 3}:
            raise ConfigError(f"hops must be some of 1, 2 and 3, got {list(hops)}")

    def tasks(self, split: str) -> Sequence[Task]:
        """The questions of a split: with the default hops 4,100 for training, 520 each for validation and test."""
        return _tasks(type(self), self.check_split(split), self.hops)

    @tool(timeout_s=None)
    async def search(self, entity: str) -> str:
        """Look a name up in the encyclopaedia.

        Args:
            entity: the name
        """
        assert self.task is not None, "a tool is called within an episode"
        return world(self.task.split).pages.get(entity.strip(), "nothing found")

    def expert(self, task: Task, rng: random.Random) -> Play:
        """A noisy expert (`toolgym.envs.experts`): it may forget the answer, stop early or go too far."""
        way = choose_way(rng, ("forget", "stop early", "too far"))
        if way == "lazy":
            yield say("I am not sure.")
            return
        names = [*task.data["path"], task.data["answer"]]
        hops = len(names) - 1
        searches = {"stop early": max(1, hops - 1), "too far": hops + 1}.get(way, hops)
        for name in names[:searches]:
            yield ask("search", entity=name)
        gives_answer = way == "right" or (way == "stop early" and hops > 1)
        yield say(names[searches] if gives_answer else "I am not sure.")


@lru_cache(maxsize=32)
def _tasks(env: type[LookupEnv], split: str, hops: tuple[int, ...]) -> tuple[Task, ...]:
    return tuple(
        env.make_task(split, number, content=list(q.path), question=q.text, answer=q.answer, path=list(q.path))
        for number, q in enumerate(questions(split))
        if len(q.path) in hops
    )
