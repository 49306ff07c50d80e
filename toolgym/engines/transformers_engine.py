"""The built-in engine: a transformers model in a process of its own, with continuous batching.

This side is cheap and never blocks: it frames messages, keeps one future per call, and watches the worker. What the
worker computes is in `toolgym.engines.generation`; how it serves is in `toolgym.engines.worker`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, Self

import anyio
import anyio.to_thread
import numpy as np
from pydantic import Field

from toolgym.config import Config, load
from toolgym.engines.base import (
    Completion,
    Engine,
    EngineInfo,
    Request,
    Scores,
    WeightsHandle,
    check_newer,
    check_request,
)
from toolgym.engines.wire import Frames, frame
from toolgym.errors import ConfigError, EngineError
from toolgym.types import PolicyVersion, StopReason

_STOPS = {reason.value: reason for reason in StopReason}
_TICKS = 5  # watchdog ticks without a word from the worker that mean it hangs
_EXIT_S = 5.0  # how long the worker may take to end by itself


class TransformersEngineConfig(Config):
    """The keys of engine type ``transformers``."""

    type: Literal["transformers"] = "transformers"
    slots: int = Field(128, ge=1)
    """Sequences that decode together."""
    max_context: int = Field(512, ge=2)
    """Longest prompt plus completion, in tokens."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights and cache. Published weights must have it too."""
    device: str = "cpu"
    """Where torch puts the model: "cpu", "cuda", "cuda:1"."""
    threads: int = Field(1, ge=1)
    """CPU threads of the worker. One is fastest for tiny models."""
    deterministic: bool = False
    """Same results bit for bit whatever runs beside a request; slower, and a new session waits for a free slot."""
    on_publish: Literal["recompute", "continue"] = "recompute"
    """What live rows do after new weights: compute their cache again with them, or go on with the old cache."""
    prefill_tokens: int = Field(2048, ge=1)
    """Most prompt tokens in one forward pass."""
    deadline_s: float = Field(60.0, gt=0)
    """Longest silence of a worker that has work, and longest wait for publish, pause, resume and statistics."""
    start_deadline_s: float = Field(300.0, gt=0)
    """Longest time to start the worker and load the model."""


