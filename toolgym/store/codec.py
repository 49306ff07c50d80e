"""Groups, trajectories and their parts as JSON values and bytes, and back, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from toolgym.types import (
    JSON,
    Failed,
    Message,
    Outcome,
    Scored,
    Segment,
    StopReason,
    Task,
    ToolCall,
    Turn,
)

ARRAYS = ("tokens", "loss_mask", "sampler_logprobs", "versions")


def pack_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Named arrays as bytes: dtype, shape and raw little-endian values of each."""
    entries: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, array in arrays.items():
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        entries[name] = (little.dtype.str, array.shape, little.tobytes())
    packed = msgpack.packb(entries)
    assert isinstance(packed, bytes)
    return packed


def unpack_arrays(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """What `pack_arrays` packed; the arrays are writable copies."""
    entries: dict[str, tuple[str, list[int], bytes]] = msgpack.unpackb(data)
    return {
        name: np.frombuffer(raw, dtype=np.dtype(dtype)).reshape(shape).copy()
        for name, (dtype, shape, raw) in entries.items()
    }


def message_to_json(message: Message) -> dict[str, JSON]:
    """A message without its empty fields, e.g. ``{"role": "user", "content": "What is 2 + 2?"}``."""
    result: dict[str, JSON] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        result["reasoning"] = message.reasoning
    if message.tool_calls:
        result["tool_calls"] = [_call_to_json(c) for c in message.tool_calls]
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        result["name"] = message.name
    return result


def message_from_json(data: Mapping[str, JSON]) -> Message:
    """The inverse of `message_to_json`."""
    calls = tuple(ToolCall(**c) for c in data.get("tool_calls", ()))
    return Message(**{**data, "tool_calls": calls})


def _call_to_json(call: ToolCall) -> dict[str, JSON]:
    named: dict[str, JSON] = {"name": call.name, "arguments": call.arguments} if call.error is None else {}
    rest = {"id": call.id, "error": call.error, "raw": call.raw}
    return named | {k: v for k, v in rest.items() if v}


def task_to_json(task: Task) -> dict[str, JSON]:
    """All fields of a task."""
    return {
        "id": task.id,
        "env_id": task.env_id,
        "split": task.split,
        "seed": task.seed,
        "content_hash": task.content_hash,
        "data": task.data,
    }


def task_from_json(data: Mapping[str, JSON]) -> Task:
    """The inverse of `task_to_json`."""
    return Task(**data)


def outcome_to_json(outcome: Outcome) -> dict[str, JSON]:
    """``{"value": 1.0, "parts": {…}}`` or ``{"kind": "sandbox", "detail": "…"}``."""
    if isinstance(outcome, Failed):
        return {"kind": outcome.kind, "detail": outcome.detail}
    return {"value": outcome.value, "parts": outcome.parts}


def outcome_from_json(data: Mapping[str, JSON]) -> Outcome:
    """The inverse of `outcome_to_json`."""
    return Failed(**data) if "kind" in data else Scored(**data)


def turn_to_json(turn: Turn) -> list[JSON]:
    """A turn as a row: segment, start, end, stop, reward, tool calls, parse failures."""
    return [turn.segment, turn.start, turn.end, turn.stop, turn.reward, turn.tool_calls, turn.parse_failures]


def turn_from_json(row: list[JSON]) -> Turn:
    """The inverse of `turn_to_json`."""
    segment, start, end, stop, reward, calls, failures = row
    return Turn(
        segment=segment,
        start=start,
        end=end,
        stop=StopReason(stop),
        reward=reward,
        tool_calls=calls,
        parse_failures=failures,
    )


def segment_to_row(segment: Segment) -> tuple[dict[str, JSON], bytes]:
    """A segment's plain fields, and its arrays (extras under ``extra.<name>``)."""
    record = {
        "policy": segment.policy,
        "lineage": segment.lineage,
        "agent": segment.agent,
        "parent": segment.parent,
    }
    arrays = {name: getattr(segment, name) for name in ARRAYS}
    arrays |= {f"extra.{name}": array for name, array in segment.extras.items()}
    return record, pack_arrays(arrays)


def segment_from_row(record: Mapping[str, JSON], data: bytes) -> Segment:
    """The inverse of `segment_to_row`."""
    arrays = unpack_arrays(data)
    own = {name: arrays.pop(name) for name in ARRAYS}
    return Segment(**own, extras={k.removeprefix("extra."): v for k, v in arrays.items()}, **record)
