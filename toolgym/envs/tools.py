"""Tools: functions that a model may call, with the JSON schema that their signature and docstring give.

    @tool(timeout_s=5)
    async def search(query: str, limit: int = 3) -> str:
        \"\"\"Search the encyclopaedia.

Args:
            query: words to look for
            limit: how many results
        \"\"\"

A call that the model gets wrong is answered with a short error text *for the model*; it never raises.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import inf
from typing import Any, get_type_hints, overload

import anyio
import pydantic
from pydantic.json_schema import GenerateJsonSchema

from toolgym.errors import ConfigError, ToolgymError
from toolgym.rewards.deadline import run_in_thread
from toolgym.sandboxes.base import ProgramError
from toolgym.types import JSON

_SECTION = re.compile(r"\n\s*(Args|Arguments|Parameters|Returns|Raises|Yields|Example|Examples):\s*\n")
_ARGUMENT = re.compile(r"^\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


class ToolError(Exception):
    """Raise it in a tool to tell the model what it did wrong; its text is the whole answer to the call."""


class _PlainSchema(GenerateJsonSchema):
    """JSON schema without a title for each parameter."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@dataclass(frozen=True)
class ToolSpec:
    """A tool of an environment instance, ready to be called.

    ``name`` and ``schema`` (an OpenAI function schema) are what the model sees. ``timeout_s`` (None: no limit) bounds
    one call, in seconds; ``max_output_chars`` its answer: a longer one is replaced by an error, not cut, since half
    an answer misleads.
    """

    name: str
    description: str
    parameters: Mapping[str, JSON]  # JSON schema of the arguments
    fn: Callable[..., Any]
    arguments: type[pydantic.BaseModel]
    is_async: bool
    timeout_s: float | None
    max_output_chars: int

    @cached_property
    def schema(self) -> dict[str, JSON]:
        """The OpenAI function schema: ``{"type": "function", "function": {name, description, parameters}}``."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    async def call(self, arguments: Mapping[str, JSON]) -> str:
        """Check the arguments, run the tool and give its answer as text.

        Async tools run inline, synchronous ones in a thread that is abandoned at the deadline. A ``str`` is the
        answer as it is, anything else as JSON.

        Raises:
            ToolError: what to tell the model: wrong arguments, its own deadline, too much output, what the tool raised.
            ToolgymError: the tool could not be run for a reason that is not the model's (a sandbox is gone).
        """
        values = self._checked(arguments)
        try:
            if self.timeout_s is None:
                return self._text(await self._run(values, inf))
            with anyio.move_on_after(self.timeout_s) as scope:
                # One second more than the scope, so that always the scope's deadline is the one that fires.
                return self._text(await self._run(values, self.timeout_s + 1))
        except ProgramError as error:  # of a sandbox, but the doing of the program in it
            raise ToolError(f"{self.name} failed: {str(error)[:200]}") from error
        except (ToolError, ToolgymError):
            raise
        except (Exception, SystemExit) as error:
            raise ToolError(f"{self.name} failed: {type(error).__name__}: {str(error)[:200]}") from error
        assert scope.cancelled_caught
        raise ToolError(f"{self.name} took longer than {self.timeout_s:g} s")

    async def _run(self, values: dict[str, Any], timeout_s: float) -> Any:
        if self.is_async:
            return await self.fn(**values)
        return await run_in_thread(partial(self.fn, **values), timeout_s=timeout_s)

    def _checked(self, arguments: Mapping[str, JSON]) -> dict[str, Any]:
        try:
            # As JSON, not as Python values: strict, but a JSON array may still become a tuple and a string an enum.
            model = self.arguments.model_validate_json(json.dumps(arguments))
        except pydantic.ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()[:3])
            raise ToolError(f"wrong arguments for {self.name}: {wrong[:300]}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolError(f"wrong arguments for {self.name}: {type(error).__name__}: not JSON") from error
        return {name: getattr(model, name) for name in type(model).model_fields}

    def _text(self, result: Any) -> str:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        if len(text) > self.max_output_chars:
            raise ToolError(f"{self.name} gave too much output: {len(text)} characters, limit {self.max_output_chars}")
        return text


class Tool:
    """A function, or a method of an environment class, marked as tool; `bind` makes the `ToolSpec` of one instance."""

    def __init__(
        self, fn: Callable[..., Any], *, name: str | None, timeout_s: float | None, max_output_chars: int
    ) -> None:
        self.fn = fn
        self.name = name or fn.__name__
        parameters = list(inspect.signature(fn).parameters.values())
        self._is_async = inspect.iscoroutinefunction(fn)
        self.is_method = bool(parameters) and parameters[0].name == "self"
        self._timeout_s = timeout_s
        self._max_output_chars = max_output_chars
        doc = inspect.getdoc(fn) or ""
        self._description = " ".join(_SECTION.split("\n" + doc, maxsplit=1)[0].split())
        self._arguments = _arguments_model(self.name, fn, parameters[int(self.is_method) :], _argument_docs(doc))
        self._schema = _plain(self._arguments.model_json_schema(schema_generator=_PlainSchema))

    def bind(self, instance: object) -> ToolSpec:
        """The tool for one environment instance (which a plain function ignores)."""
        return ToolSpec(
            name=self.name,
            description=self._description,
            parameters=self._schema,
            fn=self.fn.__get__(instance) if self.is_method else self.fn,
            arguments=self._arguments,
            is_async=self._is_async,
            timeout_s=self._timeout_s,
            max_output_chars=self._max_output_chars,
        )

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Accessed on an environment, a tool is the function itself, so that it can be called and tested as one."""
        if instance is None:
            return self
        return self.fn.__get__(instance) if self.is_method else self.fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.fn(*args, **kwargs)


