"""Tool-call markup of model families: what is written reads back, and a malformed call is never lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolgym.agents.families import FAMILIES, choose_family
from toolgym.types import Message, ToolCall

LLAMA = FAMILIES["llama3"]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["; ", '"}', "<|python_tag|>"])
names = texts.filter(lambda name: bool(name.strip()))
calls = st.builds(ToolCall, name=names, arguments=st.dictionaries(texts, texts | st.integers() | st.none(), max_size=3))


@given(st.lists(calls, min_size=1, max_size=3).map(tuple))
def test_llama3_round_trip_of_calls(made: tuple[ToolCall, ...]) -> None:
    turn = Message(role="assistant", tool_calls=made)
    assert LLAMA.parse(LLAMA.format(turn)) == turn
    assert LLAMA.parse(f"<|python_tag|>{LLAMA.format(turn)}") == turn


@pytest.mark.parametrize(
    "text", ["It is 42.", '{"answer": 42}', "[1]", "", 'A call is {"name": "f", "parameters": {}}', "{x}"]
)
def test_llama3_reads_text_as_text(text: str) -> None:
    assert LLAMA.parse(text) == Message(role="assistant", content=text)


@pytest.mark.parametrize(
    ("text", "error", "raw"),
    [
        ('{"name": "f", "parameters": {"a"', "not valid JSON: ", '{"name": "f", "parameters": {"a"'),
        ('{"name": "f"}', "'parameters' must be a JSON object, it is missing", '{"name": "f"}'),
        ('{"name": "f", "parameters": "{}"}', "'parameters' must be a JSON object, got a string", ""),
        ("<|python_tag|>print(1)", "not valid JSON: Expecting value", "print(1)"),
        ("<|python_tag|>", "not valid JSON: Expecting value", ""),
        (
            '{"name": "f", "parameters": {}} and more',
            "text after the JSON object",
            '{"name": "f", "parameters": {}} and',
        ),
        ('{"name": 1, "parameters": {}}', "'name' must be a string", ""),
    ],
)
def test_llama3_keeps_a_malformed_call(text: str, error: str, raw: str) -> None:
    (call,) = LLAMA.parse(text).tool_calls
    assert call.error is not None
    assert call.error.startswith(error)
    assert call.raw.startswith(raw)


def test_llama3_keeps_the_good_calls_before_a_malformed_one() -> None:
    good = json.dumps({"name": "f", "arguments": {"x": 1}})  # models write the other key too
    found = LLAMA.parse(f"{good}; {{broken").tool_calls
    assert found[0] == ToolCall(name="f", arguments={"x": 1})
    assert found[1].error is not None
    assert found[1].raw == "{broken"
    assert len(found) == 2


def test_llama3_takes_a_trailing_semicolon() -> None:
    assert len(LLAMA.parse('{"name": "f", "parameters": {}};\n').tool_calls) == 1


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("<tool_call>", "hermes"),
        ("<|start_header_id|>", "llama3"),
        ("<|start_header_id|> <tool_call>", "hermes"),
        ("", "hermes"),
    ],
)
def test_auto_goes_by_the_markup(template: str, family: str) -> None:
    assert choose_family("auto", template).name == family


@pytest.mark.parametrize("name", FAMILIES)
def test_tools_are_described_in_the_familys_own_words(name: str) -> None:
    text = FAMILIES[name].describe_tools([{"type": "function", "function": {"name": "search"}}])
    assert '"name": "search"' in text
    assert ("<tool_call>" in text) == (name == "hermes")
