"""Tools: the schema that a signature and a docstring give, the checking of arguments, and limits."""

import enum
import threading
from typing import Annotated, Any, Literal

import anyio
import pytest

from toolgym.envs import ToolError, tool
from toolgym.errors import ConfigError, SandboxError


def spec(fn: Any):
    return fn.bind(None)


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


@tool
async def many(
    text: str,
    number: float,
    flag: bool = False,
    unit: Unit = Unit.METRE,
    pair: tuple[int, int] = (0, 0),
    kind: Literal["a", "b"] | None = None,
) -> dict[str, Any]:
    """Take many things.

    It goes on
    here.

    Args:
        text (str): the text,
            which goes on
        number: a number: real
        flag: .
        unit: .
        pair: .
        kind: .

    Returns:
        all of them
    """
    return {"text": text, "number": number, "flag": flag, "unit": unit.value, "pair": list(pair), "kind": kind}


def test_tool_schema_comes_from_signature_and_docstring():
    schema = spec(many).schema
    assert schema["type"] == "function"
    function = schema["function"]
    assert (function["name"], function["description"]) == ("many", "Take many things. It goes on here.")
    parameters = function["parameters"]
    assert parameters["type"] == "object"
    assert parameters["required"] == ["text", "number"]
    assert parameters["properties"]["text"] == {"type": "string", "description": "the text, which goes on"}
    assert parameters["properties"]["number"] == {"type": "number", "description": "a number: real"}
    assert parameters["properties"]["flag"] == {"type": "boolean", "default": False, "description": "."}
    assert "title" not in str(schema)


def test_tool_without_parameters_has_an_empty_object():
    @tool
    async def now() -> str:
        """Tell the time."""
        return "noon"

    assert spec(now).schema["function"]["parameters"] == {"type": "object", "properties": {}}


async def test_tool_call_gives_text_or_json():
    assert await spec(many).call({"text": "é", "number": 1, "unit": "ft", "pair": [1, 2]}) == (
        '{"text": "é", "number": 1.0, "flag": false, "unit": "ft", "pair": [1, 2], "kind": null}'
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"text": "x"}, "number: Field required"),
        ({"text": 1, "number": 1}, "text: Input should be a valid string"),
        ({"text": "x", "number": "1"}, "number: Input should be a valid number"),
        ({"text": "x", "number": True}, "number: Input should be a valid number"),
        ({"text": "x", "number": 1, "flag": "yes"}, "flag: Input should be a valid boolean"),
        ({"text": "x", "number": 1, "unit": "yard"}, "unit: Input should be 'm' or 'ft'"),
        ({"text": "x", "number": 1, "pair": [1]}, "pair.1: Field required"),
        ({"text": "x", "number": 1, "kind": "c"}, "kind: Input should be 'a' or 'b'"),
        ({"text": "x", "number": 1, "more": 1}, "more: Extra inputs are not permitted"),
        ({"text": "\ud800", "number": 1}, "Invalid JSON"),
        ({"text": {1, 2}, "number": 1}, "not JSON"),
    ],
)
async def test_tool_call_refuses_wrong_arguments_in_one_short_line(arguments: dict[str, Any], complaint: str):
    with pytest.raises(ToolError) as error:
        await spec(many).call(arguments)
    text = str(error.value)
    assert text.startswith("wrong arguments for many: ")
    assert complaint in text
    assert "\n" not in text
    assert len(text) < 350


async def test_tool_call_deeply_nested_arguments_are_refused():
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ToolError, match="wrong arguments"):
        await spec(many).call({"text": deep, "number": 1})


async def test_tool_call_runs_synchronous_functions_in_a_thread():
    @tool
    def where() -> bool:
        """Where am I."""
        return threading.current_thread() is threading.main_thread()

    assert await spec(where).call({}) == "false"


async def test_tool_without_a_limit_runs_inline():
    @tool(timeout_s=None)
    async def inline() -> str:
        """Run."""
        return threading.current_thread().name

    @tool(timeout_s=None)
    def in_thread() -> str:
        """Run."""
        return threading.current_thread().name

    assert await spec(inline).call({}) == threading.current_thread().name
    assert await spec(in_thread).call({}) == "toolgym-sync-call"


async def test_tool_call_lets_cancellation_pass():
    @tool
    async def hang() -> None:
        """Hang."""
        await anyio.sleep_forever()

    with anyio.move_on_after(0.01) as scope:
        await spec(hang).call({})
    assert scope.cancelled_caught


async def test_tool_result_that_is_no_json_is_an_error_of_the_tool():
    @tool
    async def odd() -> object:
        """Give an object."""
        return object()

    with pytest.raises(ToolError, match="odd failed: TypeError"):
        await spec(odd).call({})


async def test_tool_infrastructure_errors_pass():
    @tool
    def gone() -> None:
        """Fail."""
        raise SandboxError("gone")

    with pytest.raises(SandboxError, match="gone"):
        await spec(gone).call({})


def test_tool_refuses_signatures_that_no_schema_describes():
    def untyped(a):
        """Untyped."""

    def rest(*a: int):
        """Rest."""

    def keywords(**a: int):
        """Keywords."""

    def odd(a: threading.Thread):
        """Odd."""

    def unknown(a: "NoSuchType"):  # noqa: F821 - the mistake under test  # pyright: ignore
        """Unknown."""

    for fn, complaint in (
        (untyped, "'a' needs a type annotation"),
        (rest, "cannot be passed by name"),
        (keywords, "cannot be passed by name"),
        (odd, "odd"),
        (unknown, "NoSuchType"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            tool(fn)


def test_tool_stays_callable():
    @tool(name="other")
    def double(number: Annotated[int, "a number"]) -> int:
        """Double."""
        return 2 * number

    assert double(4) == 8
    assert spec(double).name == "other"
