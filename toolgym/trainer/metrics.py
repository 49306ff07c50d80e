"""The numbers of a batch of groups: success, tools, parsing, failures, staleness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolgym.trainer.staleness import Staleness
from toolgym.types import Failed, Group, StopReason


def rollout_metrics(groups: Sequence[Group], staleness: Staleness) -> dict[str, float]:
    """Means over the scored episodes of the groups; failures are counted apart, never averaged in."""
    episodes = [t for g in groups for t in g.trajectories]
    scored = [t for t in episodes if not isinstance(t.outcome, Failed)]
    turns = [turn for t in scored for turn in t.turns]
    calls, unread = sum(t.tool_calls for t in turns), sum(t.parse_failures for t in turns)
    ages = [staleness.of(g.min_version) for g in groups if g.min_version >= 0]
    varied = [len({t.score for t in g.trajectories if not isinstance(t.outcome, Failed)}) > 1 for g in groups]
    n = max(1, len(scored))
    return {
        "success": sum(t.score >= 1.0 for t in scored) / n,
        "reward": float(np.mean([t.score for t in scored])) if scored else 0.0,
        "tool_calls_per_episode": calls / n,
        "parse_failure_rate": unread / max(1, calls + unread),
        "turns_per_episode": len(turns) / n,
        "tokens_per_episode": sum(int(s.loss_mask.sum()) for t in scored for s in t.segments) / n,
        "cut_turns": sum(t.stop is StopReason.LENGTH for t in turns) / max(1, len(turns)),
        "episodes": float(len(scored)),
        "failed_episodes": float(len(episodes) - len(scored)),
        "informative_groups": float(np.mean(varied)) if varied else 0.0,
        "staleness_max": float(max(ages, default=0)),
        "staleness_mean": float(np.mean(ages)) if ages else 0.0,
    }
