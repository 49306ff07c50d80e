"""Running a chat template on messages whose texts cannot inject control tokens.

Slow and general: each call runs the jinja template (about 0.1 ms). `toolgym.agents.plans` makes it fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from toolgym.agents.encoding import ControlEncoder, new_guard
from toolgym.agents.families import Family
from toolgym.errors import ConfigError
from toolgym.types import JSON, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TURN_MARK = "zqturn"  # an assistant turn's text in conversations that only serve to find what follows the turn
Tools = Sequence[Mapping[str, JSON]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A template's output. ``guard`` is still inside, wherever a text spells a control token."""

    text: str
    guard: str


class Renderer:
    """A chat template with its tokenizer.

    Attributes:
        end_of_turn: the text of the control token with which the template ends an assistant turn.
        renders_tools: whether it lists the tools; where not, they are put into the first message.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str,
        options: Mapping[str, JSON],
        encoder: ControlEncoder,
        family: Family,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._options = dict(options)
        self._encoder = encoder
        self._family = family
        self.end_of_turn: str = self._find_end_of_turn()
        self.renders_tools: bool = self._find_tools()

    def initial(self, messages: Sequence[Message], tools: Tools) -> Rendered:
        """The whole conversation with the prompt for the next assistant turn."""
        if tools and not self.renders_tools:
            text = self._family.describe_tools(tools)
            first = replace(messages[0], content=f"{text}\n\n{messages[0].content}")
            messages, tools = [first, *messages[1:]], ()
        guard = new_guard(_texts([*(_as_dict(m, self._family) for m in messages), *tools]))

        def protect(text: str) -> str:
            return self._encoder.guard(text, guard)

        return Rendered(self.run(messages, tools, protect=protect), guard)

    def increment(self, messages: Sequence[Message]) -> Rendered:
        """What follows an assistant turn's end-of-turn token when these messages come next, with the next prompt."""
        turn = Message(role="assistant", content=TURN_MARK)
        rendered = self.initial([Message(role="user", content="hello"), turn, *messages], ())
        _, _, after = rendered.text.partition(TURN_MARK)
        _, end, rest = after.partition(self.end_of_turn)
        if not end:
            raise ConfigError(f"the chat template drops the assistant turn before {[m.role for m in messages]}")
        return Rendered(rest, rendered.guard)

    def turn(self, message: Message) -> Rendered:
        """An assistant turn as the model family writes it, without end-of-turn token."""
        guard = new_guard(_texts(_as_dict(message, self._family)))
        protected = _map_message(message, lambda text: self._encoder.guard(text, guard))
        return Rendered(self._family.format(protected), guard)

    def encode(self, rendered: Rendered) -> list[int]:
        """The token ids of a rendering."""
        return self._encoder.encode_rendered(rendered.text, rendered.guard)

    def run(
        self,
        messages: Sequence[Message],
        tools: Tools,
        *,
        protect: Callable[[str], str] = lambda text: text,
        prompt: bool = True,
    ) -> str:
        """The template's output, with every text of messages and tools passed through ``protect``.

        Raises: ConfigError: the template refuses these messages.
        """
        conversation = [_map_texts(_as_dict(message, self._family), protect) for message in messages]
        for plain, message in zip(conversation, messages, strict=True):
            plain["role"] = message.role
        try:
            rendered = self._tokenizer.apply_chat_template(
                conversation,
                tools=[_map_texts(tool, protect) for tool in tools] or None,
                chat_template=self._template,
                add_generation_prompt=prompt,
                tokenize=False,
                **self._options,
            )
        except (TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(f"the chat template cannot render a conversation of {roles}: {error}") from error
        assert isinstance(rendered, str)
        return rendered

    def _find_end_of_turn(self) -> str:
        turns = [Message(role="user", content="hello"), Message(role="assistant", content=TURN_MARK)]
        ends = {
            self._first_control_after_mark(self.run([*turns, *more], (), prompt=False))
            for more in ([], [Message(role="user", content="hello")])
        }
        if "" in ends:
            raise ConfigError("the chat template ends an assistant turn without a control token of this tokenizer")
        if len(ends) != 1:
            raise ConfigError(
                f"the chat template ends its last assistant turn otherwise than earlier ones: {sorted(ends)}; "
                "what the policy samples would not be what it sees later"
            )
        return ends.pop()

    def _find_tools(self) -> bool:
        tool = {
            "type": "function",
            "function": {"name": TURN_MARK, "description": "", "parameters": {"properties": {}}},
        }
        try:
            return TURN_MARK in self.run([Message(role="user", content="hello")], [tool])
        except ConfigError:
            return False

    def _first_control_after_mark(self, rendered: str) -> str:
        match = self._encoder.pattern.search(rendered, rendered.find(TURN_MARK)) if TURN_MARK in rendered else None
        return match.group() if match else ""


def _as_dict(message: Message, family: Family) -> dict[str, JSON]:
    """A message as chat templates expect it; unparsable calls go back into the text, as they were written."""
    plain: dict[str, JSON] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        plain["reasoning_content"] = message.reasoning
    if any(call.error is not None for call in message.tool_calls):
        written = Message(role="assistant", content=message.content, tool_calls=message.tool_calls)
        plain["content"] = family.format(written)
    elif message.tool_calls:
        plain["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.name is not None or message.role == "tool":
        plain["name"] = message.name or "tool"  # some templates (Hermes) refuse a tool message without a name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _map_message(message: Message, change: Callable[[str], str]) -> Message:
    calls = tuple(
        replace(call, name=change(call.name), arguments=_map_texts(call.arguments, change)) if call.name else call
        for call in message.tool_calls
    )
    reasoning = None if message.reasoning is None else change(message.reasoning)
    return replace(message, content=change(message.content), reasoning=reasoning, tool_calls=calls)


def _map_texts(value: JSON, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_texts(key, change): _map_texts(item, change) for key, item in value.items()} if value else {}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return value


def _texts(value: JSON) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
