"""The rollout loop: an agent plays an episode, and the tokens it saw and sampled are recorded exactly.

This is the one boundary where exceptions become `Failed` outcomes, by kind. Cancellation always passes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import anyio
import numpy as np

from toolgym.agents.chat import ChatFormat
from toolgym.engines.base import Completion, Engine, Request, Sampling
from toolgym.envs.base import Env
from toolgym.errors import ConfigError, EngineError, EnvError, RewardError, SandboxError
from toolgym.types import (
    EpisodeEnd,
    Failed,
    FailureKind,
    Group,
    Message,
    Outcome,
    PolicyVersion,
    Scored,
    Segment,
    Step,
    StopReason,
    Task,
    Trajectory,
    Turn,
)

CLEANUP_S = 10.0  # for scoring at a truncation, and for letting go of session and environment: a hang must not last
DETAIL_CHARS = 500
_log = logging.getLogger(__name__)
_KINDS: tuple[tuple[type[Exception], FailureKind], ...] = (
    (EnvError, "env"),
    (SandboxError, "sandbox"),
    (RewardError, "reward"),
    (EngineError, "engine"),
    (TimeoutError, "timeout"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What an episode may use: assistant turns, tokens of the whole context (template included), wall-clock seconds."""

    max_turns: int
    max_tokens: int
    max_time_s: float

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_tokens", "max_time_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeIds:
    """Where an episode belongs. Example: ``EpisodeIds(run="r1", group="g7", index=3)``, trajectory ``r1/g7/3/0``."""

    run: str
    group: str
    index: int = 0
    attempt: int = 0

    @property
    def trajectory(self) -> str:
        """The trajectory's id, and the engine session's."""
        return f"{self.run}/{self.group}/{self.index}/{self.attempt}"


async def rollout(
    env: Env,
    task: Task,
    engine: Engine,
    chat: ChatFormat,
    *,
    sampling: Sampling,
    budget: Budget,
    ids: EpisodeIds,
    seed: int,
) -> Trajectory:
    """Play one episode.

    Args:
        env: plays this episode alone; the caller closes it.
        task: a task of ``env``.
        engine: samples the turns. Its session is the trajectory's id and is released at the end, whatever happens.
        chat: the policy's chat format.
        sampling: of each turn; without stop tokens, the chat format's are used.
        budget: of the whole episode. Past the turns or tokens the episode is truncated and the environment says what
            it is worth. Past the time likewise when the time went into many tool calls, which the policy chose; but
            when the engine took most of it, or one call of the environment hung, the outcome is Failed("timeout").
        ids: names the trajectory.
        seed: random numbers are keyed by (seed, task id, index, turn): give another when a task is visited again.

    Returns:
        The trajectory, with all that was sampled until the end. Its outcome is Failed when something raised that the
        policy cannot cause. Only cancellation, and what is no `Exception`, passes through.
    """
    return await _Episode(task, engine, chat, sampling, budget, ids, seed).run(lambda: env)


async def rollout_group(
    open_env: Callable[[], Env],
    task: Task,
    engine: Engine,
    chat: ChatFormat,
    *,
    size: int,
    sampling: Sampling,
    budget: Budget,
    ids: EpisodeIds,
    seed: int,
    on_episode: Callable[[Trajectory], None] = lambda trajectory: None,
) -> Group:
    """Play ``size`` episodes of a task at the same time; see `rollout`.

    Args: open_env: makes an environment for one episode, which is closed here. ids: ``index`` is that of the first.
        on_episode: hears of each episode as it ends, while others go on.
    """
    played: dict[int, Trajectory] = {}

    async def play(index: int) -> None:
        episode = _Episode(task, engine, chat, sampling, budget, replace(ids, index=index), seed)
        played[index] = await episode.run(open_env, close=True)
        on_episode(played[index])

    indices = range(ids.index, ids.index + size)
    async with anyio.create_task_group() as group:
        for index in indices:
            group.start_soon(play, index)
    trajectories = tuple(played[index] for index in indices)
    lineage = max((segment.lineage for t in trajectories for segment in t.segments), default=0)
    return Group(id=ids.group, task=task, trajectories=trajectories, lineage=lineage)


