"""An engine that answers from a script, at once: for tests, and to measure everything around an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import anyio
import anyio.lowlevel
import numpy as np

from toolgym.engines.base import Completion, Engine, EngineInfo, Request, Scores, WeightsHandle, check_newer
from toolgym.errors import EngineError
from toolgym.types import PolicyVersion, StopReason

Script: TypeAlias = Callable[[Request], Sequence[int]] | Sequence[Sequence[int]]


class ScriptedEngine(Engine):
    """Answers each request with tokens from ``script``: a function of the request, or answers given out in order.

    An answer is cut after its first stop token, or at ``max_new_tokens``; an answer with no stop token counts as cut by
    length. Every token gets ``logprob`` and the current version. A function may raise, to play an engine that fails.
    ``requests`` keeps what was asked (``record=False`` switches that off), ``released`` the sessions given back.

    Example: ``ScriptedEngine([[5, 6, 2], [7, 2]])`` or ``ScriptedEngine(lambda request: [len(request.tokens), 2])``.

    Raises:
        EngineError: from `generate`, when the list of answers is used up or the engine was closed.
    """

    def __init__(
        self,
        script: Script,
        *,
        version: PolicyVersion | None = None,
        logprob: float = -0.5,
        max_context: int = 1 << 20,
        record: bool = True,
    ) -> None:
        self._script = script
        self._version = version if version is not None else PolicyVersion()
        self._logprob = logprob
        self._max_context = max_context
        self._record = record
        self._given = 0
        self._closed = False
        self._paused: anyio.Event | None = None
        self.requests: list[Request] = []
        self.released: list[str] = []
        self.published: list[PolicyVersion] = []

    async def generate(self, request: Request) -> Completion:
        """Give the next answer, after one trip through the event loop (as any engine would)."""
        await anyio.lowlevel.checkpoint()
        while self._paused is not None:
            await self._paused.wait()
        if self._closed:
            raise EngineError("the scripted engine is closed")
        if self._record:
            self.requests.append(request)
        tokens, stop = _cut(self._answer(request), request)
        n = len(tokens)
        return Completion(
            tokens=np.asarray(tokens, dtype=np.int32),
            logprobs=np.full(n, self._logprob, dtype=np.float32),
            versions=np.full(n, self._version.n, dtype=np.int32),
            stop=stop,
        )

    async def score(self, tokens: Sequence[Sequence[int]], *, top_k: int = 0) -> list[Scores]:
        """Score every token with ``logprob``; its top_k are the token itself and its successors, each a nat less."""
        await anyio.lowlevel.checkpoint()
        offsets = np.arange(top_k)
        scores: list[Scores] = []
        for row in tokens:
            ids = np.asarray(row, dtype=np.int32)
            logprobs = np.full(len(ids), self._logprob, dtype=np.float32)
            logprobs[:1] = 0.0
            top_tokens = (ids[:, None] + offsets).astype(np.int32)
            top_logprobs = np.broadcast_to(self._logprob - offsets, top_tokens.shape).astype(np.float32)
            scores.append(
                Scores(logprobs=logprobs, top_tokens=top_tokens, top_logprobs=top_logprobs, version=self._version)
            )
        return scores

    async def publish(self, version: PolicyVersion, handle: WeightsHandle) -> None:
        """Take the version; there are no weights to read. Refuses a version that goes back."""
        await anyio.lowlevel.checkpoint()
        check_newer(self._version, version)
        self._version = version
        self.published.append(version)

    async def release(self, session: str) -> None:
        """Record the session in ``released``."""
        self.released.append(session)

    async def pause(self) -> None:
        """Make later requests wait."""
        if self._paused is None:
            self._paused = anyio.Event()

    async def resume(self) -> None:
        """Let waiting requests go on."""
        if self._paused is not None:
            self._paused.set()
            self._paused = None

    def info(self) -> EngineInfo:
        """Name, version and limits."""
        return EngineInfo(name="scripted", version=self._version, slots=1 << 20, max_context=self._max_context)

    async def aclose(self) -> None:
        """Refuse later requests; waiting ones get an EngineError."""
        self._closed = True
        await self.resume()

    def _answer(self, request: Request) -> Sequence[int]:
        if callable(self._script):
            return self._script(request)
        if self._given >= len(self._script):
            raise EngineError(f"request {request.id!r}: the script has {len(self._script)} answers, all were given")
        self._given += 1
        return self._script[self._given - 1]


def _cut(tokens: Sequence[int], request: Request) -> tuple[Sequence[int], StopReason]:
    tokens = tokens[: request.sampling.max_new_tokens]
    stops = request.sampling.stop_tokens
    if tokens and tokens[-1] in stops and not any(stop in tokens[:-1] for stop in stops):
        return tokens, StopReason.END_OF_TURN
    for i, token in enumerate(tokens):
        if token in stops:
            return tokens[: i + 1], StopReason.END_OF_TURN
    return tokens, StopReason.LENGTH
