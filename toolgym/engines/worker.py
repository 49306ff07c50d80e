"""The worker process of `TransformersEngine`: ``python -m toolgym.engines.worker FD CONFIG``.

It owns the model and a `Generator`, and talks over one end of a socket pair. Between two steps it reads what arrived
and sends what finished. It ends when the other end closes, whatever it is doing: a thread waits for that alone.
"""

from __future__ import annotations

import copy
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from toolgym.engines.base import Sampling
from toolgym.engines.generation import Generator, ScoreArrays, self_test
from toolgym.engines.rows import Finished, Job
from toolgym.engines.slots import ATTENTION
from toolgym.engines.weights import checksum, named_weights, own_memory, read_weights
from toolgym.engines.wire import Frames, frame
from toolgym.errors import EngineError

_TOLERANCE = {torch.float32: 1e-3}  # of the self-test; half precision rounds at 2**-8
_HALF_TOLERANCE = 0.25
_SEND_BUFFER = 1 << 22  # the parent may be busy learning while completions pile up


@dataclass(slots=True)
class _Load:
    """New weights on their way into the spare model, in a thread of their own."""

    call: int
    version: int
    path: str
    canary: np.ndarray
    thread: threading.Thread | None = None
    error: str | None = None
    started: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class _Score:
    """A scoring call that is served piece by piece between decode steps, all under one version."""

    call: int
    sequences: list[np.ndarray]
    top_k: int
    version: int
    done: list[ScoreArrays] = field(default_factory=list[ScoreArrays])


class Worker:
    """Reads messages, steps the generator, sends results; `run` returns never."""

    def __init__(self, link: socket.socket, config: dict[str, Any]) -> None:
        self._link = link
        self._frames = Frames()
        self._config = config
        self._paused = False
        self._load: _Load | None = None
        self._scores: deque[_Score] = deque()
        self._sent = time.monotonic()
        self._idle_s = self._publish_s = self._score_s = 0.0
        torch.set_num_threads(config["threads"])
        model = _load_model(config)
        self._spare: torch.nn.Module | None = None
        self._generator = Generator(
            model,
            slots=config["slots"],
            max_context=config["max_context"],
            deterministic=config["deterministic"],
            on_publish=config["on_publish"],
            prefill_tokens=config["prefill_tokens"],
            version=config["version"],
        )
        dtype = next(model.parameters()).dtype
        self_test(self._generator, tolerance=_TOLERANCE.get(dtype, _HALF_TOLERANCE))
        self._send(
            [
                "ready",
                {
                    "model_type": model.config.model_type,  # pyright: ignore
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "vocabulary": self._generator.vocab,
                    "device": str(next(model.parameters()).device),
                    "pid": os.getpid(),
                },
            ]
        )

    def run(self) -> None:
        """Serve until the other end closes."""
        while True:
            working = (self._generator.busy or bool(self._scores)) and not self._paused
            self._receive(0.0 if working else 0.001 if self._load else self._config["beat_s"])
            if self._load is not None and self._load.thread is not None and not self._load.thread.is_alive():
                self._swap(self._load)
            if not self._paused:
                if self._scores:
                    self._score_some()
                if self._generator.busy:
                    self._send_finished(self._generator.step())
            if time.monotonic() - self._sent > self._config["beat_s"]:
                self._send(["beat"])

    # -- messages

    def _send(self, message: list[Any]) -> None:
        self._link.sendall(frame(message))
        self._sent = time.monotonic()

    def _receive(self, wait_s: float) -> None:
        since = time.perf_counter()
        ready, _, _ = select.select([self._link], [], [], wait_s)
        if wait_s:
            self._idle_s += time.perf_counter() - since
        if not ready:
            return
        data = self._link.recv(1 << 20)
        if not data:
            os._exit(0)
        for kind, *payload in self._frames.feed(data):
            getattr(self, f"_on_{kind}")(*payload)

    def _on_generate(self, call: int, tokens: bytes, session: str | None, seed: int, sampling: list[Any]) -> None:
        max_new_tokens, temperature, top_p, top_k, stops = sampling
        job = Job(
            id=call,
            tokens=np.frombuffer(tokens, dtype=np.int32),
            sampling=Sampling(
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                stop_tokens=tuple(stops),
            ),
            seed=seed,
            session=session,
        )
        try:
            self._generator.submit(job)
        except EngineError as error:
            self._send(["error", call, str(error)])

    def _on_cancel(self, call: int) -> None:
        self._generator.cancel(call)

    def _on_release(self, session: str) -> None:
        self._send_finished(self._generator.release(session))

    def _on_pause(self, call: int) -> None:
        self._paused = True
        self._send(["reply", call, None])

    def _on_resume(self, call: int) -> None:
        self._paused = False
        self._send(["reply", call, None])

    def _on_stats(self, call: int) -> None:
        own = {"idle_s": self._idle_s, "publish_s": self._publish_s, "score_s": self._score_s}
        self._send(["reply", call, {**self._generator.stats, **own, "cpu_s": time.process_time()}])

    def _on_score(self, call: int, sequences: list[bytes], top_k: int) -> None:
        arrays = [np.frombuffer(tokens, dtype=np.int32) for tokens in sequences]
        self._scores.append(_Score(call, arrays, top_k, self._generator.version))

    def _on_publish(self, call: int, version: int, path: str, canary: bytes) -> None:
        if self._load is not None:
            self._send(["error", call, "another publication is under way"])
            return
        self._load = load = _Load(call, version, path, np.frombuffer(canary, dtype=np.int32))
        load.thread = threading.Thread(target=self._read, args=(load,), daemon=True)
        load.thread.start()

    # -- work

    def _send_finished(self, finished: list[Finished]) -> None:
        if finished:
            done = [
                [f.id, f.tokens.tobytes(), f.logprobs.tobytes(), f.versions.tobytes(), f.stop.value] for f in finished
            ]
            self._send(["done", done])

    def _score_some(self) -> None:
        since = time.perf_counter()
        job = self._scores[0]
        if job.version != self._generator.version:  # weights were swapped in between: begin again
            job.version = self._generator.version
            job.done.clear()
        size, until = 0, len(job.done)
        while until < len(job.sequences) and (size == 0 or size < self._config["prefill_tokens"]):
            size += len(job.sequences[until])
            until += 1
        job.done += self._generator.score(job.sequences[len(job.done) : until], top_k=job.top_k)
        if len(job.done) == len(job.sequences):
            self._scores.popleft()
            arrays = [[array.tobytes() for array in scores] for scores in job.done]
            self._send(["reply", job.call, [job.version, arrays]])
        self._score_s += time.perf_counter() - since

    def _read(self, load: _Load) -> None:
        try:
            if self._spare is None:
                self._spare = copy.deepcopy(self._generator.model)
            read_weights(load.path, named_weights(self._spare))
        except Exception as error:  # told to the parent: whatever it is, these weights are not served
            load.error = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"

    def _swap(self, load: _Load) -> None:
        self._load = None
        if load.error is not None:
            self._send(["error", load.call, load.error])
            return
        assert self._spare is not None
        previous, live = self._generator.model, self._spare
        self._generator.swap(live, load.version)
        self._spare = previous
        ((logprobs, _, _),) = self._generator.score([load.canary])
        self._send(["reply", load.call, [self._generator.version, checksum(named_weights(live)), logprobs.tobytes()]])
        self._publish_s += time.perf_counter() - load.started


