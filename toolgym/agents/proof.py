"""The proof, made when a chat format is loaded, that its increments are what its template yields."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from toolgym.agents.encoding import ControlEncoder
from toolgym.agents.rendering import TURN_MARK, Renderer, Tools
from toolgym.errors import ConfigError
from toolgym.types import JSON, Message, ToolCall

_WORDS = (
    "the",
    "sum",
    "is",
    "42",
    "3.5",
    "naïve",
    "漢字",
    "x = 1\n    y",
    "{}",
    '"a"',
    "  two",
    "tail\n",
    "a,b;",
    "<b>",
)
_REPLY_MARK = "zqreply"
_TOOL: dict[str, JSON] = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "what to look up"}},
            "required": ["word"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation with an assistant turn in its middle that holds `TURN_MARK`."""

    tools: Tools
    before: tuple[Message, ...]
    turn: Message
    after: tuple[Message, ...]


def prove_increments(
    renderer: Renderer, encoder: ControlEncoder, increment: Callable[[Sequence[Message]], list[int]]
) -> frozenset[str]:
    """Check that what ``increment`` gives follows an assistant turn whatever came before it.

    For conversations of all kinds, the stock tokens of the whole conversation must be: something that ends with the
    turn, its end-of-turn token, the increment. Conversations that the template itself refuses are left out.

    Returns: the roles that may follow an assistant turn: at least "user".
    Raises: ConfigError: an increment differs, or not even a user may follow an assistant turn.
    """
    kept: set[tuple[str, ...]] = set()
    dropped: set[tuple[str, ...]] = set()
    for conversation in generate_conversations(random.Random(0)):
        whole = [*conversation.before, conversation.turn, *conversation.after]
        try:
            rendered = renderer.run(whole, conversation.tools)
        except ConfigError:
            continue
        followers = tuple(message.role for message in conversation.after)
        if TURN_MARK not in rendered:
            if conversation.turn.tool_calls:
                continue  # a template that knows no tool calls
            raise ConfigError("the chat template changes or drops the text of an assistant turn")
        if rendered.rpartition(TURN_MARK)[2].count(_REPLY_MARK) != len(conversation.after):
            dropped.add(followers)
            continue
        _check(rendered, conversation, renderer.end_of_turn, encoder, increment(conversation.after))
        kept.add(followers)
    if both := kept & dropped:
        raise ConfigError(f"the chat template drops the text of {' and '.join(min(both))} messages, but not always")
    if ("user",) not in kept:
        raise ConfigError("the chat template has no place for a user's message after an assistant turn")
    return frozenset(role for followers in kept for role in followers)


def generate_conversations(rng: random.Random) -> Iterator[Conversation]:
    """Conversations with and without tools and system text, of several rounds, with turns of every kind."""
    user, system, tool = (lambda role=role: _message(role, rng) for role in ("user", "system", "tool"))
    call = ToolCall(name="lookup", arguments={"word": _text(rng)})
    marked = ToolCall(name="lookup", arguments={"word": TURN_MARK})
    earlier = Message(role="assistant", content=_text(rng).strip(), tool_calls=(call,))
    befores = (
        (user(),),
        (system(), user()),
        (user(), Message(role="assistant", content="Yes.", reasoning="Why not?"), user()),
        (system(), user(), earlier, tool()),
    )
    turns = (
        Message(role="assistant", content=TURN_MARK),
        Message(role="assistant", content=f"{_text(rng)} {TURN_MARK}", reasoning="Let me think."),
        Message(role="assistant", tool_calls=(marked,)),
        Message(role="assistant", content="I look it up.", tool_calls=(call, marked)),
    )
    afters = ((user(),), (tool(),), (tool(), tool()), (tool(), user()), (system(),))
    for tools in ((), (_TOOL,)):
        for before in befores:
            for turn in turns:
                for after in afters:
                    yield Conversation(tools=tools, before=before, turn=turn, after=after)


def _check(
    rendered: str,
    conversation: Conversation,
    end_of_turn: str,
    encoder: ControlEncoder,
    increment: list[int],
) -> None:
    stock = encoder.encode_stock(rendered)
    expected = [encoder.control[end_of_turn], *increment]
    text = rendered.rpartition(TURN_MARK)[2].partition(end_of_turn)[2]
    if stock[-len(expected) :] == expected and encoder.encode_stock(text) == increment:
        return
    followers = " and ".join(message.role for message in conversation.after)
    raise ConfigError(
        f"the chat template cannot be extended turn by turn: a {followers} message after an assistant turn is rendered "
        f"as {text[:200]!r} there, but as {encoder.decode(increment)[:200]!r} in another conversation"
    )


def _message(role: str, rng: random.Random) -> Message:
    text = f"{_text(rng)} {_REPLY_MARK} {_text(rng)}"
    if role == "tool":
        return Message(role="tool", content=text, name="lookup", tool_call_id="call00001")
    return Message(role="user" if role == "user" else "system", content=text)


def _text(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 6)))
