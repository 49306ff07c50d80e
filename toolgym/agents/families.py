"""How a model family writes tool calls: from an assistant turn's text to a `Message` and back.

``hermes`` (Qwen, Hermes and our tiny policy) is the canonical form of `toolgym.toolcalls`. ``llama3`` writes one JSON
object, ``{"name": …, "parameters": {…}}``, in place of the text; several are separated by semicolons.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from toolgym.errors import ConfigError, nearest
from toolgym.toolcalls import (
    CLOSE,
    OPEN,
    format_assistant,
    format_tool_call,
    parse_assistant,
    read_call,
    split_reasoning,
)
from toolgym.types import JSON, Message, ToolCall

PYTHON_TAG = "<|python_tag|>"


class Family(ABC):
    """Reads and writes the assistant turns of a model family. No call that looks like one is ever dropped."""

    name: str
    extra_stops: tuple[str, ...] = ()  # control tokens that end a turn beside the template's own

    @abstractmethod
    def parse(self, text: str, *, thinking: bool = False) -> Message:
        """Read a turn's text (without its end-of-turn token). ``thinking``: the prompt has opened ``<think>``."""

    @abstractmethod
    def format(self, message: Message) -> str:
        """Write a turn as the family would sample it, without end-of-turn token; inverse of `parse`."""

    @abstractmethod
    def describe_tools(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        """Tell the model its tools and how to call them, for templates that do not."""


class Hermes(Family):
    """``<tool_call>`` tags around ``{"name": …, "arguments": {…}}``."""

    name = "hermes"

    def parse(self, text: str, *, thinking: bool = False) -> Message:
        """See `Family.parse`."""
        return parse_assistant(text, thinking=thinking)

    def format(self, message: Message) -> str:
        """See `Family.format`."""
        return format_assistant(message)

    def describe_tools(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        """See `Family.describe_tools`."""
        how = f'{OPEN}\n{{"name": <tool name>, "arguments": <arguments as a JSON object>}}\n{CLOSE}'
        return f"You have these tools:\n{_as_lines(tools)}\n\nTo call one, write:\n{how}"


class Llama3(Family):
    """JSON objects with ``name`` and ``parameters``, perhaps after ``<|python_tag|>``, separated by semicolons."""

    name = "llama3"
    extra_stops = ("<|eom_id|>",)

    def parse(self, text: str, *, thinking: bool = False) -> Message:
        """See `Family.parse`. Calls begin with the tag, or with an object that has, or seems to have, a name."""
        reasoning, text = split_reasoning(text, thinking=thinking)
        body = text.strip()
        tagged = body.startswith(PYTHON_TAG)
        calls = _read_calls(body.removeprefix(PYTHON_TAG)) if tagged or _looks_like_call(body) else []
        content = "" if calls else body
        return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=tuple(calls))

    def format(self, message: Message) -> str:
        """See `Family.format`. Text beside calls cannot be written in this family and is left out."""
        calls = "; ".join(format_tool_call(call, arguments_key="parameters") for call in message.tool_calls)
        body = calls or message.content
        return body if message.reasoning is None else f"<think>\n{message.reasoning}\n</think>\n\n{body}"

    def describe_tools(self, tools: Sequence[Mapping[str, JSON]]) -> str:
        """See `Family.describe_tools`."""
        how = '{"name": <tool name>, "parameters": <arguments as a JSON object>}'
        return f"You have these tools:\n{_as_lines(tools)}\n\nTo call one, answer with this and nothing else:\n{how}"


FAMILIES: dict[str, Family] = {family.name: family for family in (Hermes(), Llama3())}


def choose_family(name: str, template: str) -> Family:
    """The family called ``name``, or for "auto" the one whose markup the chat template shows.

    Raises: ConfigError: unknown name, or a template with markup of a family that has no parser here.
    """
    if name != "auto":
        if name not in FAMILIES:
            raise ConfigError(nearest(name, ["auto", *FAMILIES], what="tool-call family"))
        return FAMILIES[name]
    if "<function=" in template:
        raise ConfigError(
            "the chat template writes tool calls as <function=…>, which no parser here reads; "
            f"name a family that it should be read as: {', '.join(FAMILIES)}"
        )
    if OPEN in template:
        return FAMILIES["hermes"]
    return FAMILIES["llama3" if "<|start_header_id|>" in template else "hermes"]


def _as_lines(tools: Sequence[Mapping[str, JSON]]) -> str:
    return "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)


def _looks_like_call(body: str) -> bool:
    return body.startswith("{") and '"name"' in body


def _read_calls(body: str) -> list[ToolCall]:
    calls: list[ToolCall] = []
    at = 0
    while True:
        call, end = read_call(body, at, arguments_keys=("parameters", "arguments"))
        rest = body[end:].lstrip() if end >= 0 else ""
        if end < 0 or (
            rest and not rest.startswith(";")
        ):  # what follows belongs to no call: the whole rest is one bad call
            error = call.error or "text after the JSON object"
            return [*calls, ToolCall(error=error, raw=body[at:].strip())]
        calls.append(call if call.error is None else ToolCall(error=call.error, raw=body[at:end].strip()))
        if not rest.strip("; \n"):
            return calls
        at = len(body) - len(rest) + 1