@overload
def tool(fn: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, timeout_s: float | None = 30.0, max_output_chars: int = 16_000
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float | None = 30.0,
    max_output_chars: int = 16_000,
) -> Any:
    """Mark a function, or a method of a `ToolEnv`, as a tool.

    Args:
        fn: with annotated parameters and a docstring (Google style: ``Args:`` describes the parameters).
        name: what the model calls it; the function's name by default.
        timeout_s: seconds that one call may take; None: no limit, for a tool that cannot hang.
        max_output_chars: characters that its answer may have.

    Raises:
        ConfigError: a parameter without annotation, ``*args``, ``**kwargs``, or a type that has no JSON schema.
    """

    def mark(function: Callable[..., Any]) -> Tool:
        return Tool(function, name=name, timeout_s=timeout_s, max_output_chars=max_output_chars)

    return mark if fn is None else mark(fn)


def _arguments_model(
    name: str, fn: Callable[..., Any], parameters: list[inspect.Parameter], docs: Mapping[str, str]
) -> type[pydantic.BaseModel]:
    try:
        hints = get_type_hints(fn, include_extras=True)
    except NameError as error:
        raise ConfigError(f"tool {name!r}: its annotations cannot be read: {error}") from error
    fields: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"tool {name!r}: parameter {parameter} cannot be passed by name")
        if parameter.name not in hints:
            raise ConfigError(f"tool {name!r}: parameter {parameter.name!r} needs a type annotation")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], pydantic.Field(default, description=docs.get(parameter.name)))
    try:
        config = pydantic.ConfigDict(extra="forbid", strict=True)
        return pydantic.create_model(name, __config__=config, **fields)
    except pydantic.errors.PydanticUserError as error:
        raise ConfigError(f"tool {name!r}: {error}") from error


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    for definition in (schema, *schema.get("$defs", {}).values()):
        definition.pop("title", None)  # pydantic makes it of the type's name: it only costs tokens
    del schema["additionalProperties"]
    schema.setdefault("properties", {})
    return schema


def _argument_docs(doc: str) -> dict[str, str]:
    """The descriptions in the ``Args:`` section of a Google-style docstring, continuation lines joined."""
    parts = _SECTION.split("\n" + doc)
    section = next((parts[i + 1] for i in range(1, len(parts) - 1, 2) if parts[i].startswith(("Arg", "Par"))), "")
    lines = [line for line in section.splitlines() if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    found: dict[str, str] = {}
    last = ""
    for line in lines:
        match = _ARGUMENT.match(line)
        if match and len(line) - len(line.lstrip()) == indent:
            last = match[1]
            found[last] = match[2].strip()
        elif last:
            found[last] = f"{found[last]} {line.strip()}".strip()
    return found
