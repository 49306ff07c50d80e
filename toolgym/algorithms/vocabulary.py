"""Log-probabilities and divergences over a vocabulary, [B, T, V], with their gradient written out.

As in `surrogate`, value and slope are computed together and autograd keeps one [B, T, V] tensor instead of six. There
is no second derivative. Log-probabilities are clamped to -10,000: what a model rules out (logit -inf) costs that many
nats, not infinitely many.
"""

from typing import Any, cast

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, upcast
from toolgym.algorithms.surrogate import hush

# exp(-1e4) is 0 in float64 too; 0 * 1e4 is 0, where 0 * inf would be nan.
_RULED_OUT = -1e4


class _LogitSurrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * slope, None, None


def logit_surrogate(logits: Tensor, value: Tensor, slope: Tensor, mask: Tensor) -> Tensor:
    """``value`` [B, T], whose gradient in ``logits`` [B, T, V] is ``slope`` [B, T, V]; both are silenced in place."""
    apply = cast(Any, _LogitSurrogate).apply
    return cast(Tensor, apply(upcast(logits), hush(value, mask), hush(slope, mask.unsqueeze(-1))))


@torch.no_grad()
def common_logprobs(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Both models' log-softmax over the common vocabulary, detached; whatever stands under the mask comes through.

    A vocabulary's padding rows (one logit tensor wider than the other) are cut off.
    """
    if temperature <= 0:
        raise ValueError(f"got temperature {temperature}, expected > 0")
    check_mask(mask, student_logits=student_logits[..., 0], teacher_logits=teacher_logits[..., 0])
    size = min(student_logits.shape[-1], teacher_logits.shape[-1])
    both = [upcast(x[..., :size]) for x in (student_logits, teacher_logits)]
    scaled = both if temperature == 1 else [x / temperature for x in both]
    student, teacher = (x.log_softmax(-1).clamp_(min=_RULED_OUT) for x in scaled)
    return student, teacher


class _Gather(torch.autograd.Function):
    """``log_softmax(logits).gather(-1, ids)``; no gradient to masked rows, be they nan."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        ctx.save_for_backward(logprobs, ids, mask)
        return logprobs.gather(-1, ids).clamp_(min=_RULED_OUT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logprobs, ids, mask = ctx.saved_tensors
        slope = logprobs.exp().mul_(-grads[0].sum(-1, keepdim=True)).scatter_add_(-1, ids, grads[0])
        return hush(slope, mask.unsqueeze(-1)), None, None


def gather_logprobs(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities of chosen tokens.

    Args:    logits: float [B, T, V], with gradient. ids: int64 [B, T, K], repetitions allowed, negative for padding.
             mask: bool [B, T].
    Returns: float32 or float64 [B, T, K]; 0 under the mask and on padding.
    """
    check_mask(mask, logits=logits[..., 0], ids=ids[..., 0])
    chosen = cast(Tensor, cast(Any, _Gather).apply(upcast(logits), ids.clamp(min=0), mask))
    return torch.where(mask.unsqueeze(-1) & (ids >= 0), chosen, 0.0)
