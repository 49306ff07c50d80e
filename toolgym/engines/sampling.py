"""Sampling from logits: counter-based random numbers, filters, and one inverse-CDF draw for all rows at once.

A draw takes its random number from ``(seed, position)`` alone, so a request at given weights gives the same tokens
whatever runs beside it. The log-probability returned is that of the distribution drawn from: after temperature, top_k
and top_p. Greedy rows (temperature 0) take the most likely token and the log-probability of the untempered
distribution.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from toolgym.engines.base import Sampling

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniforms(seed: int, start: int, count: int) -> npt.NDArray[np.float32]:
    """Random numbers in [0, 1) for the token positions start .. start + count - 1 of a request.

        u(seed, i) = top 24 bits of mix(mix(seed + g) + g * (i + 1))        mix, g: SplitMix64

    Returns: float32 [count]; entry j depends on ``seed`` (modulo 2**64) and ``start + j`` only.
    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014), the finaliser.
    """
    key = int(_mix(np.array([(seed + _GOLDEN) & _MASK], dtype=np.uint64))[0])
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    bits = _mix(counters * np.uint64(_GOLDEN) + np.uint64(key))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class SamplingTable:
    """The sampling parameters of every slot, as arrays, so that a step reads them with one index each."""

    def __init__(self, slots: int) -> None:
        self.inverse_temperature = np.ones(slots, dtype=np.float32)
        self.greedy = np.zeros(slots, dtype=np.bool_)
        self.top_k = np.zeros(slots, dtype=np.int64)
        self.top_p = np.ones(slots, dtype=np.float32)
        self.stops = np.full((slots, 1), -1, dtype=np.int32)

    def set(self, row: int, sampling: Sampling) -> None:
        """Take over the parameters of the request that now owns a slot."""
        greedy = sampling.temperature == 0
        self.greedy[row] = greedy
        self.inverse_temperature[row] = 1.0 if greedy else 1.0 / sampling.temperature
        self.top_k[row] = 0 if greedy else sampling.top_k
        self.top_p[row] = 1.0 if greedy else sampling.top_p
        stops = sampling.stop_tokens
        if len(stops) > self.stops.shape[1]:
            more = np.full((len(self.stops), len(stops) - self.stops.shape[1]), -1, dtype=np.int32)
            self.stops = np.concatenate([self.stops, more], axis=1)
        self.stops[row] = -1
        self.stops[row, : len(stops)] = stops

    def swap(self, a: int, b: int) -> None:
        """Exchange two slots."""
        for array in (self.inverse_temperature, self.greedy, self.top_k, self.top_p, self.stops):
            array[[a, b]] = array[[b, a]]


def draw(
    logits: torch.Tensor, u: npt.NDArray[np.float32], table: SamplingTable, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Draw one token per row by inverting its cumulative distribution.

    Args:
        logits: float32 [n, V], finite; may be overwritten.
        u: float32 [n] in [0, 1).
        table: the slots' parameters.
        rows: int [n], the slot of each row of logits.

    Returns: tokens int64 [n] and their log-probabilities float32 [n] under the distribution drawn from.
    """
    scale = table.inverse_temperature[rows]
    if (scale != 1.0).any():
        logits = logits * torch.from_numpy(scale).to(logits.device)[:, None]
    filtered = np.flatnonzero((table.top_k[rows] > 0) | (table.top_p[rows] < 1.0))
    if len(filtered):
        where = torch.from_numpy(filtered).to(logits.device)
        k = torch.from_numpy(table.top_k[rows[filtered]])
        p = torch.from_numpy(table.top_p[rows[filtered]])
        logits[where] = keep_top(logits[where], k.to(logits.device), p.to(logits.device))
    probs = torch.softmax(logits, dim=-1)
    tokens = invert(torch.cumsum(probs, dim=-1), torch.from_numpy(u).to(logits.device))
    greedy = np.flatnonzero(table.greedy[rows])
    if len(greedy):
        where = torch.from_numpy(greedy).to(logits.device)
        tokens[where] = logits[where].argmax(dim=-1)
    logprobs = probs.gather(1, tokens[:, None])[:, 0].log_()
    return tokens.cpu().numpy(), logprobs.cpu().numpy()


def invert(cdf: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative probability exceeds ``u`` times the row's total; never one of probability 0.

    Args: cdf float32 [n, V], not decreasing; u float32 [n] in [0, 1). Returns: int64 [n].
    """
    total = cdf[:, -1]
    # u * total may round up to total, past which no index lies: stay one step below.
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(u * total, below)
    return torch.searchsorted(cdf, target[:, None], right=True)[:, 0]


def keep_top(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Set to -inf all but the top_k most likely tokens, then all but the smallest set of mass at least top_p.

    Args: logits float32 [n, V]; top_k int64 [n], 0 for no limit; top_p float32 [n], 1 for no limit.
    Returns: float32 [n, V]. The most likely token always stays; of equal logits the lower token id counts as likelier.
    """
    ordered, index = torch.sort(logits, dim=-1, descending=True, stable=True)
    vocab = logits.shape[-1]
    rank = torch.arange(vocab, device=logits.device)
    limit = torch.where(top_k > 0, top_k, torch.full_like(top_k, vocab))
    ordered = ordered.masked_fill(rank >= limit[:, None], -torch.inf)
    probs = torch.softmax(ordered, dim=-1)
    before = torch.cumsum(probs, dim=-1) - probs
    # Rounding may bring the mass of all tokens to just under 1: top_p 1 keeps everything.
    cut = (before >= top_p[:, None]) & (top_p[:, None] < 1.0)
    cut[:, 0] = False
    ordered = ordered.masked_fill(cut, -torch.inf)
    return torch.empty_like(logits).scatter_(1, index, ordered)
