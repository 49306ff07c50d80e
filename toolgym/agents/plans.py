"""Chat templates compiled for one shape of messages: fixed token ids, and holes where the texts go.

A template is run once on messages whose texts are placeholders. What stands between the placeholders is fixed; what
the template does to a text (nothing, trim, JSON) is found by trying, and a plan that does not reproduce the template
exactly on every probe is not used. Rendering then costs one tokenizer call for each text and no jinja.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from toolgym.agents.encoding import ControlEncoder
from toolgym.agents.rendering import Rendered
from toolgym.errors import ConfigError
from toolgym.types import Message, Role

Shape: TypeAlias = tuple[tuple[Role, bool, bool], ...]  # per message: role, has a name, has a tool call id
Change: TypeAlias = Callable[[str], str]

_HOLE = re.compile(r"zqhole(\d+)end")
_FIELDS = 3  # content, name and tool call id of each message


def _same(text: str) -> str:
    return text


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


_CHANGES: tuple[Change, ...] = (_same, str.strip, str.rstrip, _json, lambda text: _json(text.strip()))
_PROBES = ("  two words", "ends \n", '"quoted" \\n', "é 漢 \t<b>&'", '{"a": [1]}', "\n\n1,000\n", "q7zg0x", "tool")


def shape_of(messages: Sequence[Message]) -> Shape | None:
    """The shape of messages that a plan can render; None when one of them needs the template itself."""
    shape: list[tuple[Role, bool, bool]] = []
    for message in messages:
        # templates often treat an empty text apart, and they take calls and reasoning to pieces
        if message.role == "assistant" or not message.content or message.content.isspace():
            return None
        shape.append((message.role, message.name is not None, message.tool_call_id is not None))
    return tuple(shape)


@dataclass(frozen=True, slots=True)
class _Run:
    """Text between two control tokens: ``literals[0] hole[0] literals[1] hole[1] …``."""

    literals: tuple[str, ...]
    holes: tuple[int, ...]
    changes: tuple[Change, ...]

    def fill(self, values: Sequence[str]) -> str:
        if len(self.holes) == 1:  # by far the most frequent
            return self.literals[0] + self.changes[0](values[self.holes[0]]) + self.literals[1]
        pieces = [self.literals[0]]
        for hole, change, literal in zip(self.holes, self.changes, self.literals[1:], strict=True):
            pieces += (change(values[hole]), literal)
        return "".join(pieces)


class Plan:
    """A compiled template for one shape. Build with `compile_plan`."""

    __slots__ = ("_encode_text", "_parts")

    def __init__(self, parts: Sequence[list[int] | _Run], encoder: ControlEncoder) -> None:
        self._parts = tuple(parts)
        self._encode_text = encoder.encode_text

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of messages of the plan's shape."""
        values: list[str] = []
        for message in messages:
            values += (message.content, message.name or "tool", message.tool_call_id or "")
        ids: list[int] = []
        for part in self._parts:
            ids += self._encode_text(part.fill(values)) if type(part) is _Run else part  # pyright: ignore[reportOperatorIssue]
        return ids


def compile_plan(shape: Shape, render: Callable[[Sequence[Message]], Rendered], encoder: ControlEncoder) -> Plan | None:
    """A plan that gives what ``render`` gives for every message of this shape; None where none is found."""
    try:
        return _compile(shape, render, encoder)
    except ConfigError:  # the template refuses some text: leave it to say so itself
        return None


def _compile(shape: Shape, render: Callable[[Sequence[Message]], Rendered], encoder: ControlEncoder) -> Plan | None:
    holes = [f"zqhole{n}end" for n in range(_FIELDS * len(shape))]
    outline = [
        piece if is_control else _HOLE.split(piece)
        for is_control, piece in encoder.split(render(_messages(shape, holes)).text)
    ]
    used = sorted({int(index) for piece in outline if isinstance(piece, list) for index in piece[1::2]})
    changes: dict[int, Change] = dict.fromkeys(used, _same)
    attacks = list(encoder.control)[:2]
    for hole in used:
        for change in _CHANGES:
            changes[hole] = change
            plan = Plan(_parts(outline, changes, encoder), encoder)
            if all(_agrees(plan, shape, {hole: probe}, render, encoder) for probe in (*_PROBES, *attacks)):
                break
        else:
            return None
    plan = Plan(_parts(outline, changes, encoder), encoder)
    for turn in range(len(_PROBES)):  # all texts at once, so that one text cannot depend on another unnoticed
        texts = {hole: _PROBES[(hole + turn) % len(_PROBES)] for hole in used}
        if not _agrees(plan, shape, texts, render, encoder):
            return None
    return plan


def _parts(
    outline: Sequence[str | list[str]], changes: dict[int, Change], encoder: ControlEncoder
) -> list[list[int] | _Run]:
    parts: list[list[int] | _Run] = [[]]
    for piece in outline:
        fixed: list[int] | None = None
        if isinstance(piece, str):
            fixed = [encoder.control[piece]]
        elif len(piece) == 1:
            fixed = encoder.encode_text(piece[0])
        if fixed is None:
            holes = tuple(int(index) for index in piece[1::2])
            parts += (_Run(tuple(piece[::2]), holes, tuple(changes[hole] for hole in holes)), [])
        else:
            last = parts[-1]
            assert isinstance(last, list)
            last += fixed
    return [part for part in parts if part]


def _agrees(
    plan: Plan,
    shape: Shape,
    texts: dict[int, str],
    render: Callable[[Sequence[Message]], Rendered],
    encoder: ControlEncoder,
) -> bool:
    messages = _messages(shape, [texts.get(n, "word") for n in range(_FIELDS * len(shape))])
    rendered = render(messages)
    return plan.encode(messages) == encoder.encode_rendered(rendered.text, rendered.guard)


def _messages(shape: Shape, texts: Sequence[str]) -> list[Message]:
    return [
        Message(
            role=role,
            content=texts[_FIELDS * n],
            name=texts[_FIELDS * n + 1] if has_name else None,
            tool_call_id=texts[_FIELDS * n + 2] if has_id else None,
        )
        for n, (role, has_name, has_id) in enumerate(shape)
    ]
