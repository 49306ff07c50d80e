"""Several reward components in one number: weighted, gated, lexicographic, normalised; CRPO's clinical reward."""

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.advantages import group_advantage
from toolgym.algorithms.masking import group_index, group_sum, upcast
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest

Combination: TypeAlias = Literal["sum", "group-normalised", "lexicographic"]
COMBINATIONS: tuple[Combination, ...] = ("sum", "group-normalised", "lexicographic")


@card(family="reward", certainty="derived", parts=("group_advantage",))
def combine_rewards(
    components: Tensor,
    *,
    weights: Sequence[float] | None = None,
    mode: Combination = "sum",
    group: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """One reward from several components.

        sum:              r_i = sum_c w_c x_ic
        group-normalised: r_i = sum_c w_c (x_ic - mean_g) / std_g       # no component dominates by its variance
        lexicographic:    r_i = share of the group's other rows that are behind in the first component that differs
        gate:             r_i <- 0 where the gate is false (a format check)

    Args:    components: float [B, C], in order of importance for lexicographic. weights: C numbers, None is 1 each; not
             for lexicographic. group: int [B], for the two modes over groups. gate: bool [B].
    Returns: float32 or float64 [B], detached; lexicographic in [0, 1].
    Raises:  ConfigError: unknown mode, missing group, weights that do not fit.
    Edge:    a component that is constant over a group adds 0 when normalised; gate is applied last.
    Source:  derived.
    """
    if mode not in COMBINATIONS:
        raise ConfigError(nearest(mode, COMBINATIONS, what="reward combination"))
    x = upcast(components.detach())
    if weights is not None and (len(weights) != x.shape[1] or mode == "lexicographic"):
        raise ConfigError(f"got {len(weights)} weights for {x.shape[1]} components in mode {mode!r}")
    w = x.new_ones(x.shape[1]) if weights is None else x.new_tensor(list(weights))
    if mode == "sum":
        combined = x @ w
    elif group is None:
        raise ConfigError(f"mode {mode!r} needs the group of each row")
    elif mode == "group-normalised":
        columns = [group_advantage(x[:, c], group) for c in range(x.shape[1])]
        combined = torch.stack(columns, 1) @ w
    else:
        combined = _lexicographic(x, group)
    return combined if gate is None else torch.where(gate, combined, 0.0)


def _lexicographic(x: Tensor, group: Tensor) -> Tensor:
    ahead = x.unsqueeze(1) - x.unsqueeze(0)  # [i, j, c]
    # The first component that differs decides: multiply by "all before are equal".
    equal_so_far = torch.cat([torch.ones_like(ahead[..., :1]), (ahead == 0).to(x.dtype).cumprod(-1)[..., :-1]], -1)
    wins = ((ahead * equal_so_far).sum(-1) > 0) & (group.unsqueeze(0) == group.unsqueeze(1))
    index = group_index(group)
    others = group_sum(torch.ones_like(x[:, 0]), index) - 1
    return wins.sum(1).to(x.dtype) / others.clamp(min=1)


@card(family="reward", certainty="secondary")
def crpo_reward(accuracy: Tensor, faithfulness: Tensor, comprehensiveness: Tensor, *, k: float = 10.0) -> Tensor:
    """CRPO's clinical reward: a right answer outweighs everything else.

        R = k accuracy + faithfulness + comprehensiveness

    Args:    accuracy: float [B], 0 or 1. faithfulness, comprehensiveness: float [B] in [0, 1] (`faithfulness_score`,
             `comprehensiveness_score`). k > 2: then no wrong answer beats a right one.
    Returns: float32 or float64 [B], detached, at most k + 2.
    Raises:  ConfigError: k <= 2.
    Source:  Clinical CRPO (abstract; weights from notes).
    """
    if k <= 2:
        raise ConfigError(f"crpo_reward got k={k}, expected above 2, so that no wrong answer beats a right one")
    return k * upcast(accuracy.detach()) + faithfulness.detach() + comprehensiveness.detach()


REQUIRED_TAGS = ("think", "dx", "conclusion")


def faithfulness_score(text: str, answer: str, *, tags: Sequence[str] = REQUIRED_TAGS, strict: bool = True) -> float:
    """Whether a response is well formed and concludes what it answers, in equal shares of 1.

    One share for each tag pair that is present and in order, one for the last tag's text naming ``answer`` as a whole
    word (case-insensitive). ``strict``: 0 as soon as a tag is missing or out of order. Example:
    ``<think>…</think><dx>…</dx> <conclusion>B</conclusion>`` with answer "B" is 1.

    Source:  Clinical CRPO's idea; the shares are derived.
    """
    position, present, last = 0, 0, ""
    for tag in tags:
        found = re.compile(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", re.S).search(text, position)
        last = ""
        if found:
            present, position, last = present + 1, found.end(), found.group(1)
    if strict and present < len(tags):
        return 0.0
    named = re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", last, re.I) if answer.strip() else None
    return (present + (named is not None)) / (len(tags) + 1)


VERDICTS = (
    *("rule out", "ruled out", "rules out", "exclude", "unlikely", "less likely", "against", "not consistent"),
    *(
        "most likely",
        "supports",
        "consistent with",
        "suggests",
        "favours",
        "favors",
        "confirms",
        "correct",
        "incorrect",
    ),
)


def comprehensiveness_score(reasoning: str, options: Sequence[str], *, verdicts: Sequence[str] = VERDICTS) -> float:
    """Share of the answer options that the reasoning mentions and rules in or out.

    An option counts once, if some sentence names it as a whole word and holds one of the ``verdicts`` (an empty
    sequence: if it is mentioned at all); case-insensitive. 0 without options.

    Source:  Clinical CRPO's idea; the definition is derived.
    """
    sentences = [s.lower() for s in re.split(r"(?<=[.!?])\s+|\n+", reasoning)]
    judged = [s for s in sentences if not verdicts or any(v in s for v in verdicts)]

    def covered(option: str) -> bool:
        name = re.compile(rf"(?<!\w){re.escape(option.strip().lower())}(?!\w)")
        return bool(option.strip()) and any(name.search(s) for s in judged)

    return sum(map(covered, options)) / len(options) if options else 0.0