def _load_model(config: dict[str, Any]) -> torch.nn.Module:
    model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        config["model_path"],
        dtype=getattr(torch, config["dtype"]),
        attn_implementation=ATTENTION,
        local_files_only=True,
        output_loading_info=True,
    )
    lost = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lost:
        raise EngineError(f"the checkpoint {config['model_path']} lacks {len(lost)} tensors: {', '.join(lost[:3])}")
    rope = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise EngineError(f"rotary embeddings of type {rope!r} depend on the other rows of a batch: not supported")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and config["max_context"] > positions:
        raise EngineError(f"max_context {config['max_context']} is more than the model's {positions} positions")
    own_memory(model)
    return model.eval().to(config["device"])


def _exit_with_parent(link: socket.socket) -> None:
    """End this process as soon as the other end of the link is closed, or the parent is gone."""
    parent = os.getppid()
    poll = select.poll()
    poll.register(link, 0)  # hang-up only
    while os.getppid() == parent:
        # A process forked from the parent may hold its end open: so look at the parent too, every second.
        if poll.poll(1000):
            break
    os._exit(0)


def main() -> None:
    """Serve the engine at the other end of the socket that the first argument names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    link = socket.socket(fileno=int(sys.argv[1]))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    threading.Thread(target=_exit_with_parent, args=(link,), daemon=True).start()
    try:
        Worker(link, json.loads(sys.argv[2])).run()
    except BrokenPipeError:
        pass  # the parent is gone
    except Exception as error:  # the last words of this process: the parent raises them as an EngineError
        traceback.print_exc()
        reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        link.sendall(frame(["fatal", reason]))
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