def stable_seed(*parts: object) -> int:
    """A number in [0, 2^63) that depends on the parts' text alone, not on the process or ``PYTHONHASHSEED``."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def failure_of(error: Exception) -> Failed:
    """The typed failure that an exception stands for: the six kinds of `toolgym.errors`, timeouts, or else a bug."""
    leaves = list(_leaves(error))
    for kind_of_error, kind in _KINDS:
        for leaf in leaves:
            if isinstance(leaf, kind_of_error):
                return Failed(kind=kind, detail=(str(leaf) or type(leaf).__name__)[:DETAIL_CHARS])
    bug = leaves[0]
    where = bug.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f" ({where.tb_frame.f_code.co_filename}:{where.tb_lineno})" if where else ""
    _log.debug("an episode failed with a bug", exc_info=error)
    return Failed(kind="bug", detail=f"{type(bug).__name__}: {bug}"[:DETAIL_CHARS] + place)


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


class _Episode:
    """One episode in the making. ``tokens`` is the context: prompt, sampled turns and increments, in order."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        chat: ChatFormat,
        sampling: Sampling,
        budget: Budget,
        ids: EpisodeIds,
        seed: int,
    ) -> None:
        self.task, self.engine, self.chat, self.budget, self.ids, self.seed = task, engine, chat, budget, ids, seed
        self.sampling = sampling if sampling.stop_tokens else replace(sampling, stop_tokens=chat.stop_tokens)
        self.session = ids.trajectory
        self.tokens: list[int] = []
        self.messages: list[Message] = []
        self.sampled: list[tuple[int, Completion, Message]] = []  # where each turn starts, what it is
        self.rewards: list[float] = []
        self.outcome: Outcome = Failed(kind="bug", detail="the episode did not end")
        self.end = EpisodeEnd.FAILED
        self.version = PolicyVersion()
        self.started = time.perf_counter()
        self.env_s = 0.0  # spent in finished calls of the environment
        self.env_since: float | None = None  # when its running call began

    async def run(self, open_env: Callable[[], Env], *, close: bool = False) -> Trajectory:
        """Play to the end and let go of everything, whatever happens."""
        env: Env | None = None
        try:
            env = open_env()
            self.version = self.engine.info().version
            with anyio.move_on_after(self.budget.max_time_s) as scope:
                await self._play(env)
            if scope.cancelled_caught:
                await self._time_is_up(env)
        except Exception as error:  # the boundary: errors become data here
            self._finish(failure_of(error), EpisodeEnd.FAILED)
        finally:
            with anyio.move_on_after(CLEANUP_S, shield=True) as cleanup:
                await self._let_go(env if close else None)
            if cleanup.cancelled_caught:
                _log.warning("episode %s: letting go took over %g s and was given up", self.session, CLEANUP_S)
        return self._trajectory()

    async def _play(self, env: Env) -> None:
        self.env_since = time.perf_counter()
        options = {"task": self.task}
        messages, _ = await env.areset(seed=stable_seed(self.seed, self.task.id), options=options)
        self._env_returned()
        self.messages += messages
        self.tokens = self.chat.initial(messages, [tool.schema for tool in env.tools])
        if self._room() < 1:
            raise EnvError(f"the prompt has {len(self.tokens)} tokens, max_tokens is {self.budget.max_tokens}")
        while True:
            action = await self._act()
            self.env_since = time.perf_counter()
            step = await env.astep(action)
            self._env_returned()
            self.rewards.append(step.reward)
            self.messages += step.messages
            if step.outcome is not None:
                return self._finish(step.outcome, EpisodeEnd.TERMINATED if step.terminated else EpisodeEnd.TRUNCATED)
            if len(self.sampled) >= self.budget.max_turns:
                return await self._truncate(env, EpisodeEnd.MAX_TURNS, "turns")
            if not self._extend(step):
                return await self._truncate(env, EpisodeEnd.MAX_TOKENS, "tokens")

    async def _act(self) -> Message:
        turn, start, sampling = len(self.sampled), len(self.tokens), self.sampling
        if self._room() < sampling.max_new_tokens:
            sampling = replace(sampling, max_new_tokens=self._room())
        request = Request(
            id=f"{self.session}/{turn}",
            tokens=self.tokens.copy(),
            sampling=sampling,
            session=self.session,
            seed=stable_seed(self.seed, self.task.id, self.ids.index, turn),
        )
        completion = await self.engine.generate(request)
        if completion.stop is StopReason.CANCELLED:
            raise EngineError(f"request {request.id} was cancelled in the engine")
        sampled: list[int] = completion.tokens.tolist()
        action = self.chat.parse(sampled)
        self.tokens += sampled
        self.tokens += self.chat.close_turn(completion.stop)
        self.messages.append(action)
        self.sampled.append((start, completion, action))
        return action

    def _extend(self, step: Step) -> bool:
        """Append the environment's answer; False, and nothing appended, when that leaves no room for a turn."""
        increment = self.chat.extend(step.messages)
        if self._room() - len(increment) < 1:
            return False
        self.tokens += increment
        return True

    def _room(self) -> int:
        return self.budget.max_tokens - len(self.tokens) - 1  # 1: a turn cut by length still gets its end-of-turn token

    def _env_returned(self) -> None:
        assert self.env_since is not None
        self.env_s += time.perf_counter() - self.env_since
        self.env_since = None

    async def _time_is_up(self, env: Env) -> None:
        # A policy must not escape a bad score by dawdling, nor be scored for what it cannot cause.
        now, limit = time.perf_counter(), self.budget.max_time_s
        running_s = now - self.env_since if self.env_since is not None else 0.0
        env_s = self.env_s + running_s
        if running_s > limit / 2:
            detail = f"one call of the environment did not return within {running_s:.3g} of the episode's {limit:g} s"
            self._finish(Failed(kind="timeout", detail=detail), EpisodeEnd.FAILED)
        elif env_s < limit / 2:
            detail = f"the engine took {now - self.started - env_s:.3g} of the episode's {limit:g} s"
            self._finish(Failed(kind="timeout", detail=detail), EpisodeEnd.FAILED)
        else:
            await self._truncate(env, EpisodeEnd.TIMEOUT, "time")

    async def _truncate(self, env: Env, end: EpisodeEnd, reason: str) -> None:
        with anyio.fail_after(CLEANUP_S):
            outcome = await env.atruncate(reason)
        self._finish(outcome, end)

    def _finish(self, outcome: Outcome, end: EpisodeEnd) -> None:
        if isinstance(outcome, Scored) and not math.isfinite(outcome.value):
            outcome = Failed(kind="reward", detail=f"the score is {outcome.value}, not a finite number")
        self.outcome = outcome
        self.end = EpisodeEnd.FAILED if isinstance(outcome, Failed) else end

    async def _let_go(self, env: Env | None) -> None:
        closers = [lambda: self.engine.release(self.session)]
        if env is not None:
            closers.append(env.aclose)
        for close in closers:
            try:
                await close()
            except Exception as error:
                # The episode has its outcome; a leak is the owner's to find (pools and engines check at their end).
                _log.warning("episode %s: %s", self.session, failure_of(error).detail)

    def _trajectory(self) -> Trajectory:
        n = len(self.tokens)
        mask, logprobs = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.float32)
        versions = np.full(n, -1, dtype=np.int32)
        turns: list[Turn] = []
        for place, (start, completion, action) in enumerate(self.sampled):
            end = start + len(completion.tokens)
            mask[start:end] = True
            logprobs[start:end] = completion.logprobs
            versions[start:end] = completion.versions
            failures = sum(call.error is not None for call in action.tool_calls)
            turns.append(
                Turn(
                    segment=0,
                    start=start,
                    end=end,
                    stop=completion.stop,
                    reward=self.rewards[place] if place < len(self.rewards) else 0.0,
                    tool_calls=len(action.tool_calls) - failures,
                    parse_failures=failures,
                )
            )
        segment = Segment(
            tokens=np.array(self.tokens, dtype=np.int32),
            loss_mask=mask,
            sampler_logprobs=logprobs,
            versions=versions,
            policy=self.version.policy,
            lineage=self.version.lineage,
        )
        return Trajectory(
            id=self.session,
            task_id=self.task.id,
            env_id=self.task.env_id,
            group_id=self.ids.group,
            index=self.ids.index,
            attempt=self.ids.attempt,
            segments=(segment,),
            turns=tuple(turns),
            messages=tuple(self.messages),
            outcome=self.outcome,
            end=self.end,
            duration_s=time.perf_counter() - self.started,
        )
