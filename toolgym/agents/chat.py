"""Chat formats: messages to tokens and sampled tokens to messages, such that tokens stay the truth.

A conversation is encoded once, up to the prompt for the first assistant turn. From then on the tokens that the policy
sampled are kept as they are, and only the increment after them is rendered: what the template puts between the end of
an assistant turn and the beginning of the next. Nothing is ever decoded and encoded again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolgym.agents.encoding import ControlEncoder
from toolgym.agents.families import choose_family
from toolgym.agents.plans import Plan, Shape, compile_plan, shape_of
from toolgym.agents.proof import prove_increments
from toolgym.agents.rendering import Renderer, Tools
from toolgym.errors import ConfigError
from toolgym.toolcalls import THINK_OPEN
from toolgym.types import JSON, Message, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLANS_KEPT = 512  # shapes; a run sees a handful, an environment with ever new tool lists must not fill the memory


class ChatFormat:
    """A model's chat template, tokenizer and tool-call markup.

    Args:
        tokenizer: a fast tokenizer of transformers.
        chat_template: jinja source; None takes the tokenizer's own (of several, the one called ``tool_use``).
        family: who reads tool calls: ``hermes``, ``llama3``, or ``auto`` to go by the template's markup.
        template_options: further variables for the template, such as ``{"enable_thinking": False}``.

    Raises:
        ConfigError: no chat template; no control token ends a turn; or the increment after an assistant turn is not
            what the template yields (tried on generated conversations): training would see other tokens than inference.

    Attributes:
        end_of_turn: the id of the token that ends an assistant turn.
        stop_tokens: ids that end a turn when sampled; the first is ``end_of_turn``.
        control_tokens: text and id of every control token; no text of a task, tool or message becomes one of them.
        roles: the roles that the template takes after an assistant turn ("user", nearly always "tool").
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str | None = None,
        *,
        family: str = "auto",
        template_options: Mapping[str, JSON] | None = None,
    ) -> None:
        template = chat_template or _template_of(tokenizer)
        self._family = choose_family(family, template)
        self.family: str = self._family.name
        self._encoder = ControlEncoder(tokenizer)
        self._renderer = Renderer(tokenizer, template, template_options or {}, self._encoder, self._family)
        self._plans: dict[tuple[Shape, str | None], Plan | None] = {}
        self._last_tools: tuple[list[Mapping[str, JSON]], str] = ([], "")
        control = self._encoder.control
        self.end_of_turn: int = control[self._renderer.end_of_turn]
        others = [control[name] for name in (tokenizer.eos_token, *self._family.extra_stops) if name in control]
        self.stop_tokens: tuple[int, ...] = tuple(dict.fromkeys([self.end_of_turn, *others]))
        self._stops = frozenset(self.stop_tokens)
        prompt = self._renderer.increment([Message(role="user", content="hello")]).text
        self._thinking = prompt.rstrip().endswith(THINK_OPEN)
        self.control_tokens: Mapping[str, int] = dict(control)
        self.roles: frozenset[str] = self.prove()

    def prove(self) -> frozenset[str]:
        """Prove the increments (done once, when the format is made). Returns: ``roles``. Raises: ConfigError."""
        return prove_increments(self._renderer, self._encoder, self._increment)

    def initial(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """The conversation so far, up to and including the prompt for the assistant's turn.

        Args: tools: OpenAI function schemas. Returns: a new list of token ids.
        """
        shape = shape_of(messages)
        key = self._key_of(tools)
        plan = self._plan(shape, key, tools) if shape else None
        return plan.encode(messages) if plan else self._renderer.encode(self._renderer.initial(messages, tools))

    def extend(self, messages: Sequence[Message]) -> list[int]:
        """What follows an assistant turn's end-of-turn token: template text, these messages, the next turn's prompt.

        Raises: ConfigError: the template has no place for such messages (a tool's result, say). Returns: a new list.
        """
        for message in messages:
            if message.role not in self.roles:
                raise ConfigError(
                    f"the chat template has no place for a {message.role} message after an assistant turn, "
                    f"only for: {', '.join(sorted(self.roles))}"
                )
        return self._increment(messages)

    def close_turn(self, stop: StopReason) -> list[int]:
        """The tokens to append, with loss mask 0, to a turn that ended for this reason: none when it ended itself."""
        return [] if stop is StopReason.END_OF_TURN else [self.end_of_turn]

    def parse(self, token_ids: Sequence[int]) -> Message:
        """Read a sampled assistant turn, with or without its stop token. Never raises; see `toolgym.toolcalls`."""
        if len(token_ids) and int(token_ids[-1]) in self._stops:
            token_ids = token_ids[:-1]
        return self._family.parse(self._encoder.decode(token_ids), thinking=self._thinking)

    def encode_turn(self, message: Message) -> list[int]:
        """The tokens with which a policy of this family would say ``message``, its end-of-turn token included.

        For demonstrations and scripted policies. Texts cannot become control tokens here either.
        """
        return [*self._renderer.encode(self._renderer.turn(message)), self.end_of_turn]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, control tokens included, for people."""
        return self._encoder.decode(token_ids)

    def _increment(self, messages: Sequence[Message]) -> list[int]:
        shape = shape_of(messages)
        plan = self._plan(shape, None, ()) if shape else None
        return plan.encode(messages) if plan else self._renderer.encode(self._renderer.increment(messages))

    def _key_of(self, tools: Tools) -> str:
        if not tools:
            return ""
        known, key = self._last_tools
        if known != tools:  # nearly every call comes with the tools of the one before
            key = json.dumps(tools)
            self._last_tools = (copy.deepcopy(list(tools)), key)
        return key

    def _plan(self, shape: Shape, key: str | None, tools: Tools) -> Plan | None:
        try:
            return self._plans[shape, key]
        except KeyError:
            pass
        render = self._renderer.increment if key is None else lambda messages: self._renderer.initial(messages, tools)
        if len(self._plans) >= PLANS_KEPT:
            self._plans.clear()
        plan = self._plans[shape, key] = compile_plan(shape, render, self._encoder)
        return plan


def _template_of(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    if not template:
        name = getattr(tokenizer, "name_or_path", "") or "the model"
        raise ConfigError(f"{name} has no chat template: choose an instruction-tuned model or give chat_template")
    return template
