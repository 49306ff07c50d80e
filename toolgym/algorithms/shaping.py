"""Rewards made of rewards: length penalties, anchored multi-turn scores, the score of one attempt at a program."""

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, silence, upcast
from toolgym.algorithms.registry import card


@card(family="reward", certainty="certain")
def overlong_penalty(lengths: Tensor, *, l_max: int = 20480, l_cache: int = 4096) -> Tensor:
    """DAPO's soft overlong punishment, to be added to the reward.

        0                              |y| <= L_max - L_cache
        (L_max - L_cache - |y|)/L_cache    up to L_max
        -1                             beyond

    Args:    lengths: integers [B], tokens. 0 < l_cache <= l_max.
    Returns: float32 or float64 [B] in [-1, 0].
    Source:  DAPO (arXiv:2503.14476), soft overlong punishment.
    Differs: verl's version falls below -1 beyond L_max; the paper's floor is kept.
    """
    if not 0 < l_cache <= l_max:
        raise ValueError(f"got l_max={l_max}, l_cache={l_cache}, expected 0 < l_cache <= l_max")
    return ((l_max - l_cache - upcast(lengths)) / l_cache).clamp(-1.0, 0.0)


@card(family="reward", certainty="certain")
def drop_truncated(mask: Tensor, truncated: Tensor) -> Tensor:
    """Overlong filtering: rows cut by length keep their place in the statistics and lose their loss.

        m'_it = m_it and not truncated_i

    Args:    mask: bool [B, T]. truncated: bool [B].
    Returns: bool [B, T].
    Source:  DAPO (arXiv:2503.14476), overlong filtering; TRL mask_truncated_completions.
    """
    check_mask(mask)
    return mask & ~truncated.unsqueeze(1)


@card(family="reward", certainty="secondary")
def prime_echo(
    scores: Tensor,
    turns: Tensor,
    *,
    anchor: float = 0.75,
    success: float = 1.0,
    bonuses: tuple[float, float] = (0.15, 0.08),
) -> Tensor:
    """PrimeEcho: the first turn's score, plus what later turns with feedback show to be within reach.

        R = anchor s_1 + (1 - anchor) max_k s_k + b,   b = bonuses[0] if turn 1 succeeds, bonuses[1] if turn 2, else 0

    Train the first turn's tokens only (`first_turn`): later turns inform the reward.

    Args:    scores: float [B, K], per turn. turns: bool [B, K], the turns that took place; the first always did.
             success: a score of at least this is a success.
    Returns: float32 or float64 [B].
    Source:  MusaCoder (arXiv:2606.04847), as quoted in notes of the paper.
    Differs: the bonuses are illustrative: the paper's are not published.
    """
    s = silence(scores.detach(), turns)
    best = torch.where(turns, s, -torch.inf).amax(1)
    solved = turns & (s >= success)
    bonus = bonuses[0] * solved[:, 0].to(s.dtype)
    if s.shape[1] > 1:
        bonus = bonus + bonuses[1] * (~solved[:, 0] & solved[:, 1]).to(s.dtype)
    return anchor * s[:, 0] + (1 - anchor) * best + bonus


@card(family="reward", certainty="secondary")
def first_turn(mask: Tensor, turn: Tensor) -> Tensor:
    """The loss mask of PrimeEcho: tokens of the first turn.

        m'_it = m_it and turn_it = 0

    Args:    mask: bool [B, T]. turn: int [B, T], counted from 0.
    Returns: bool [B, T].
    Source:  MusaCoder (arXiv:2606.04847), as quoted in notes of the paper.
    """
    check_mask(mask, turn=turn)
    return mask & (turn == 0)


@card(family="reward", certainty="secondary")
def attempt_reward(passed: Tensor, speedup: Tensor, *, weight: float = 0.5, max_gain: float = 2.0) -> Tensor:
    """The score of one attempt at a fast program.

        -1                                        q = 0 (nothing passes, does not compile, uses forbidden calls)
        -0.5 + 0.5 q                              0 < q < 1
        1 + weight min(max(nu - 1, 0), max_gain)  q = 1

    Args:    passed: float [B], the share q of tests passed, in [0, 1]. speedup: float [B], nu, against the reference;
             read where q = 1 only.
    Returns: float32 or float64 [B].
    Source:  MusaCoder (arXiv:2606.04847), as quoted in notes of the paper.
    Differs: weight and max_gain are ours: the paper's are not published.
    """
    q = upcast(passed.detach())
    gain = torch.where(q >= 1, upcast(speedup.detach()) - 1, 0.0).clamp(0.0, max_gain)
    return torch.where(q <= 0, -1.0, torch.where(q < 1, -0.5 + 0.5 * q, 1 + weight * gain))
