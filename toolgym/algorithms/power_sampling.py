"""Power sampling: Metropolis-Hastings over whole sequences, with the model's own probability to a power as its target.

The target ``p(y)^alpha`` is not low-temperature sampling, which normalises each token by itself. Python numbers only,
no torch; the chain asks for continuations, so it is a generator without input or output (`power_sampling_steps`).
"""

import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from toolgym.algorithms.registry import card


@card(family="test_time", certainty="certain")
def mh_log_ratio(
    logp_new: float,
    logp_current: float,
    logq_new: float,
    logq_current: float,
    *,
    alpha: float,
    lengths: tuple[int, int] | None = None,
) -> float:
    """Log of the Metropolis-Hastings ratio for resampling a suffix.

        log r = alpha [log p(y') - log p(y)] + log q(y) - log q(y')  (+ log |y| - log |y'|)

    Args:
      logp_new: log p of the proposed suffix under the untempered model (prefixes cancel).
      logp_current: the same of the current suffix.
      logq_new: log q of the proposed suffix, q being exactly what was sampled from (temperature included, normalised).
      logq_current: log q of the current suffix; ``-inf`` (a filter forbids it) makes the reverse move impossible.
      alpha: power of the target, > 0. For q = p this is (alpha - 1)(log p(y') - log p(y)).
      lengths: (|y'|, |y|) of the generated parts, where an early end makes them differ; None for equal lengths.
    Returns: float, to be compared with log u: accept iff ``log u < log r``; -inf rejects.
    Raises:  ValueError: alpha <= 0, or a length < 1.
    Edge:    antisymmetric under swapping new and current; 0 for equal proposals.
    Source:  Reasoning with sampling (arXiv:2510.14901), official repository.
    Differs: the length term, which a uniform choice of the cut needs; the official code leaves it out.
    """
    if alpha <= 0 or (lengths is not None and min(lengths) < 1):
        raise ValueError(f"mh_log_ratio got alpha={alpha}, lengths={lengths}; expected alpha > 0 and lengths >= 1")
    if logq_current == -math.inf or logp_new == -math.inf:
        return -math.inf
    ratio = alpha * (logp_new - logp_current) + logq_current - logq_new
    return ratio if lengths is None else ratio + math.log(lengths[1]) - math.log(lengths[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """Tokens that continue a prefix, with both log-probabilities of each.

    ``Continuation(tokens=(5, 2), logp=(-1.2, -0.1), logq=(-0.3, -0.01), ended=True)``: ``logp`` of the untempered
    model, ``logq`` of the distribution sampled from; ``ended`` says that the last token ends the sequence.
    """

    tokens: tuple[int, ...] = ()
    logp: tuple[float, ...] = ()
    logq: tuple[float, ...] = ()
    ended: bool = False

    def cut(self, n: int) -> "Continuation":
        """The first n tokens; they have not ended."""
        return Continuation(tokens=self.tokens[:n], logp=self.logp[:n], logq=self.logq[:n])

    def joined(self, tail: "Continuation") -> "Continuation":
        """This, then the tail."""
        return Continuation(
            tokens=self.tokens + tail.tokens, logp=self.logp + tail.logp, logq=self.logq + tail.logq, ended=tail.ended
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend:
    """Request: sample at most ``n`` tokens after ``prefix`` (generated tokens, the prompt not included) from q."""

    prefix: tuple[int, ...]
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSample:
    """The chain's last state and its counts. ``PowerSample(sample=..., proposals=40, accepted=13, calls=44)``."""

    sample: Continuation
    proposals: int
    accepted: int
    calls: int


PowerChain: TypeAlias = Generator[Extend, Continuation, PowerSample]


@card(family="test_time", certainty="certain", parts=("mh_log_ratio",))
def power_sampling_steps(
    *,
    alpha: float = 4.0,
    mcmc_steps: int = 10,
    block: int = 192,
    max_new: int = 3072,
    length_correction: bool = True,
    max_swap: bool = False,
    rng: random.Random | None = None,
) -> PowerChain:
    """Draw a sequence from about p^alpha, block by block: a generator that yields `Extend` and is sent `Continuation`.

        target(y) ∝ p(y)^alpha;   accept y' with probability min(1, exp(`mh_log_ratio`))

    Args:
      alpha: power; the proposals should come from temperature 1/alpha, without top-k or top-p (a filter that forbids
        the current suffix makes the reverse move impossible).
      mcmc_steps: resamplings after each block.
      block: tokens added before each round.
      max_new: tokens in all.
      length_correction: correct the ratio where an early end makes lengths differ.
      max_swap: accept iff log p grows (alpha to infinity).
      rng: of the cuts and acceptances; None is ``random.Random(0)``.
    Returns: by ``StopIteration.value`` a `PowerSample`.
    Raises:  ValueError: a non-positive size or alpha; an answer longer than asked, or empty.
    Source:  Reasoning with sampling (arXiv:2510.14901), official repository, defaults included.
    Differs: the length correction is on by default.
    """
    if mcmc_steps < 0 or min(block, max_new) < 1 or alpha <= 0:
        raise ValueError(f"got alpha={alpha}, mcmc_steps={mcmc_steps}, block={block}, max_new={max_new}")
    rng = rng or random.Random(0)
    state = Continuation()
    proposals = accepted = calls = 0
    while not state.ended and len(state.tokens) < max_new:
        target = min(len(state.tokens) + block, max_new)
        state = yield from _extended(state, target)
        calls += 1
        for _ in range(mcmc_steps):
            cut = rng.randrange(len(state.tokens))
            proposal = yield from _extended(state.cut(cut), target)
            lengths = (len(proposal.tokens), len(state.tokens)) if length_correction else None
            new, old = math.fsum(proposal.logp[cut:]), math.fsum(state.logp[cut:])
            ratio = mh_log_ratio(
                new, old, math.fsum(proposal.logq[cut:]), math.fsum(state.logq[cut:]), alpha=alpha, lengths=lengths
            )
            take = new > old if max_swap else math.log(1.0 - rng.random()) < ratio
            if take:
                state = proposal
            proposals, accepted, calls = proposals + 1, accepted + take, calls + 1
    return PowerSample(sample=state, proposals=proposals, accepted=accepted, calls=calls)


def _extended(state: Continuation, target: int) -> Generator[Extend, Continuation, Continuation]:
    room = target - len(state.tokens)
    tail = yield Extend(prefix=state.tokens, n=room)
    short = len(tail.tokens) < room and not tail.ended
    if not 1 <= len(tail.tokens) <= room or short or not len(tail.tokens) == len(tail.logp) == len(tail.logq):
        raise ValueError(f"asked for {room} tokens, got {len(tail.tokens)} (ended: {tail.ended})")
    return state.joined(tail)


def power_sample(propose: Callable[[tuple[int, ...], int], Continuation], **options: Any) -> PowerSample:
    """Drive `power_sampling_steps` (which takes the options) with ``propose(prefix, n)``."""
    steps = power_sampling_steps(**options)
    try:
        request = next(steps)
        while True:
            request = steps.send(propose(request.prefix, request.n))
    except StopIteration as stop:
        return stop.value
