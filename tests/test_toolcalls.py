"""The canonical text form: what is written reads back, and nothing that looks like a call is ever lost."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolgym.toolcalls import (
    CLOSE,
    OPEN,
    UNCLOSED,
    UNOPENED,
    format_assistant,
    format_tool_calls,
    parse_assistant,
)
from toolgym.types import Message, ToolCall

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [OPEN, CLOSE, "<think>", "</think>", '"', "\\", "\n", "<|im_end|>", "{"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
names = text.filter(lambda name: bool(name.strip()))
calls = st.builds(ToolCall, name=names, arguments=st.dictionaries(text, json_values, max_size=3))
plain = text.filter(lambda s: "tool_call>" not in s and "think>" not in s).map(str.strip)
messages = st.builds(
    Message,
    role=st.just("assistant"),
    content=plain,
    reasoning=st.none() | plain,
    tool_calls=st.lists(calls, max_size=3).map(tuple),
)


@given(messages)
def test_round_trip_of_any_message(message: Message) -> None:
    assert parse_assistant(format_assistant(message)) == message


pieces = st.lists(
    st.sampled_from([OPEN, CLOSE, '{"name": "f", "arguments": {"a": 1}}', "{", "}", '"', "x", "\n", " "]), max_size=12
).map("".join)


@given(pieces)
def test_parse_finds_a_call_wherever_there_is_a_tag(written: str) -> None:
    assert bool(parse_assistant(written).tool_calls) == (OPEN in written or CLOSE in written)


@given(pieces)
def test_parse_gives_the_same_calls_after_format(written: str) -> None:
    def essence(calls: tuple[ToolCall, ...]) -> list[Any]:
        return [(call.name, call.arguments, call.raw) for call in calls]

    once = parse_assistant(written).tool_calls
    assert essence(parse_assistant(format_tool_calls(once)).tool_calls) == essence(once)


def test_format_is_the_hermes_form() -> None:
    message = Message(role="assistant", content="Let me see.", tool_calls=(ToolCall(name="f", arguments={"a": "é"}),))
    assert format_assistant(message) == 'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'


MALFORMED: Mapping[str, tuple[str, str, str]] = {
    "unclosed": ('<tool_call>\n{"name": "f", "arguments": {}}', UNCLOSED, '{"name": "f", "arguments": {}}'),
    "unclosed before another": ('<tool_call>{"a<tool_call>\n{"name"', UNCLOSED, '{"a'),
    "unopened": ("oh</tool_call>", UNOPENED, ""),
    "empty": ("<tool_call></tool_call>", "not valid JSON: Expecting value at character 0", ""),
    "bad JSON": ("<tool_call>\n{python(\n</tool_call>", "not valid JSON: Expecting property name", "{python("),
    "not an object": (
        "<tool_call>[1]</tool_call>",
        "expected a JSON object with 'name' and 'arguments', got an array",
        "[1]",
    ),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', "'name' is missing", '{"arguments": {}}'),
    "name not text": ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', "'name' must be a string", ""),
    "blank name": ('<tool_call>{"name": " ", "arguments": {}}</tool_call>', "'name' must be a string", ""),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', "'arguments' must be a JSON object, it is missing", ""),
    "string arguments": (
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        "'arguments' must be a JSON object, got a string",
        "",
    ),
    "list arguments": (
        '<tool_call>{"name": "f", "arguments": []}</tool_call>',
        "'arguments' must be a JSON object, got an array",
        "",
    ),
    "text after": ('<tool_call>{"name": "f", "arguments": {}} x</tool_call>', "text after the JSON object", ""),
    "NaN": (
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        "not valid JSON: NaN is not a JSON value",
        "",
    ),
    "overflow": (
        '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
        "not valid JSON: 1e999 is out of range",
        "",
    ),
    "huge integer": (
        '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>",
        "not valid JSON: ",
        "",
    ),
    "deep": ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not valid JSON: nested too deeply", ""),
    "surrogate": ('<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>', "a string holds half", ""),
    "bare surrogate": ('<tool_call>{"name": "f", "arguments": {"a": "\ud800"}}</tool_call>', "a string holds half", ""),
    "bare newline in a string": (
        '<tool_call>{"name": "f", "arguments": {"a": "\n"}}</tool_call>',
        "not valid JSON: Invalid control",
        "",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_parse_keeps_a_malformed_call(case: str) -> None:
    written, error, raw = MALFORMED[case]
    call = parse_assistant(written).tool_calls[0]
    assert call.name is None
    assert call.error is not None
    assert call.error.startswith(error)
    assert call.raw.startswith(raw)


def test_parse_keeps_order_and_text_around_calls() -> None:
    good = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    message = parse_assistant(f"one {good} two <tool_call>x</tool_call> three {good}")
    assert message.content == "one\ntwo\nthree"
    assert [call.name for call in message.tool_calls] == ["f", None, "f"]


def test_parse_reads_tags_inside_json_strings_as_text() -> None:
    arguments: dict[str, Any] = {"code": "print('</tool_call><tool_call>')"}
    written = f"<tool_call>\n{json.dumps({'name': 'f', 'arguments': arguments})}\n</tool_call>"
    assert parse_assistant(written).tool_calls == (ToolCall(name="f", arguments=arguments),)


def test_parse_splits_reasoning_from_calls() -> None:
    written = '<think>\n<tool_call> or not?\n</think>\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    message = parse_assistant(written)
    assert message.reasoning == "<tool_call> or not?"
    assert [call.name for call in message.tool_calls] == ["f"]


@pytest.mark.parametrize(
    ("written", "thinking", "reasoning", "content"),
    [
        ("<think>cut off", False, "cut off", ""),
        ("was open</think>\n\nhello", True, "was open", "hello"),
        ("still open", True, "still open", ""),
        ("<think>\n\n</think>\n\nhello", False, "", "hello"),
        ("hello <think>x</think>", False, None, "hello <think>x</think>"),
    ],
)
def test_parse_reasoning(written: str, thinking: bool, reasoning: str | None, content: str) -> None:
    message = parse_assistant(written, thinking=thinking)
    assert (message.reasoning, message.content) == (reasoning, content)


def test_format_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        format_tool_calls([ToolCall(name="f", arguments={"a": float("nan")})])
