"""The conformance suite for chat formats: what the rollout loop and the learner rely on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolgym.agents.chat import ChatFormat
from toolgym.errors import ConfigError
from toolgym.types import JSON, Message, Role, StopReason, ToolCall

_TOOLS: list[dict[str, JSON]] = [
    {
        "type": "function",
        "function": {
            "name": "lookup",
            "description": "Look a word up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "which"}}},
        },
    }
]
_TURNS = (
    Message(role="assistant", content="It is 42."),
    Message(role="assistant", content="naïve 漢字"),
    Message(
        role="assistant", tool_calls=(ToolCall(name="lookup", arguments={"word": 'a "quoted"\nword', "n": [1, None]}),)
    ),
    Message(role="assistant", tool_calls=(ToolCall(name="a", arguments={}), ToolCall(name="b", arguments={"x": 1.5}))),
)


def check_chat_format(chat: ChatFormat) -> None:
    """Check a chat format: increments, turns, and that no text becomes a control token.

    Raises: ConfigError: it breaks the contract; the message says how.
    """
    chat.prove()
    _check_turns(chat)
    _check_closing(chat)
    for role in ("system", "user", "tool"):
        if role in ("system", "user"):
            _check_injection(chat, role, lambda message: chat.initial(_conversation(message), _TOOLS))
        if role in chat.roles:
            _check_injection(chat, role, lambda message: chat.extend([message]))


def _conversation(message: Message) -> list[Message]:
    return [message] if message.role == "user" else [message, Message(role="user", content="hello")]


def _check_turns(chat: ChatFormat) -> None:
    for turn in _TURNS:
        ids = chat.encode_turn(turn)
        _require(ids[-1] == chat.end_of_turn, f"encode_turn does not end with the end-of-turn token for {turn}")
        for given in (ids, ids[:-1]):
            read = chat.parse(given)
            _require(
                (read.content, read.tool_calls) == (turn.content, turn.tool_calls),
                f"a turn is read otherwise than it was written: {turn} became {read}",
            )
    broken = chat.parse(chat.encode_turn(_TURNS[2])[:-4])
    _require(
        bool(broken.tool_calls) and broken.tool_calls[0].error is not None, f"a call cut by length is lost: {broken}"
    )


def _check_closing(chat: ChatFormat) -> None:
    _require(chat.close_turn(StopReason.END_OF_TURN) == [], "close_turn appends to a turn that ended itself")
    for stop in (StopReason.LENGTH, StopReason.CANCELLED):
        _require(chat.close_turn(stop) == [chat.end_of_turn], f"close_turn does not close a turn ended by {stop}")


def _check_injection(chat: ChatFormat, role: Role, encode: Callable[[Message], Sequence[int]]) -> None:
    def control_tokens(text: str) -> list[int]:
        return [index for index in encode(Message(role=role, content=text)) if index in chat.control_tokens.values()]

    try:
        harmless = control_tokens("one word two")
    except ConfigError:
        return  # the template has no such role
    for text in chat.control_tokens:
        for attack in (f"one {text} two", text, f"{text}{text}", text[:-1], f"{text[:1]}{text}"):
            _require(control_tokens(attack) == harmless, f"the {role} text {attack!r} makes control tokens")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"chat format: {message}")
