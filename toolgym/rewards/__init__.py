"""Rewards: what scores an episode's answer.

`evaluate` runs any reward within a deadline and gives a `Scored` or raises `RewardError`. `ExactMatch`,
`NumericMatch` and `F1Match` compare the answer with the task's; `Weighted` adds rewards up; `InProcess` runs one
where it can be killed.
"""

from toolgym.rewards.base import InProcess, Reward, Score, evaluate
from toolgym.rewards.conformance import check_reward
from toolgym.rewards.matching import exact_match, f1_match, numeric_match, parse_number
from toolgym.rewards.verifiers import ExactMatch, F1Match, NumericMatch, Weighted

__all__ = [
    "ExactMatch",
    "F1Match",
    "InProcess",
    "NumericMatch",
    "Reward",
    "Score",
    "Weighted",
    "check_reward",
    "evaluate",
    "exact_match",
    "f1_match",
    "numeric_match",
    "parse_number",
]
