"""Speculative knowledge distillation: the student drafts, the teacher replaces the first token that it ranks too low.

Only a rank decides, there is no ratio test and no bonus token: this does not sample from the teacher. Its loss is
`distillation.mixed_kl` on the response. The loop asks for drafts and scores, so it is a generator without input or
output.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.masking import upcast
from toolgym.algorithms.registry import card


@card(family="distillation", certainty="certain")
def filtered_probabilities(logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The distribution that temperature and nucleus filter leave.

        p = softmax(logits / temperature), kept on the most probable tokens whose predecessors' mass is below top_p

    Args:    logits: float [..., V]. temperature >= 0; 0 is greedy. top_p in (0, 1].
    Returns: float32 or float64 [..., V], sums to 1; on ties in the nucleus the lower ids.
    Raises:  ValueError: temperature < 0 or top_p outside (0, 1].
    Source:  nucleus sampling (arXiv:1904.09751).
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"got temperature {temperature}, top_p {top_p}; expected >= 0 and in (0, 1]")
    logits = upcast(logits)
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    p = (logits / temperature).softmax(-1)
    ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
    kept = torch.where(ordered.cumsum(-1) - ordered < top_p, ordered, 0.0)
    return torch.zeros_like(p).scatter(-1, order, kept) / kept.sum(-1, keepdim=True)


@card(family="distillation", certainty="certain")
def skd_acceptable(drafts: Tensor, teacher_logits: Tensor, *, k: int = 25, top_p: float | None = None) -> Tensor:
    """Whether the teacher lets each drafted token stand.

        rank(d) = #{v: L_v > L_d} < k;   with top_p: the mass of strictly more probable tokens < top_p

    Args:    drafts: int64 [..., m], the very ids that were proposed. teacher_logits: float [..., m, V], at those
             positions. k: 0 accepts nothing, V everything. top_p: use the nucleus instead of the rank.
    Returns: bool [..., m]; equal logits share a rank, generously.
    Source:  SKD (arXiv:2410.11325), google-research speculative_kd.
    Differs: the official code checks tokens sampled anew from the student's logits, not the proposed ones.
    """
    logits = upcast(teacher_logits)
    above = logits > logits.gather(-1, drafts.unsqueeze(-1))
    if top_p is None:
        return above.sum(-1) < k
    return torch.where(above, logits.softmax(-1), 0.0).sum(-1) < top_p


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRequest:
    """Request: at most ``n`` student tokens after ``tokens`` (a list of ids; shorter only if it ends with eos)."""

    tokens: tuple[int, ...]
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Request: the teacher's logits [len(draft), V] for the positions of ``draft`` after ``tokens``."""

    tokens: tuple[int, ...]
    draft: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SKDOptions:
    """Options of `skd_steps`: ``SKDOptions(eos=2, max_new=256)``. Defaults are the official ones.

    ``k`` or ``top_p`` decide acceptance; ``draft`` tokens are proposed at a time; the teacher's replacement is drawn at
    ``teacher_temperature`` and ``teacher_top_p``. The student drafts at temperature 0.5, top_p 0.5 by its own means.
    """

    eos: int
    max_new: int
    k: int = 25
    top_p: float | None = None
    draft: int = 5
    teacher_temperature: float = 0.2
    teacher_top_p: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SKDSample:
    """One sequence. ``tokens`` are the response's; ``source`` is 0 for a student's token, 1 for a teacher's.

    ``SKDSample(tokens=(5, 8, 2), source=(0, 1, 0), proposed=4, student_calls=2, teacher_calls=2)``.
    """

    tokens: tuple[int, ...]
    source: tuple[int, ...]
    proposed: int
    student_calls: int
    teacher_calls: int

    @property
    def accept_rate(self) -> float:
        """Student tokens kept, over student tokens proposed; 0 when there were none."""
        return self.source.count(0) / self.proposed if self.proposed else 0.0


SKDSteps: TypeAlias = Generator[DraftRequest | ScoreRequest, Sequence[int] | Tensor, SKDSample]


@card(family="distillation", certainty="certain", parts=("skd_acceptable", "filtered_probabilities"))
def skd_steps(prompt: Sequence[int], options: SKDOptions, *, generator: torch.Generator | None = None) -> SKDSteps:
    """Sample one interleaved sequence: yields `DraftRequest` (send ids) and `ScoreRequest` (send logits [m, V]).

        j = first drafted position that is not acceptable
        none: keep all m drafts;   else: keep d_1 .. d_{j-1}, then one token of the teacher's filtered distribution at j

    k >= V is on-policy distillation, k = 0 samples from the teacher, k = 1 with greedy samplers is the teacher's greedy
    output.

    Args:    prompt: ids. options: see `SKDOptions`. generator: of the teacher's draws.
    Returns: by ``StopIteration.value`` an `SKDSample`: ends with eos, or has ``max_new`` tokens.
    Raises:  ValueError: an empty or too long draft.
    Source:  SKD (arXiv:2410.11325), google-research speculative_kd.
    """
    out: list[int] = []
    source: list[int] = []
    proposed = calls = 0
    while len(out) < options.max_new and options.eos not in out[-1:]:
        room = min(options.draft, options.max_new - len(out))
        answer = yield DraftRequest(tokens=(*prompt, *out), n=room)
        draft = [int(token) for token in answer]
        if not 1 <= len(draft) <= room:
            raise ValueError(f"asked the student for 1 to {room} tokens, got {len(draft)}")
        if options.eos in draft:
            draft = draft[: draft.index(options.eos) + 1]
        answer = yield ScoreRequest(tokens=(*prompt, *out), draft=tuple(draft))
        logits = torch.as_tensor(answer)
        fine = skd_acceptable(torch.tensor(draft), logits, k=options.k, top_p=options.top_p)
        n = int(fine.to(torch.int64).cumprod(0).sum())
        out += draft[:n]
        source += [0] * n
        if n < len(draft):
            p = filtered_probabilities(logits[n], temperature=options.teacher_temperature, top_p=options.teacher_top_p)
            out.append(int(torch.multinomial(p, 1, generator=generator)))
            source.append(1)
        proposed, calls = proposed + len(draft), calls + 1
    return SKDSample(
        tokens=tuple(out), source=tuple(source), proposed=proposed, student_calls=calls, teacher_calls=calls
    )


def skd_generate(
    prompt: Sequence[int],
    student: Callable[[tuple[int, ...], int], Sequence[int]],
    teacher: Callable[[tuple[int, ...], tuple[int, ...]], Tensor],
    **options: Any,
) -> SKDSample:
    """Drive `skd_steps` with ``student(tokens, n) -> ids`` and ``teacher(tokens, draft) -> logits [len(draft), V]``.

    ``options`` are those of `SKDOptions`, and ``generator``.
    """
    generator = options.pop("generator", None)
    steps = skd_steps(prompt, SKDOptions(**options), generator=generator)
    try:
        request = next(steps)
        while True:
            if isinstance(request, DraftRequest):
                request = steps.send(student(request.tokens, request.n))
            else:
                request = steps.send(teacher(request.tokens, request.draft))
    except StopIteration as stop:
        return stop.value