class TransformersEngine(Engine):
    """Serves a transformers causal model from its own process. Use it as an async context manager.

    Args:
        model_path: a folder with ``config.json`` and safetensors.
        config: see `TransformersEngineConfig`; or give its keys as keyword arguments.
        version: the version of the weights in that folder.

    A session keeps its slot and its key-value cache until `release`; when all slots are taken the session idle for
    longest loses its cache. A completion is cut at ``max_context`` (stop reason ``length``).

    Raises:
        ConfigError: an unknown or impossible option, or a folder without a model; before anything is started.
        EngineError: the worker cannot load or serve the model, died, or was silent for ``deadline_s`` while it had
        work.

    Example::

        async with TransformersEngine("runs/latest/model", slots=64) as engine:
            completion = await engine.generate(request)
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        config: TransformersEngineConfig | None = None,
        *,
        version: PolicyVersion | None = None,
        **options: Any,
    ) -> None:
        if config is not None and options:
            raise ConfigError(f"give either config or keyword options, not both: {', '.join(sorted(options))}")
        self.config = config if config is not None else load(TransformersEngineConfig, options, source="the options")
        self._path = Path(model_path)
        if not (self._path / "config.json").is_file():
            raise ConfigError(f"{self._path} is not a model folder: it has no config.json")
        self._version = version if version is not None else PolicyVersion()
        self._command = [sys.executable, "-m", "toolgym.engines.worker"]
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._outbox: list[bytes] = []
        self._publishing = anyio.Lock()
        self._details: dict[str, Any] = {}
        self._error: str | None = "it is not started: use it as an async context manager"
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._log: IO[bytes] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._heard = False
        self._silent_ticks = 0

    # -- life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Start the worker, load the model and prove that it can be served. Raises EngineError; closes itself then."""
        if self._process is not None:
            raise EngineError("this engine was started before: make a new one")
        self._loop = asyncio.get_running_loop()
        self._error = None
        ready = self._calls[0] = self._loop.create_future()
        try:
            await self._spawn()
            with anyio.move_on_after(self.config.start_deadline_s):
                self._details = await ready
            if not self._details:
                raise EngineError(f"the worker was not ready within {self.config.start_deadline_s:g} s{self._tail()}")
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._calls.pop(0, None)
        self._watch()

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        options = self.config.model_dump() | {
            "model_path": str(self._path),
            "version": self._version.n,
            "beat_s": self.config.deadline_s / 10,
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in aclose
        package_root = str(Path(__file__).parents[2])
        env = os.environ | {
            "OMP_NUM_THREADS": str(self.config.threads),
            # Threads that spin while they wait take the cores from the learner and the tools.
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": "0",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
        }
        with theirs:
            self._process = _start([*self._command, str(theirs.fileno()), json.dumps(options)], theirs, self._log, env)
        transport, _ = await self._loop.create_unix_connection(lambda: _Link(self), sock=ours)
        self._transport = transport

    async def aclose(self) -> None:
        """End the worker: by closing its link, and after 5 s by killing it. Waiting calls get an EngineError."""
        self._fail("it was closed")
        if self._process is not None and self._process.returncode is None:
            if not self._details:  # still importing and loading: it cannot see that its link is closed
                self._process.kill()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_end, self._process)
        if self._log is not None:
            self._log.close()
            self._log = None

    # -- calls

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; see `Engine.generate`. The wait for a free slot counts as progress, not as silence."""
        check_request(request)
        if request.adapter is not None:
            raise EngineError(f"request {request.id!r}: the transformers engine has no adapters")
        asked, sampling = self._version, request.sampling
        number, future = self._call(
            "generate",
            np.asarray(request.tokens, dtype=np.int32).tobytes(),
            request.session,
            request.seed & ((1 << 64) - 1),
            [
                sampling.max_new_tokens,
                float(sampling.temperature),
                float(sampling.top_p),
                sampling.top_k,
                sampling.stop_tokens,
            ],
        )
        try:
            tokens, logprobs, versions, stop = await future
        except EngineError as error:
            raise EngineError(f"request {request.id!r}: {error}") from None
        except BaseException:
            self._post(["cancel", number])
            raise
        finally:
            self._calls.pop(number, None)
        completion = Completion(
            tokens=np.frombuffer(tokens, dtype=np.int32),
            logprobs=np.frombuffer(logprobs, dtype=np.float32),
            versions=np.frombuffer(versions, dtype=np.int32),
            stop=_STOPS[stop],
        )
        if asked.lineage == self._version.lineage and len(versions) and int(completion.versions.min()) < asked.n:
            raise self._broken(
                f"it sampled with version {int(completion.versions.min())} after version {asked.n} was published"
            )
        return completion

    async def score(self, tokens: Sequence[Sequence[int]], *, top_k: int = 0) -> list[Scores]:
        """Teacher-forced log-probabilities; see `Engine.score`. Served between decode steps."""
        sequences = [np.asarray(row, dtype=np.int32) for row in tokens]
        for i, row in enumerate(sequences):
            if not len(row) or int(row.min()) < 0 or int(row.max()) >= self._details.get("vocabulary", 0):
                raise EngineError(f"sequence {i} to score is empty or has token ids outside the vocabulary")
        n, rows = await self._ask("score", [row.tobytes() for row in sequences], top_k)
        version = PolicyVersion(policy=self._version.policy, lineage=self._version.lineage, n=n)
        return [
            Scores(
                logprobs=np.frombuffer(logprobs, dtype=np.float32),
                top_tokens=np.frombuffer(top_tokens, dtype=np.int32).reshape(-1, top_k),
                top_logprobs=np.frombuffer(top_logprobs, dtype=np.float32).reshape(-1, top_k),
                version=version,
            )
            if top_k
            else Scores(
                logprobs=(array := np.frombuffer(logprobs, dtype=np.float32)),
                top_tokens=np.zeros((len(array), 0), dtype=np.int32),
                top_logprobs=np.zeros((len(array), 0), dtype=np.float32),
                version=version,
            )
            for logprobs, top_tokens, top_logprobs in rows
        ]

    async def publish(self, version: PolicyVersion, handle: WeightsHandle) -> None:
        """Swap weights and verify them; see `Engine.publish`. After a failed verification the engine serves nothing."""
        async with self._publishing:
            check_newer(self._version, version)
            canary = np.asarray(handle.canary_tokens, dtype=np.int32)
            reply = await self._ask("publish", version.n, handle.path, canary.tobytes(), within=self.config.deadline_s)
            n, checksum, logprobs = reply
            if n != version.n:
                raise self._broken(f"version {version.n} was published, the worker serves version {n}")
            if checksum != handle.checksum:
                raise self._broken(
                    f"the checksum of version {version.n} differs: published {handle.checksum[:16]}, "
                    f"live {checksum[:16]}: a tensor was changed on the way"
                )
            got = np.frombuffer(logprobs, dtype=np.float32)
            apart = np.abs(got - np.asarray(handle.canary_logprobs, dtype=np.float32))
            if not (apart <= handle.canary_tolerance).all():
                raise self._broken(
                    f"the canary of version {version.n} differs by {float(apart.max()):.3g} at token "
                    f"{int(apart.argmax())} (allowed {handle.canary_tolerance:g}): learner and engine compute "
                    "different log-probabilities with the same weights"
                )
            self._version = version

    async def release(self, session: str) -> None:
        """Forget a session's cache."""
        if self._error is None:
            self._post(["release", session])

    async def pause(self) -> None:
        """Stop decoding at the next step boundary; returns once it stands still."""
        await self._ask("pause", within=self.config.deadline_s)

    async def resume(self) -> None:
        """Go on decoding."""
        await self._ask("resume", within=self.config.deadline_s)

    async def stats(self) -> dict[str, float]:
        """Counts and seconds since the start.

        steps, tokens (sampled), prefill_tokens, shared_tokens (copied from another slot instead of computed), padding
        (idle slots computed in vain), moves, evictions, scored_tokens; forward_s, sample_s, score_s, publish_s, idle_s;
        cpu_s: CPU seconds of the worker process. A count that never rose is absent.
        """
        return await self._ask("stats", within=self.config.deadline_s)

    def info(self) -> EngineInfo:
        """Name, version, limits; details: model_type, parameters, vocabulary, device, dtype, deterministic, pid."""
        details = self._details | {"dtype": self.config.dtype, "deterministic": self.config.deterministic}
        return EngineInfo(
            name="transformers",
            version=self._version,
            slots=self.config.slots,
            max_context=self.config.max_context,
            details=details,
        )

    # -- the link

    def _call(self, kind: str, *payload: Any) -> tuple[int, asyncio.Future[Any]]:
        if self._error is not None:
            raise EngineError(f"the engine cannot be used: {self._error}")
        number = next(self._numbers)
        self._calls[number] = future = self._loop.create_future()
        self._post([kind, number, *payload])
        return number, future

    async def _ask(self, kind: str, *payload: Any, within: float | None = None) -> Any:
        number, future = self._call(kind, *payload)
        try:
            with anyio.move_on_after(within):
                return await future
            if future.done() and not future.cancelled():
                return future.result()
            raise self._broken(f"no answer to {kind} within {within} s")
        finally:
            self._calls.pop(number, None)

    def _post(self, message: list[Any]) -> None:
        if not self._outbox:  # what is asked in one turn of the event loop travels together
            self._loop.call_soon(self._flush)
        self._outbox.append(frame(message))

    def _flush(self) -> None:
        data, self._outbox = b"".join(self._outbox), []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def receive(self, messages: list[list[Any]]) -> None:
        """Take what the worker sent (called by the link)."""
        self._heard = True
        for kind, *payload in messages:
            if kind == "done":
                for number, *result in payload[0]:
                    self._settle(number, result)
            elif kind == "reply":
                self._settle(payload[0], payload[1])
            elif kind == "ready":
                self._settle(0, payload[0])
            elif kind == "error":
                future = self._calls.get(payload[0])
                if future is not None and not future.done():
                    future.set_exception(EngineError(payload[1]))
            elif kind == "fatal":
                self._fail(f"its worker ended: {payload[0]}")

    def lost(self) -> None:
        """The worker closed its end, or is dead (called by the link)."""
        if self._error is not None:
            return
        code = None
        if self._process is not None:
            try:
                # The end of the link comes a moment before the end of the process.
                code = self._process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        self._fail(f"its worker {how}{self._tail()}")

    def _settle(self, number: int, result: Any) -> None:
        future = self._calls.get(number)
        if future is not None and not future.done():
            future.set_result(result)

    def _broken(self, reason: str) -> EngineError:
        self._fail(reason)
        return EngineError(f"the engine cannot be used: {reason}")

    def _fail(self, reason: str) -> None:
        """Fail every waiting call and all later ones, and let the worker go."""
        if self._error is not None:
            return
        self._error = reason
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineError(f"the engine cannot be used: {reason}"))
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._transport is not None:
            self._transport.close()

    def _watch(self) -> None:
        """Count ticks in which a worker with work said nothing: unlike a clock, this forgives a parent kept busy."""
        self._silent_ticks = 0 if self._heard or not self._calls else self._silent_ticks + 1
        self._heard = False
        if self._silent_ticks >= _TICKS:
            if self._process is not None:
                self._process.kill()
            self._fail(f"its worker said nothing for {self.config.deadline_s:g} s while it had work: it hangs")
            return
        self._watchdog = self._loop.call_later(self.config.deadline_s / (_TICKS - 1), self._watch)

    def _tail(self) -> str:
        """The last lines that the worker wrote, to be appended to an error."""
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        text = os.pread(self._log.fileno(), 2000, max(0, size - 2000)).decode(errors="replace").strip()
        return f"; it wrote: {text}" if text else ""


class _Link(asyncio.Protocol):
    """Our end of the socket pair: hands whole messages to the engine."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine
        self._frames = Frames()

    def data_received(self, data: bytes) -> None:
        self._engine.receive(self._frames.feed(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.lost()


def _start(command: list[str], link: socket.socket, log: IO[bytes], env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        pass_fds=[link.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        start_new_session=True,  # Ctrl-C in a terminal reaches the parent alone, which closes the engine
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was told to end; kill it when it takes too long."""
    try:
        process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_EXIT_S)
