"""Merging fine-tuned models, on state dicts (name -> tensor): average, TIES, LiNeS, and sums of LoRA adapters.

``theta_0`` is the base, ``tau_t = theta_t - theta_0`` a task's update. Arithmetic is in float32 at least and results
are cast back to the first state's dtype. Tensors that are not floating point come from the first state (or the base);
tensors that are the same object in it (tied weights) stay one object.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.masking import upcast
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest

State: TypeAlias = Mapping[str, Tensor]


def check_states(states: Sequence[State]) -> None:
    """Raise ConfigError unless there is a state, and all have the same names and shapes."""
    if not states:
        raise ConfigError("got no state dicts to merge")
    for i, state in enumerate(states[1:], start=1):
        if missing := states[0].keys() ^ state.keys():
            raise ConfigError(f"state {i} and state 0 differ in {sorted(missing)[:5]}")
        for name, tensor in state.items():
            if tensor.shape != states[0][name].shape:
                raise ConfigError(f"{name}: state {i} has {list(tensor.shape)}, state 0 {list(states[0][name].shape)}")


def merge_tensors(states: Sequence[State], rule: Callable[[str, list[Tensor]], Tensor]) -> dict[str, Tensor]:
    """Apply ``rule(name, upcast tensors)`` to each floating-point name; the others are copied from the first state."""
    check_states(states)
    merged: dict[str, Tensor] = {}
    tied: dict[int, Tensor] = {}
    for name, first in states[0].items():
        if id(first) not in tied:
            if first.is_floating_point():
                result = rule(name, [upcast(state[name].detach()) for state in states]).to(first.dtype)
            else:
                result = first.clone()
            tied[id(first)] = result
        merged[name] = tied[id(first)]
    return merged


def _shares(weights: Sequence[float] | None, n: int) -> list[float]:
    if weights is None:
        return [1.0 / n] * n
    if len(weights) != n or sum(weights) == 0:
        raise ConfigError(f"got weights {list(weights)} for {n} state dicts, expected one each, not summing to 0")
    return [w / sum(weights) for w in weights]


@card(family="merging", certainty="certain")
def average(states: Sequence[State], *, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted average of state dicts.

        theta = sum_i w_i theta_i / sum_i w_i

    Args:    states: one or more, of equal names and shapes. weights: one each, None is equal.
    Returns: new tensors in the first state's dtypes.
    Raises:  ConfigError: no state, other names or shapes, weights that do not fit or sum to 0.
    Source:  Model soups (arXiv:2203.05482).
    """
    check_states(states)
    shares = _shares(weights, len(states))
    return merge_tensors(states, lambda _, xs: torch.stack([w * x for w, x in zip(shares, xs, strict=True)]).sum(0))


def task_vectors(base: State, states: Sequence[State]) -> list[dict[str, Tensor]]:
    """tau_t = theta_t - theta_0 of the floating-point names, in float32 at least."""
    check_states([base, *states])
    return [
        {name: upcast(state[name].detach()) - x.detach() for name, x in base.items() if x.is_floating_point()}
        for state in states
    ]


@card(family="merging", certainty="certain")
def trim(tau: Tensor, *, density: float) -> Tensor:
    """Keep the entries of largest magnitude.

        tau_i where |tau_i| is at least the k-th largest magnitude, k = floor(density n), else 0

    Args:    tau: float, any shape. density in [0, 1].
    Returns: float32 or float64, the shape of ``tau``; 0 everywhere for k = 0. Ties at the threshold are all kept, so
             more than k may remain.
    Raises:  ConfigError: density outside [0, 1].
    Source:  TIES-Merging (arXiv:2306.01708), step 1.
    """
    if not 0 <= density <= 1:
        raise ConfigError(f"got density {density}, expected [0, 1]")
    tau = upcast(tau)
    k = int(density * tau.numel() + 1e-9)  # 0.2 * 5 must be 1, whatever rounding says
    if k == 0:
        return torch.zeros_like(tau)
    magnitude = tau.abs().flatten()
    threshold = magnitude.kthvalue(magnitude.numel() - k + 1).values
    return torch.where(tau.abs() >= threshold, tau, 0.0)


