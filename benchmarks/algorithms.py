"""What a loss of `toolgym.algorithms` costs: forward and backward, against the same formula written out in plain torch.

1,024 rows of 4,096 tokens, float32, a mask with holes. Ours includes what the plain expression leaves out: masking that
survives NaN, clamped log-ratios, metrics and exact row weights. CPU time of the process, the best of some rounds,
ours and the plain one taking turns. ``ours`` is the worst multiple over all losses, ``baseline`` the multiple allowed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolgym.algorithms import get
from toolgym.algorithms.aggregation import aggregate, row_weights

ALLOWED = 1.5

Plain = Callable[["Inputs"], Tensor]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The tensors that the losses share."""

    logprobs: Tensor
    old: Tensor
    other: Tensor
    advantages: Tensor
    mask: Tensor


def inputs(rows: int, tokens: int) -> Inputs:
    """Log-probabilities of a policy, an earlier one and another model; half of the rows full, holes everywhere."""
    generator = torch.Generator().manual_seed(0)
    logprobs = -3.0 * torch.rand(rows, tokens, generator=generator)
    old = logprobs + 0.1 * torch.randn(rows, tokens, generator=generator)
    other = logprobs + 0.5 * torch.randn(rows, tokens, generator=generator)
    lengths = torch.randint(tokens // 2, tokens + 1, (rows,), generator=generator)
    mask = (torch.arange(tokens) < lengths[:, None]) & (torch.rand(rows, tokens, generator=generator) < 0.9)
    advantages = torch.randn(rows, generator=generator)
    return Inputs(logprobs=logprobs.requires_grad_(True), old=old, other=other, advantages=advantages, mask=mask)


def mean(loss: Tensor, x: Inputs) -> Tensor:
    """The plain token mean."""
    return torch.where(x.mask, loss, 0.0).sum() / x.mask.sum()


def ratio(x: Inputs) -> Tensor:
    """The plain token ratio."""
    return (x.logprobs - x.old).exp()


def clipped(r: Tensor, low: float | Tensor, high: float | Tensor, x: Inputs) -> Tensor:
    """PPO's surrogate, plain."""
    a = x.advantages[:, None]
    return -torch.minimum(r * a, r.clamp(low, high) * a)


def plain_gspo(x: Inputs) -> Tensor:
    """GSPO's token form, plain."""
    m = x.mask.float()
    s = ((x.logprobs - x.old) * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)
    r = (s.detach() + x.logprobs - x.logprobs.detach()).exp()
    return mean(clipped(r, 1 - 3e-4, 1 + 4e-4, x), x)


def plain_ctpo(x: Inputs) -> Tensor:
    """CTPO without dual clip's bound folded in, plain."""
    m, a = x.mask.float(), x.advantages[:, None]
    total = ((x.logprobs - x.old) * m).cumsum(1)
    log_r = total.detach() + x.logprobs - x.logprobs.detach()
    t = m.cumsum(1).sqrt()
    loss = -torch.minimum(log_r.exp() * a, log_r.clamp(-0.025 * t, 0.05 * t).exp() * a)
    loss = torch.where(a < 0, torch.minimum(loss, -a * (0.05 * t).exp()), loss)
    return mean(loss, x)


def plain_f_tis(x: Inputs) -> Tensor:
    """F-TIS, plain."""
    d = (x.logprobs - x.old).detach()
    far = torch.where(x.mask, d.exp() - 1 - d, 0.0).sum(1)
    a = torch.where((x.advantages > 0) | (far < 50.0), x.advantages, 0.0)[:, None]
    r = (x.logprobs - x.logprobs.detach()).exp()
    return mean(-d.exp().clamp(max=2.0) * a * r, x)


def plain_decoupled(x: Inputs) -> Tensor:
    """Decoupled PPO with a dropped tail, plain."""
    w = (x.old - x.other).exp()
    loss = w * clipped(ratio(x), 0.8, 1.2, x)
    return torch.where(x.mask & (w <= 5.0), loss, 0.0).sum() / x.mask.sum()


def plain_kl(kind: str) -> Plain:
    """A KL estimator, plain."""

    def loss(x: Inputs) -> Tensor:
        d = x.logprobs - x.other
        if kind == "k1":
            return mean(d, x)
        return mean(0.5 * d * d if kind == "k2" else (-d).exp() + d - 1, x)

    return loss


def plain_unbiased_kl(x: Inputs) -> Tensor:
    """k3 times the ratio, plain."""
    d = x.logprobs - x.other
    return mean(ratio(x) * ((-d).exp() + d - 1), x)


def plain_value(x: Inputs) -> Tensor:
    """The clipped value loss, plain."""
    v = x.logprobs
    clip = x.old + (v - x.old).clamp(-0.2, 0.2)
    return mean(0.5 * torch.maximum((v - x.other) ** 2, (clip - x.other) ** 2), x)


POLICY: dict[str, Plain] = {
    "reinforce": lambda x: mean(-x.advantages[:, None] * x.logprobs, x),
    "ppo_clip": lambda x: mean(clipped(ratio(x), 0.8, 1.2, x), x),
    "cispo": lambda x: mean(-ratio(x).detach().clamp(max=5.0) * x.advantages[:, None] * x.logprobs, x),
    "gspo": plain_gspo,
    "ctpo": plain_ctpo,
    "f_tis": plain_f_tis,
    "decoupled_ppo": plain_decoupled,
}


def plain_f_divergence(x: Inputs) -> Tensor:
    """Hellinger SFT, plain."""
    r = 0.1 * (x.logprobs - x.other)
    return mean(-r / (1 + r), x)


def plain_pear(x: Inputs) -> Tensor:
    """PEAR by token, plain."""
    delta = torch.where(x.mask, (x.logprobs.detach() - x.other).clamp(-0.08, 0.3), 0.0)
    place = x.mask.cumsum(1)
    rest = delta.sum(1, keepdim=True) - delta.cumsum(1) + math.log(0.999) * (place[:, -1:] - place)
    return mean(-x.logprobs * rest.clamp(-10, 5).exp(), x)


def plain_kdrl(x: Inputs) -> Tensor:
    """PPO's surrogate and k2 to the teacher, plain."""
    return mean(clipped(ratio(x), 0.8, 1.2, x) + 2e-3 * 0.5 * (x.logprobs - x.other) ** 2, x)


# ``other`` is the teacher, the reference or the demonstrator.
SUPERVISED: dict[str, tuple[tuple[str, ...], Plain]] = {
    "distillation_kl": (("other",), plain_kl("k2")),
    "opd_loss": (("old", "other"), lambda x: mean(-ratio(x) * (x.other - x.logprobs.detach()), x)),
    "offline_opd_loss": (("other",), lambda x: mean(-x.logprobs * (x.other - x.logprobs.detach()), x)),
    "sft_loss": ((), lambda x: mean(-x.logprobs, x)),
    "f_divergence_sft_loss": (("other",), plain_f_divergence),
    "pear_loss": (("other",), plain_pear),
    "rltf_sd_loss": (
        ("old", "advantages"),
        lambda x: mean(torch.where(x.old >= -5, -0.1 * x.advantages[:, None] * ratio(x), 0.0), x),
    ),
    "feedback_model_loss": ((), lambda x: mean(-0.1 * x.logprobs, x)),
}


def losses() -> dict[str, tuple[Callable[[Inputs], Tensor], Plain]]:
    """Every loss on sampled tokens: ours and the plain expression, both to a scalar."""

    def policy(name: str) -> Callable[[Inputs], Tensor]:
        def loss(x: Inputs) -> Tensor:
            more = {"sampler_logprobs": x.other} if name == "decoupled_ppo" else {}
            return total(get(name).function(x.logprobs, x.old, x.advantages, x.mask, **more)[0], x)

        return loss

    def divergence(kind: str) -> Callable[[Inputs], Tensor]:
        return lambda x: total(get("kl").function(x.logprobs, x.other, x.mask, kind=kind), x)

    def supervised(name: str, fields: tuple[str, ...]) -> Callable[[Inputs], Tensor]:
        return lambda x: total(get(name).function(x.logprobs, *(getattr(x, f) for f in fields), x.mask)[0], x)

    def kdrl(x: Inputs) -> Tensor:
        rl, _ = get("ppo_clip").function(x.logprobs, x.old, x.advantages, x.mask)
        return total(get("kdrl_loss").function(rl, x.logprobs, x.other, x.mask)[0], x)

    pairs = {name: (policy(name), plain) for name, plain in POLICY.items()}
    pairs |= {f"kl {kind}": (divergence(kind), plain_kl(kind)) for kind in ("k1", "k2", "k3")}
    pairs |= {name: (supervised(name, fields), plain) for name, (fields, plain) in SUPERVISED.items()}
    pairs["kdrl_loss"] = (kdrl, plain_kdrl)
    pairs["unbiased_kl"] = (
        lambda x: total(get("unbiased_kl").function(x.logprobs, x.other, x.old, x.mask), x),
        plain_unbiased_kl,
    )
    pairs["value_loss"] = (
        lambda x: total(get("value_loss").function(x.logprobs, x.old, x.other, x.mask)[0], x),
        plain_value,
    )
    return pairs


def total(loss: Tensor, x: Inputs) -> Tensor:
    """Our token mean."""
    return aggregate(loss, None, row_weights(x.mask, "token-mean"))


def measure(loss: Callable[[Inputs], Tensor], x: Inputs) -> float:
    """CPU seconds of one forward and backward."""
    x.logprobs.grad = None
    start = time.process_time()
    loss(x).backward()
    return time.process_time() - start


def run(rows: int = 1024, tokens: int = 4096, rounds: int = 5, only: str = "") -> dict[str, Any]:
    """Measure every loss (or ``only`` one), on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = inputs(rows, tokens)
        details: dict[str, Any] = {"rows": rows, "tokens": tokens, "rounds": rounds}
        multiples: dict[str, float] = {}
        for name, (ours, plain) in losses().items():
            if only not in ("", name):
                continue
            pairs = [(measure(ours, x), measure(plain, x)) for _ in range(rounds + 1)][1:]
            mine, theirs = (min(column) for column in zip(*pairs, strict=True))
            multiples[name] = mine / theirs
            details[name] = f"{1000 * mine:.0f} ms, plain {1000 * theirs:.0f} ms, {mine / theirs:.2f} x"
    finally:
        torch.set_num_threads(before)
    worst = max(multiples.values())
    return {
        "name": "algorithms",
        "ours": worst,
        "baseline": ALLOWED,
        "ratio": ALLOWED / worst,
        "unit": "times the CPU time of the plain torch expression (worst loss)",
        "details": details,
    }
