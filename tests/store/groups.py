"""Groups to record, with something in every field."""

import numpy as np

from toolgym.types import (
    EpisodeEnd,
    Failed,
    Group,
    Message,
    Outcome,
    Scored,
    Segment,
    StopReason,
    Task,
    ToolCall,
    Trajectory,
    Turn,
)


def make_segment(length: int, *, seed: int, version: int) -> Segment:
    """A segment with random arrays and two extras, one of two dimensions."""
    rng = np.random.default_rng(seed)
    return Segment(
        tokens=rng.integers(0, 1000, length, dtype=np.int32),
        loss_mask=rng.random(length) < 0.5,
        sampler_logprobs=-rng.random(length, dtype=np.float32),
        versions=np.full(length, version, np.int32),
        lineage=2,
        agent="solver",
        parent=None if seed % 2 else 0,
        extras={
            "teacher_top_k": rng.integers(0, 9, (length, 3), dtype=np.int64),
            "teacher_logprobs": rng.random((length, 3)).astype(np.float16),
        },
    )


def make_trajectory(group: str, index: int, *, length: int = 12, version: int = 3) -> Trajectory:
    """An episode: even ones have a score, odd ones failed."""
    messages = (
        Message(role="user", content="What is 2 + 2? é \ud800"),
        Message(
            role="assistant",
            reasoning="hm",
            tool_calls=(
                ToolCall(name="python", arguments={"code": "print(2+2)", "n": [1, None]}, id="c1"),
                ToolCall(error="not valid JSON", raw="{python("),
            ),
        ),
        Message(role="tool", content="4", tool_call_id="c1", name="python"),
    )
    outcome: Outcome = Failed(kind="sandbox", detail="gone") if index % 2 else Scored(value=0.5, parts={"answer": 1.0})
    return Trajectory(
        id=f"{group}.{index}",
        task_id="train-3",
        env_id="toolgym/python-v0",
        group_id=group,
        index=index,
        attempt=1,
        segments=tuple(make_segment(length, seed=index + k, version=version) for k in range(2)),
        turns=(Turn(segment=1, start=2, end=7, stop=StopReason.LENGTH, reward=0.25, tool_calls=2, parse_failures=1),),
        messages=messages,
        outcome=outcome,
        end=EpisodeEnd.MAX_TURNS,
        duration_s=1.5,
    )


def make_group(name: str = "g0", *, size: int = 3, length: int = 12, version: int = 3) -> Group:
    """A group of one task."""
    task = Task(
        id="train-3",
        env_id="toolgym/python-v0",
        split="train",
        seed=3,
        content_hash="9f",
        data={"question": "…", "answer": "4", "n": [1, 2.5, None]},
    )
    trajectories = tuple(make_trajectory(name, i, length=length, version=version) for i in range(size))
    return Group(id=name, task=task, trajectories=trajectories, lineage=2)