@card(family="merging", certainty="certain")
def elect_and_average(
    taus: Tensor, *, weights: Sequence[float] | None = None, zero_sign: Literal["majority", "positive"] = "majority"
) -> Tensor:
    """Elect a sign per entry, then average the updates that agree with it.

        s = sgn(sum_t w_t tau_t);   tau = sum_{t: sgn tau_t = s} w_t tau_t / sum_{t: sgn tau_t = s} w_t

    Args:    taus: float [tasks, ...], trimmed. weights: one a task, None is 1 each. zero_sign: where the sum is 0: the
             majority sign of the elected entries (TIES), or plus (mergekit).
    Returns: float32 or float64 [...]; 0 where nothing agrees.
    Raises:  ConfigError: weights that do not fit.
    Source:  TIES-Merging (arXiv:2306.01708), steps 2 and 3; official code and mergekit.
    """
    if weights is not None and len(weights) != taus.shape[0]:
        raise ConfigError(f"got {len(weights)} weights for {taus.shape[0]} tasks")
    taus = upcast(taus)
    w = taus.new_ones(taus.shape[0]) if weights is None else taus.new_tensor(list(weights))
    w = w.reshape(-1, *[1] * (taus.dim() - 1))
    sign = (w * taus).sum(0).sign()
    fallback = torch.where(sign.sum() >= 0, 1.0, -1.0) if zero_sign == "majority" else 1.0
    sign = torch.where(sign == 0, fallback, sign)
    agrees = (taus.sign() == sign) & (taus != 0)
    total = torch.where(agrees, w, 0.0).sum(0)
    return torch.where(agrees, w * taus, 0.0).sum(0) / torch.where(total == 0, 1.0, total)


@card(family="merging", certainty="certain", parts=("trim", "elect_and_average"))
def ties(
    base: State,
    states: Sequence[State],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    per_tensor: bool = False,
    zero_sign: Literal["majority", "positive"] = "majority",
) -> dict[str, Tensor]:
    """TIES: trim each task's update, elect signs, average what agrees.

        theta_0 + scale elect_and_average(trim(tau_1), ..., trim(tau_n))

    Args:    base: theta_0. states: one or more fine-tuned states. density: share of entries kept. scale: lambda, tuned
             in [0, 1]. weights: one a state. per_tensor: one threshold a tensor (mergekit) instead of one for the whole
             model.
    Returns: new state dict in the base's dtypes.
    Raises:  ConfigError: states, weights or density that do not fit.
    Edge:    one task with density 1 is its model; density 0 is the base.
    Source:  TIES-Merging (arXiv:2306.01708), official code; mergekit.
    """
    taus = task_vectors(base, states)
    names = [name for name in base if base[name].is_floating_point()]
    groups = [[name] for name in names] if per_tensor else [names]
    update: dict[str, Tensor] = {}
    for group in groups:
        flat = [torch.cat([tau[name].flatten() for name in group]) for tau in taus]
        merged = elect_and_average(
            torch.stack([trim(x, density=density) for x in flat]), weights=weights, zero_sign=zero_sign
        )
        parts = torch.split(merged, [base[name].numel() for name in group])
        update |= {name: part.reshape(base[name].shape) for name, part in zip(group, parts, strict=True)}
    return merge_tensors([base], lambda name, xs: xs[0] + scale * update[name])


@card(family="merging", certainty="certain")
def lines_scale(block: int | None, blocks: int, *, alpha: float, beta: float) -> float:
    """LiNeS' factor of a block's update: shallow blocks stay near the base.

        s_l = alpha + beta l / (L - 1),  l = 0 .. L-1;   alpha outside the blocks

    Args:    block: l, or None for a parameter outside the blocks. blocks: L >= 1.
    Raises:  ConfigError: block outside [0, L).
    Edge:    L = 1 gives alpha + beta.
    Source:  LiNeS (arXiv:2410.17146), official repository.
    Differs: L = 1 is derived.
    """
    if block is None:
        return alpha
    if not 0 <= block < blocks:
        raise ConfigError(f"got block {block} of {blocks}")
    return alpha + beta * (block / (blocks - 1) if blocks > 1 else 1.0)


@card(family="merging", certainty="certain", parts=("lines_scale",))
def lines(
    base: State, merged: State, *, alpha: float, beta: float, layers: Sequence[str] = ("layers", "h", "blocks")
) -> dict[str, Tensor]:
    """LiNeS: scale an update linearly with depth, after fine-tuning or any merge.

        theta = theta_0 + s_l (theta_merged - theta_0)

    Args:    base: theta_0. merged: a state with the same names. alpha, beta: `lines_scale`; for one task beta = 1 -
             alpha, for several alpha from `lines_alpha`. layers: names whose ``.<name>.<i>.`` numbers the blocks; each
             prefix before it (encoder, decoder) is a stack of its own.
    Returns: new state dict in the base's dtypes.
    Raises:  ConfigError: states that do not fit. Warns (UserWarning) if no name holds a block number.
    Source:  LiNeS (arXiv:2410.17146), official repository.
    """
    pattern = re.compile(rf"^(.*?)(?:^|\.)(?:{'|'.join(map(re.escape, layers))})\.(\d+)\.")
    found = {name: match for name in base if (match := pattern.match(name))}
    if not found:
        warnings.warn(f"no parameter name holds a block number of {tuple(layers)}: all updates get alpha", stacklevel=2)
    depth: dict[str, int] = {}
    for match in found.values():
        depth[match[1]] = max(depth.get(match[1], 0), int(match[2]) + 1)

    def rule(name: str, xs: list[Tensor]) -> Tensor:
        match = found.get(name)
        block, blocks = (int(match[2]), depth[match[1]]) if match else (None, 1)
        return xs[0] + lines_scale(block, blocks, alpha=alpha, beta=beta) * (xs[1] - xs[0])

    return merge_tensors([base, merged], rule)


