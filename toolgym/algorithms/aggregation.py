"""From per-token losses to one number: a weight for each row, and one weighted sum.

Every mode is ``loss = sum_i w_i sum_t m_it l_it``. The weights are computed once for the whole (global) batch, from its
lengths; micro-batches and data-parallel ranks then sum their own rows, and the sum is exact whatever the split.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, group_index, group_sum, silence, upcast
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest

Mode: TypeAlias = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "prompt-mean"
]
MODES: tuple[Mode, ...] = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "prompt-mean",
)


@card(family="aggregation", certainty="certain")
def row_weights(
    mask: Tensor,
    mode: Mode,
    *,
    group: Tensor | None = None,
    l_max: float | None = None,
    n_tokens: Tensor | float | None = None,
    n_sequences: Tensor | float | None = None,
    n_groups: Tensor | float | None = None,
) -> Tensor:
    """Weight of each row's tokens in the loss, so that any aggregation is one weighted sum.

        token-mean               w_i = 1 / N_tokens                       DAPO
        seq-mean-token-mean      w_i = 1 / (N_sequences |y_i|)            GRPO, GSPO
        seq-mean-token-sum       w_i = 1 / N_sequences
        seq-mean-token-sum-norm  w_i = 1 / (N_sequences L_max)            Dr.GRPO
        prompt-mean              w_i = 1 / (N_groups sum_{j in g(i)} |y_j|)   ScaleRL

    |y_i| counts true mask entries; N_sequences and N_groups count rows and groups with at least one.

    Args:    mask: bool [B, T], or the lengths |y_i|, integers [B] (all that is needed of it). group: int [B], for
             prompt-mean; groups must be whole. l_max: tokens, for seq-mean-token-sum-norm: the generation budget.
             n_tokens, n_sequences, n_groups: global denominators, where this is a part of the batch.
    Returns: float64 [B]; 0 for rows without a token. No gradient.
    Raises:  ConfigError: unknown mode. ValueError: the mode lacks ``group`` or ``l_max``.
    Source:  verl agg_loss (the first four); ScaleRL (arXiv:2510.13786) (prompt-mean).
    Differs: verl's seq-mean-token-sum-norm sums over rows and divides by the padded width by default; here rows are
             averaged and L_max is explicit, because padding is not part of the problem.
    """
    lengths = mask.sum(1, dtype=torch.int32) if mask.dim() == 2 else mask
    y = lengths.to(torch.float64)
    one = (lengths > 0).to(y.dtype)
    sequences = one.sum().clamp(min=1) if n_sequences is None else n_sequences
    if mode == "token-mean":
        return one / (y.sum().clamp(min=1) if n_tokens is None else n_tokens)
    if mode == "seq-mean-token-mean":
        return one / (y.clamp(min=1) * sequences)
    if mode == "seq-mean-token-sum":
        return one / sequences
    if mode == "seq-mean-token-sum-norm":
        if l_max is None or l_max <= 0:
            raise ValueError(f"seq-mean-token-sum-norm: got l_max={l_max}, expected the generation budget in tokens")
        return one / (sequences * l_max)
    if mode == "prompt-mean":
        if group is None:
            raise ValueError("prompt-mean: got no group, expected group ids [B]")
        index = group_index(group)
        tokens = group_sum(y, index)
        # A group's rows with tokens share one unit among them, so the sum of shares counts the groups.
        groups = (one / group_sum(one, index).clamp(min=1)).sum().clamp(min=1) if n_groups is None else n_groups
        return one / (tokens.clamp(min=1) * groups)
    raise ConfigError(nearest(mode, MODES, what="aggregation mode"))


@card(family="aggregation", certainty="certain", parts=("row_weights",))
def aggregate(loss: Tensor, mask: Tensor | None, weights: Tensor) -> Tensor:
    """The weighted sum of per-token losses, a scalar.

        L = sum_i w_i sum_t m_it l_it

    Args:    loss: float [B, T]. mask: bool [B, T]; a token dropped from it (a rejection) still counts in the weights'
             denominators unless the weights were computed from the smaller mask. None: ``loss`` is 0 under its mask
             already, as all losses of this package are (this saves a pass). weights: float [B], `row_weights`.
    Returns: float32 or float64 scalar with the graph of ``loss``; a differentiable 0 when all is masked.
    Edge:    NaN under the mask is not read (but its own backward may be NaN: silence inputs, not outputs).
    Source:  verl agg_loss.
    """
    if mask is not None:
        check_mask(mask, loss=loss)
        loss = silence(loss, mask)
    rows = upcast(loss).sum(1)
    return (rows * weights.to(rows.dtype)).sum()
