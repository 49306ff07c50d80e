"""The canonical text form of an assistant message: the Hermes form of tool calls.

    <think>
    reasoning                                  (only when the message has reasoning)
    </think>

    text for the user
    <tool_call>
    {"name": "python", "arguments": {"code": "print(1)"}}
    </tool_call>

It is how an action of an environment is written as text, and what Qwen and Hermes models sample. Reading never drops a
malformed call: whatever looks like a call and cannot be read becomes a `ToolCall` with ``error`` and ``raw``, so that
the model can be told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, cast

from toolgym.types import Message, ToolCall

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
UNCLOSED = f"{OPEN} was not closed with {CLOSE}"
UNOPENED = f"{CLOSE} without {OPEN}"

_TAG = re.compile(f"{OPEN}|{CLOSE}")
_SPACE = re.compile(r"\s*")


def format_tool_call(call: ToolCall, *, arguments_key: str = "arguments") -> str:
    """One call as a JSON object, ``{"name": …, "arguments": {…}}``; an unparsable call is its raw text.

    Raises: ValueError: an argument is not JSON (NaN and infinities are not).
    """
    if call.name is None:
        return call.raw
    return json.dumps({"name": call.name, arguments_key: call.arguments}, ensure_ascii=False, allow_nan=False)


def format_tool_calls(calls: Iterable[ToolCall]) -> str:
    """The calls in the canonical form, one after another. A malformed call comes back as it was written."""
    return "\n".join(_in_tags(call) for call in calls)


def format_assistant(message: Message) -> str:
    """An assistant message in the canonical form (reasoning, text, calls); inverse of `parse_assistant`."""
    body = "\n".join(part for part in (message.content, format_tool_calls(message.tool_calls)) if part)
    if message.reasoning is None:
        return body
    return f"{THINK_OPEN}\n{message.reasoning}\n{THINK_CLOSE}\n\n{body}"


def parse_assistant(text: str, *, thinking: bool = False) -> Message:
    """Read an assistant message in the canonical form. Never raises and never drops a call.

    Args: thinking: the prompt has opened ``<think>`` already, so the text starts inside it.
    Returns: a message whose ``content`` is the text outside the calls, stripped of surrounding white space;
        ``reasoning`` is None when there is no thinking block; unclosed thinking is all reasoning.
    """
    reasoning, text = split_reasoning(text, thinking=thinking)
    if "tool_call>" not in text:
        return Message(role="assistant", content=text.strip(), reasoning=reasoning)
    content, calls = _split_calls(text)
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=tuple(calls))


def split_reasoning(text: str, *, thinking: bool = False) -> tuple[str | None, str]:
    """Split off a leading ``<think>`` block: ``(reasoning or None, the rest)``."""
    if not thinking:
        if not text.lstrip().startswith(THINK_OPEN):
            return None, text
        text = text.lstrip()[len(THINK_OPEN) :]
    reasoning, _, rest = text.partition(THINK_CLOSE)
    return reasoning.strip(), rest


def read_call(text: str, start: int = 0, *, arguments_keys: tuple[str, ...] = ("arguments",)) -> tuple[ToolCall, int]:
    """Read the JSON object of one call that begins at ``text[start]`` (white space is skipped).

    Returns: the call and where its JSON ends. A call that cannot be read has an ``error`` that says why and an empty
        ``raw`` (the caller knows how far the call reaches); where not even JSON was found the end is -1.
    """
    begin = _space_end(text, start)
    try:
        value, end = _DECODER.raw_decode(text, begin)
    except RecursionError:
        return ToolCall(error="not valid JSON: nested too deeply"), -1
    except json.JSONDecodeError as error:
        return ToolCall(error=f"not valid JSON: {error.msg} at character {error.pos - begin}"), -1
    except ValueError as error:  # a constant or number that JSON does not have
        return ToolCall(error=f"not valid JSON: {error}"), -1
    call = _call_of(value, arguments_keys)
    # only an escape, or a lone half in the text itself, can make a string that is not Unicode
    if call.error is None and ("\\u" in text or not text.isascii()) and not _is_unicode(value):
        call = ToolCall(error="a string holds half a surrogate pair, which is not Unicode text")
    return call, end


def _in_tags(call: ToolCall) -> str:
    body = format_tool_call(call)
    if call.error == UNOPENED:
        return CLOSE
    if call.error == UNCLOSED:
        return f"{OPEN}\n{body}"
    return f"{OPEN}\n{body}\n{CLOSE}"


def _split_calls(text: str) -> tuple[str, list[ToolCall]]:
    outside: list[str] = []
    calls: list[ToolCall] = []
    at = 0
    while (tag := _TAG.search(text, at)) is not None:
        outside.append(text[at : tag.start()])
        if tag.group() == CLOSE:
            calls.append(ToolCall(error=UNOPENED))
            at = tag.end()
        else:
            call, at = _read_tagged(text, tag.end())
            calls.append(call)
    outside.append(text[at:])
    return "\n".join(part for part in (piece.strip() for piece in outside) if part), calls


def _read_tagged(text: str, start: int) -> tuple[ToolCall, int]:
    """The call whose opening tag ends at ``start``, and where the text after it begins."""
    call, end = read_call(text, start)
    if end >= 0:  # JSON may hold tags inside its strings: look for the closing tag only behind it
        close = _space_end(text, end)
        if call.error is None and text.startswith(CLOSE, close):
            return call, close + len(CLOSE)
    tag = _TAG.search(text, max(end, start))
    if tag is None or tag.group() == OPEN:
        stop = len(text) if tag is None else tag.start()
        return ToolCall(error=UNCLOSED, raw=text[start:stop].strip()), stop
    error = call.error or "text after the JSON object"
    return ToolCall(error=error, raw=text[start : tag.start()].strip()), tag.end()


def _call_of(value: Any, arguments_keys: tuple[str, ...]) -> ToolCall:
    if not isinstance(value, dict):
        return ToolCall(error=f"expected a JSON object with 'name' and {arguments_keys[0]!r}, got {_kind(value)}")
    call = cast(dict[str, Any], value)
    name = call.get("name")
    if not isinstance(name, str) or not name.strip():
        return ToolCall(error="'name' is missing" if name is None else "'name' must be a string that is not empty")
    arguments = next((call[key] for key in arguments_keys if key in call), None)
    if not isinstance(arguments, dict):
        got = "it is missing" if arguments is None else f"got {_kind(arguments)}"
        return ToolCall(error=f"{arguments_keys[0]!r} must be a JSON object, {got}")
    return ToolCall(name=name, arguments=cast(Mapping[str, Any], arguments))


def _is_unicode(value: Any) -> bool:
    # An escape such as \ud800 is JSON, but no file, database or tokenizer takes the string that it makes.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {str: "a string", list: "an array", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(cast(type[Any], type(value)), "a number")


def _space_end(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is out of range")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