@card(family="merging", certainty="certain")
def lines_alpha(base: State, states: Sequence[State], merged: State) -> float:
    """LiNeS' alpha for several tasks, from the size of the merged update.

        alpha = (1/n) ||sum_t tau_t|| / ||tau_merged||

    Args:    base, states, merged: state dicts of equal names and shapes.
    Returns: float; 1 for an average merge, 1/n for a sum.
    Raises:  ConfigError: states that do not fit, or a merged model that is the base.
    Source:  LiNeS (arXiv:2410.17146), official repository.
    """
    taus = task_vectors(base, states)
    (tau,) = task_vectors(base, [merged])
    size = sum(float(x.square().sum()) for x in tau.values()) ** 0.5
    if size == 0:
        raise ConfigError("the merged model equals the base: alpha is undefined")
    total = sum(float(torch.stack([t[name] for t in taus]).sum(0).square().sum()) for name in tau) ** 0.5
    return total / size / len(states)


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition U, S, V^T."""
    u, sigma, v = torch.linalg.svd(x, full_matrices=False)  # pyright: ignore
    return u, sigma, v  # pyright: ignore


LoRAMode: TypeAlias = Literal["cat", "svd", "linear", "factors"]
LORA_MODES: tuple[LoRAMode, ...] = ("cat", "svd", "linear", "factors")
Factors: TypeAlias = tuple[Tensor, Tensor]  # A [rank, in], B [out, rank]


@card(family="merging", certainty="certain")
def combine_lora(
    adapters: Sequence[Factors],
    *,
    weights: Sequence[float],
    scalings: Sequence[float] | None = None,
    mode: LoRAMode = "cat",
    rank: int | None = None,
) -> Factors:
    """Combine LoRA adapters of one layer into one with scaling 1.

        cat:     A = [A_1; ..], B = [w_1 s_1 B_1, ..]:  B A = sum w_i s_i B_i A_i exactly, ranks add up
        svd:     the same sum, truncated to ``rank``
        linear:  A = sum sign(w_i) sqrt(|w_i s_i|) A_i, B = sum sqrt(|w_i s_i|) B_i   (peft; ranks equal)
        factors: A = sum w_i A_i, B = sum w_i s_i B_i                      (BPO's ensemble average; ranks equal)

    The last two hold cross terms: averaging factors is not averaging updates.

    Args:    adapters: (A float [rank, in], B float [out, rank]) each. weights: one each. scalings: alpha / rank each
             (rsLoRA: alpha / sqrt(rank)); None is 1 each. rank: of the result in mode svd; None keeps the largest.
    Returns: (A, B) in float32 or float64.
    Raises:  ConfigError: unknown mode, numbers that do not fit, unequal ranks where they must be equal.
    Source:  peft add_weighted_adapter.
    Differs: cat is the default, because it is exact; scalings are folded into B.
    """
    scalings = [1.0] * len(adapters) if scalings is None else scalings
    if not adapters or len(weights) != len(adapters) or len(scalings) != len(adapters):
        raise ConfigError(f"got {len(adapters)} adapters, {len(weights)} weights, {len(scalings)} scalings")
    a = [upcast(x) for x, _ in adapters]
    b = [upcast(x) for _, x in adapters]
    shares = [w * s for w, s in zip(weights, scalings, strict=True)]
    if mode == "cat":
        return torch.cat(a), torch.cat([s * x for s, x in zip(shares, b, strict=True)], 1)
    if mode == "svd":
        total = torch.stack([s * y @ x for s, x, y in zip(shares, a, b, strict=True)]).sum(0)
        u, sigma, v = svd(total)
        size = rank or max(x.shape[0] for x in a)
        return sigma[:size, None].sqrt() * v[:size], u[:, :size] * sigma[:size].sqrt()
    if mode not in LORA_MODES:
        raise ConfigError(nearest(mode, LORA_MODES, what="LoRA combination"))
    if len({x.shape[0] for x in a}) > 1:
        raise ConfigError(f"mode {mode!r} needs equal ranks, got {[x.shape[0] for x in a]}; use 'cat' or 'svd'")
    if mode == "factors":
        factors = [(w, s) for w, s in zip(weights, shares, strict=True)]
    else:
        factors = [(abs(s) ** 0.5 * (1 if s >= 0 else -1), abs(s) ** 0.5) for s in shares]
    return (
        torch.stack([f * x for (f, _), x in zip(factors, a, strict=True)]).sum(0),
        torch.stack([f * y for (_, f), y in zip(factors, b, strict=True)]).sum(0),
    )
