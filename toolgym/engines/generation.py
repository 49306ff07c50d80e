"""Continuous batching over fixed slots: the part of the engine that decides what each forward pass computes.

Synchronous, in one process, no IO: the worker drives it, tests call it directly. A step is one packed forward pass: one
token for every decoding slot and the new tokens of slots that are being prefilled, so a row that starts never holds up
the others. A session keeps its slot, and the keys and values in it, between its turns.

In deterministic mode every row is computed as if it were alone: prefills one by one, decoding always over all slots (a
matrix product's rounding depends on its shape), keys in lengths that follow from the row. Then results agree bit for
bit whatever the neighbours, the order of arrival and the slot.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from toolgym.engines.base import Sampling
from toolgym.engines.rows import Finished, Job, Rows
from toolgym.engines.sampling import draw
from toolgym.engines.slots import ATTENTION, PackedBatch, SlotCache, Span, Stretch
from toolgym.errors import EngineError
from toolgym.types import StopReason

OnPublish = Literal["recompute", "continue"]
ScoreArrays: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.float32]]

_KEY_BUCKET = 32  # keys are read in multiples of this: fewer shapes, and runs of rows that can be attended to together
_STRETCH = 16  # slots that read the same number of keys, that of the longest
_MAX_MOVES = 8  # rows exchanged before one pass: each costs about as much as decoding a token of that row
_WORTH_SHARING = 16  # tokens: below that, computing them again costs less than copying the cache
_MAX_IDLE = 0.125  # share of idle sessions up to which they keep their places among the decoding rows


class Generator:
    """Generates and scores with one model. Every method returns promptly; `step` does one forward pass.

    Args:
        model: a causal model of transformers, loaded with the `slots.ATTENTION` interface.
        slots: rows that decode together.
        max_context: longest prompt plus completion, in tokens.
        deterministic: see the module.
        on_publish: what live rows do after `swap`: "recompute" their cache with the new weights, so that their
            log-probabilities are exactly those of the new version, or "continue" on the old cache to the end of the
            turn.
        prefill_tokens: most prompt tokens in one forward pass.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        slots: int,
        max_context: int,
        deterministic: bool = False,
        on_publish: OnPublish = "recompute",
        prefill_tokens: int = 2048,
        version: int = 0,
    ) -> None:
        self.model = model
        self.version = version
        self._deterministic = deterministic
        self._on_publish: OnPublish = on_publish
        self._prefill_tokens = prefill_tokens
        parameter = next(model.parameters())
        self._device = parameter.device
        self.vocab = int(model.get_output_embeddings().weight.shape[0])  # pyright: ignore[reportCallIssue]
        self._cache = SlotCache(
            model.config, slots=slots, length=max_context, dtype=parameter.dtype, device=str(self._device)
        )
        self._rows = Rows(slots, max_context)
        self._owners: dict[str | int, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()  # sessions between turns, longest idle first
        self._free = set(range(slots))
        self._waiting: OrderedDict[str | int, Job] = OrderedDict()  # by owner, first come first
        self._prefilling: list[int] = []
        self._untidy = False  # have rows come or gone since they were last put in order?
        self.stats: Counter[str] = Counter()

    # -- requests

    @property
    def busy(self) -> bool:
        """Is there anything for `step` to do?"""
        return bool(self._waiting or self._prefilling or self._rows.decoding.any())

    def submit(self, job: Job) -> None:
        """Queue a job. Raises EngineError: no tokens, too many, a token id outside the vocabulary, a busy session."""
        count, context = len(job.tokens), self._rows.tokens.shape[1]
        if count == 0:
            raise EngineError("the context is empty: a request needs at least one token")
        if count >= context:
            raise EngineError(f"the context has {count} tokens: with max_context {context} nothing can be generated")
        low, high = int(job.tokens.min()), int(job.tokens.max())
        if low < 0 or high >= self.vocab:
            raise EngineError(f"token id {low if low < 0 else high} is outside the vocabulary of {self.vocab}")
        row = self._owners.get(job.owner)
        if job.owner in self._waiting or (row is not None and self._rows.jobs[row] is not None):
            raise EngineError(f"session {job.session!r} already has a request under way")
        if row is None:
            self._waiting[job.owner] = job
        else:
            self._idle.pop(str(job.owner))
            self._begin(row, job)

    def cancel(self, job_id: int) -> None:
        """Drop a job; its session keeps its slot. Unknown ids are ignored."""
        for job in self._waiting.values():
            if job.id == job_id:
                del self._waiting[job.owner]
                return
        for row, job in enumerate(self._rows.jobs):
            if job is not None and job.id == job_id:
                self._end(row, StopReason.CANCELLED)
                return

    def release(self, session: str) -> list[Finished]:
        """Give a session's slot back; returns what it had under way, as cancelled. Unknown sessions are ignored."""
        done: list[Finished] = []
        waiting = self._waiting.pop(session, None)
        if waiting is not None:
            none = np.zeros(0, dtype=np.int32)
            logprobs = none.astype(np.float32)
            done.append(
                Finished(id=waiting.id, tokens=none, logprobs=logprobs, versions=none, stop=StopReason.CANCELLED)
            )
        row = self._owners.get(session)
        if row is not None:
            if self._rows.jobs[row] is not None:
                done.append(self._end(row, StopReason.CANCELLED))
            del self._idle[session]
            self._free_row(session)
        return done

    def swap(self, model: torch.nn.Module, version: int) -> None:
        """Serve other weights from the next step on. No key or value of the old ones outlives the turn it serves."""
        self.model, self.version = model, version
        rows = self._rows
        if self._on_publish == "continue":
            rows.stale |= rows.decoding
            rows.cached[~rows.decoding] = 0
            return
        rows.cached[:] = 0
        self._prefilling += np.flatnonzero(rows.decoding).tolist()
        rows.decoding[:] = False

    # -- slots

    def _begin(self, row: int, job: Job) -> None:
        self._rows.start(row, job)
        self._prefilling.append(row)
        self._untidy = True

    def _end(self, row: int, stop: StopReason) -> Finished:
        job = self._rows.jobs[row]
        assert job is not None
        if row in self._prefilling:
            self._prefilling.remove(row)
        finished = self._rows.finish(row, stop)
        self._untidy = True
        if job.session is not None:
            self._idle[job.session] = None
        else:
            self._free_row(job.owner)
        return finished

    def _free_row(self, owner: str | int) -> None:
        row = self._owners.pop(owner)
        self._rows.owners[row] = None
        self._free.add(row)

    def _admit(self) -> None:
        while self._waiting:
            if not self._free:
                if self._deterministic or not self._idle:
                    return
                session, _ = self._idle.popitem(last=False)
                self._free_row(session)
                self.stats["evictions"] += 1
            _, job = self._waiting.popitem(last=False)
            row = min(self._free)  # low slots first: decoding covers all slots up to the highest in use
            self._free.remove(row)
            self._owners[job.owner] = row
            self._rows.owners[row] = job.owner
            if self._deterministic:
                self._rows.cached[row] = 0  # what an earlier owner left may have been computed in other shapes
            self._begin(row, job)

    def _arrange(self) -> None:
        """Move rows so that long ones stand together, then short ones, then idle ones.

        Rows of one stretch read as many keys as the longest of them, and slots up to the highest in use are computed:
        in order, few keys and few rows are computed in vain. Each pass makes a few moves, until none would help.
        """
        rows = self._rows
        live = rows.decoding.copy()
        live[self._prefilling] = True
        idle = np.array([owner is not None for owner in rows.owners]) & ~live
        # A few idle sessions keep their places: most come back before the move has paid.
        kept = live | idle if idle.sum() <= _MAX_IDLE * live.sum() else live
        keys = np.where(kept, -(-rows.length // _KEY_BUCKET), 0)
        here = np.arange(len(keys)) // _STRETCH
        here[np.count_nonzero(keys) :] += len(keys)  # beyond the rows that count: a place of its own
        there = np.empty_like(here)
        there[np.argsort(-keys, kind="stable")] = here
        moves = 0
        while moves < _MAX_MOVES:
            wrong = np.flatnonzero(here != there)
            if not len(wrong):
                self._untidy = False
                return
            a = int(wrong[keys[wrong].argmax()])
            inside = wrong[here[wrong] == there[a]]  # some row stands where a belongs
            b = int(inside[keys[inside].argmin()])
            if keys[a] != keys[b]:
                self._swap_rows(a, b)
                keys[[a, b]] = keys[[b, a]]
                moves += 1
            there[[a, b]] = there[[b, a]]

    def _swap_rows(self, a: int, b: int) -> None:
        rows = self._rows
        for row in (a, b):
            if rows.owners[row] is None:
                rows.cached[row] = 0  # not worth carrying
        self._cache.swap(a, b, int(rows.cached[a]), int(rows.cached[b]))
        rows.swap(a, b)
        for row in (a, b):
            owner = rows.owners[row]
            if owner is None:
                self._free.add(row)
            else:
                self._free.discard(row)
                self._owners[owner] = row
        self._prefilling = [b if row == a else a if row == b else row for row in self._prefilling]
        self.stats["moves"] += 1

    # -- steps

    def step(self) -> list[Finished]:
        """One decode step of all rows, with the prefills that fit; returns the jobs that it finished."""
        self._admit()
        if not self._deterministic:
            if self._untidy:
                self._arrange()
            return self._forward(self._decode_rows(), self._choose_spans())
        done: list[Finished] = []
        for row in list(self._prefilling):
            start = int(self._rows.cached[row])
            end = min(int(self._rows.length[row]), start + self._prefill_tokens)
            done += self._forward(0, [Span(row, start, end)])
        if self._rows.decoding.any():
            done += self._forward(len(self._rows.jobs), [])
        return done

    def _decode_rows(self) -> int:
        active = np.flatnonzero(self._rows.decoding)
        return int(active[-1]) + 1 if len(active) else 0

    def _choose_spans(self) -> list[Span]:
        """The spans to prefill now. A row whose prefix another slot has, or will have after this pass, copies it."""
        rows, spans, budget = self._rows, list[Span](), self._prefill_tokens
        after = np.where(rows.stale, 0, rows.cached)  # what may be copied, once this pass is done
        for row in self._prefilling:
            if budget <= 0:
                break
            if rows.length[row] - rows.cached[row] > _WORTH_SHARING:
                donor, shared = rows.nearest(row, after)
                if shared >= rows.cached[row] + _WORTH_SHARING:
                    if shared > rows.cached[donor]:
                        continue  # the donor computes it in this very pass: copy at the next
                    self._cache.copy(donor, row, shared)
                    rows.cached[row] = shared
                    self.stats["shared_tokens"] += shared
            start = int(rows.cached[row])
            end = min(int(rows.length[row]), start + budget)
            budget -= end - start
            after[row] = end
            spans.append(Span(row, start, end))
        return spans

    def _forward(self, decoding: int, spans: Sequence[Span]) -> list[Finished]:
        """One packed pass over slots 0 .. decoding - 1 and the spans; samples for every row that is complete."""
        if not decoding and not spans:
            return []
        clock = time.perf_counter()
        rows, active = self._rows, self._rows.decoding[:decoding]
        ids, positions, columns, slots, keep = self._pack(active, spans)
        last = np.where(active, rows.length[:decoding] - 1, 0)
        stretches = self._stretches(active, last)
        batch = PackedBatch(
            self._cache,
            self._tensor(slots),
            self._tensor(columns),
            decoding,
            stretches,
            self._cache.mask(self._tensor(last), max(s.keys for s in stretches)) if stretches else None,
            spans,
        )
        with torch.inference_mode():
            logits = self._run(ids, positions, batch, keep)
            clock = self._tick("forward_s", clock)
            complete = [span.slot for span in spans if span.slot is not None and span.end == rows.length[span.slot]]
            which = np.concatenate([np.arange(decoding), np.array(complete, dtype=np.int64)])
            u = rows.u[which, np.minimum(rows.length[which], rows.u.shape[1] - 1)]
            tokens, logprobs = draw(logits, u, rows.sampling, which)
        self._tick("sample_s", clock)
        valid = np.concatenate([np.flatnonzero(active), np.arange(decoding, len(which))])
        for span in spans:
            rows.cached[span.slot] = span.end
        for row in complete:
            self._prefilling.remove(row)
            rows.decoding[row] = True
        self.stats["steps"] += 1
        self.stats["tokens"] += len(valid)
        self.stats["prefill_tokens"] += len(ids) - decoding
        self.stats["padding"] += decoding + len(complete) - len(valid)
        return self._append(which[valid], tokens[valid], logprobs[valid])

    def _append(
        self, which: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float32]
    ) -> list[Finished]:
        stopped, full = self._rows.append(which, tokens, logprobs, self.version)
        done: list[Finished] = []
        for i in np.flatnonzero(stopped | full):
            reason = StopReason.END_OF_TURN if stopped[i] else StopReason.LENGTH
            done.append(self._end(int(which[i]), reason))
        return done

    def _pack(self, active: npt.NDArray[np.bool_], spans: Sequence[Span]) -> tuple[npt.NDArray[np.int64], ...]:
        """Token ids, positions, cache columns and slots [N] of a packed batch, and which tokens need logits."""
        rows, decoding = self._rows, len(active)
        last = rows.length[:decoding] - 1
        position = np.where(active, last, 0)
        # An idle slot below the highest decoding one is computed in vain: its token goes to the dump.
        ids = [np.where(active, rows.tokens[np.arange(decoding), position], 0)]
        positions, columns = [position], [np.where(active, last, self._cache.dump)]
        slots, keep, offset = [np.arange(decoding)], [np.arange(decoding)], decoding
        for span in spans:
            where = np.arange(span.start, span.end)
            ids.append(rows.tokens[span.slot, span.start : span.end])
            positions.append(where)
            columns.append(where)
            slots.append(np.full(len(where), span.slot))
            offset += len(where)
            if span.end == rows.length[span.slot]:
                keep.append(np.array([offset - 1]))
        return tuple(np.concatenate(part).astype(np.int64) for part in (ids, positions, columns, slots, keep))

    def _stretches(self, active: npt.NDArray[np.bool_], last: npt.NDArray[np.int64]) -> list[Stretch]:
        """Runs of decoding slots that read the same number of keys."""
        if not len(active):
            return []
        keys = np.minimum((last // _KEY_BUCKET + 1) * _KEY_BUCKET, self._cache.dump + 1)
        if not self._deterministic:  # there, a row's own length alone decides
            longest = np.maximum.reduceat(keys, np.arange(0, len(keys), _STRETCH))
            keys = np.repeat(longest, _STRETCH)[: len(keys)]
        edges = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
        return [Stretch(low, high, int(keys[low])) for low, high in itertools.pairwise(edges)]

    def _run(
        self,
        ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        batch: PackedBatch,
        keep: npt.NDArray[np.int64] | None,
    ) -> torch.Tensor:
        """The logits, float32 [kept tokens, V]."""
        out = self.model(
            input_ids=self._tensor(ids)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            logits_to_keep=0 if keep is None else self._tensor(keep),
            packed_batch=batch,
        )
        return out.logits[0].float()

    def _tensor(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _tick(self, phase: str, since: float) -> float:
        now = time.perf_counter()
        self.stats[phase] += now - since  # pyright: ignore[reportArgumentType]
        return now

    # -- scoring

    def score(self, sequences: Sequence[npt.NDArray[np.int32]], *, top_k: int = 0) -> list[ScoreArrays]:
        """The arrays of `Scores` for each sequence: logprobs [T], top_tokens [T, k], top_logprobs [T, k]."""
        results: list[ScoreArrays] = []
        for chunk in self._chunks(sequences):
            spans = [Span(None, 0, len(tokens)) for tokens in chunk]
            ids = np.concatenate(chunk).astype(np.int64)
            positions = np.concatenate([np.arange(len(tokens)) for tokens in chunk])
            with torch.inference_mode():
                logits = self._run(ids, positions, PackedBatch(self._cache, None, None, spans=spans), None)
                offset = 0
                for tokens in chunk:
                    results.append(_scores(logits[offset : offset + len(tokens)], tokens, top_k))
                    offset += len(tokens)
            self.stats["scored_tokens"] += len(ids)
        return results

    def _chunks(self, sequences: Sequence[npt.NDArray[np.int32]]) -> list[list[npt.NDArray[np.int32]]]:
        # Full logits of one chunk must fit in memory: 2**25 float32 values are 128 MiB.
        budget = max(1, min(self._prefill_tokens, (1 << 25) // self.vocab))
        chunks: list[list[npt.NDArray[np.int32]]] = []
        size = budget
        for tokens in sequences:
            if self._deterministic or size + len(tokens) > budget:
                chunks.append([])
                size = 0
            chunks[-1].append(tokens)
            size += len(tokens)
        return chunks


def _scores(logits: torch.Tensor, tokens: npt.NDArray[np.int32], top_k: int) -> ScoreArrays:
    count = len(tokens)
    logprobs = np.zeros(count, dtype=np.float32)
    top_tokens = np.zeros((count, top_k), dtype=np.int32)
    top_logprobs = np.zeros((count, top_k), dtype=np.float32)
    if count > 1:
        table = torch.log_softmax(logits[:-1], dim=-1)
        ids = torch.from_numpy(tokens[1:].astype(np.int64)).to(logits.device)
        logprobs[1:] = table.gather(1, ids[:, None])[:, 0].cpu().numpy()
        if top_k:
            best = table.topk(top_k, dim=-1)
            top_tokens[1:], top_logprobs[1:] = best.indices.cpu().numpy(), best.values.cpu().numpy()
    return logprobs, top_tokens, top_logprobs


def self_test(generator: Generator, *, tolerance: float) -> None:
    """Prove on random tokens that this model's packed, cached passes compute what its plain forward computes.

    Two sessions of different lengths play two turns; then the log-probabilities of all that was sampled are compared.

    Raises EngineError: they differ by more than ``tolerance`` (the architecture keeps state that the slot cache does
    not know), or the model's attention cannot be served.
    """
    random = np.random.default_rng(0)
    vocab, model = generator.vocab, generator.model
    contexts = {name: random.integers(0, vocab, n).astype(np.int32) for name, n in (("a", 5), ("b", 9))}
    worst = 0.0
    for turn in range(2):
        for i, (name, tokens) in enumerate(contexts.items()):
            sampling = Sampling(max_new_tokens=3)
            generator.submit(Job(id=-1 - i, tokens=tokens, sampling=sampling, seed=turn, session=f"self-test {name}"))
        done: list[Finished] = []
        while generator.busy:
            done += generator.step()
        for finished in done:
            name = "ab"[-1 - finished.id]
            whole = np.concatenate([contexts[name], finished.tokens])
            plain = _plain_logprobs(model, whole)[len(contexts[name]) :]
            worst = max(worst, float(np.abs(plain - finished.logprobs).max()))
            contexts[name] = np.concatenate([whole, random.integers(0, vocab, 4).astype(np.int32)])
    for name in contexts:
        generator.release(f"self-test {name}")
    generator.stats.clear()
    if not worst <= tolerance:
        raise EngineError(
            f"{type(model).__name__} cannot be served: with the slot cache its log-probabilities differ from its plain "
            f"forward's by {worst:.2g} (allowed {tolerance:g})"
        )


def _plain_logprobs(model: torch.nn.Module, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    model.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
    try:
        with torch.inference_mode():
            ids = torch.from_numpy(tokens.astype(np.int64)).to(next(model.parameters()).device)
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        return _scores(logits, tokens, 0)[0]
    finally:
        model.set_attn_implementation(ATTENTION)  # pyright: ignore[reportCallIssue]
