"""Rewards without labels: agreement with the majority of one's own samples (TTRL, MM-UPT)."""

import torch
from torch import Tensor

from toolgym.algorithms.masking import group_extreme, group_index, group_sum
from toolgym.algorithms.registry import card

NO_ANSWER = -1


@card(family="reward", certainty="certain")
def vote_rewards(answers: Tensor, group: Tensor, *, voters: Tensor | None = None) -> Tensor:
    """Reward 1 for the answer that most samples of the group gave, else 0.

        label_g = argmax_a sum_{i in g} 1[a_i = a]   (ties: the first seen);   r_i = 1[a_i = label_g]

    Args:    answers: int [B], one id per distinct normalised answer; -1 for none, which neither votes nor is rewarded.
             group: int [B]. voters: bool [B], the samples that vote (TTRL: 64 vote, 32 train); all by default.
    Returns: float32 [B].
    Edge:    a group without an answer -> 0. Unanimous -> all 1, so no advantage.
    Source:  TTRL (arXiv:2504.16084); MM-UPT, waltonfuture/MM-UPT.
    Differs: in the reference code "no answer" can win the vote; here it cannot.
    """
    index = group_index(group)
    label = _labels(answers, index, voters)
    return ((answers == label) & (answers != NO_ANSWER)).to(torch.float32)


def _labels(answers: Tensor, index: Tensor, voters: Tensor | None) -> Tensor:
    """The winning answer of each row's group [B]; -1 where nobody voted."""
    rows = torch.arange(answers.shape[0], device=answers.device)
    valid = (answers != NO_ANSWER) if voters is None else (answers != NO_ANSWER) & voters
    ballot = group_index(index * answers.shape[0] + group_index(answers))
    votes = group_sum(valid.to(torch.int64), ballot)
    votes = torch.where(valid, votes, 0)
    leading = valid & (votes == group_extreme(votes, index, largest=True))
    first = group_extreme(torch.where(leading, rows, answers.shape[0]), index, largest=False)
    return torch.where(first < answers.shape[0], answers[first.clamp(max=answers.shape[0] - 1)], NO_ANSWER)


@card(family="reward", certainty="certain", parts=("vote_rewards",))
def vote_metrics(answers: Tensor, gold: Tensor, group: Tensor) -> dict[str, Tensor]:
    """How far the vote can be trusted, where the true answers are known: collapse is a ratio near 1 without accuracy.

        majority_ratio  = mean share of a group's answers that won
        label_accuracy  = mean over groups of 1[label_g = gold_g]
        reward_accuracy = mean over rows of 1[1[a_i = label] = 1[a_i = gold]]

    reward_accuracy can be high with wrong labels: answers that are wrong in other ways get the right reward 0.

    Args:    answers, gold: int [B] ids of the same kind; gold is equal within a group. group: int [B].
    Returns: three scalars, float32.
    Source:  TTRL (arXiv:2504.16084) metrics.
    """
    index = group_index(group)
    label = _labels(answers, index, None)
    valid = answers != NO_ANSWER
    pseudo, true = (answers == label) & valid, (answers == gold) & valid
    size = group_sum(torch.ones_like(index), index).to(torch.float32)
    groups = (1 / size).sum()
    won = group_sum(pseudo.to(torch.float32), index) / size
    return {
        "majority_ratio": (won / size).sum() / groups,
        "label_accuracy": ((label == gold).to(torch.float32) / size).sum() / groups,
        "reward_accuracy": (pseudo == true).to(torch.float32).mean(),
    }
