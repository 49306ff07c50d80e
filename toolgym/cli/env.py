"""``toolgym env``: which environments there are, what one is like, and playing it by hand."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from toolgym.cli.output import format_value, print_json, print_table
from toolgym.envs import registry
from toolgym.errors import ConfigError
from toolgym.toolcalls import parse_assistant
from toolgym.types import Failed, Message, Outcome, ToolCall

if TYPE_CHECKING:
    from toolgym.envs import Env, EnvFactory

LIST = """\
List environments: the built-in ones and those of installed packages.

  toolgym env list
"""
INFO = """\
Show an environment: its tools, its tasks by split, one task, and where its tools run.

  toolgym env info toolgym/python-v0
  toolgym env info toolgym/python-v0 sandbox=local
"""
PLAY = """\
Play one episode yourself. A line `!name {arguments as JSON}` calls a tool, any other line is your message; it may hold
calls in the canonical form, too. Without a tool call it is your answer, in most environments.

  toolgym env play toolgym/python-v0 sandbox=local
  > !python {"code": "print(6 * 7)"}
  > 42
"""


def register(subparsers: Any) -> None:
    """Add the command."""
    text = "\n".join((LIST, INFO, PLAY))
    parser = subparsers.add_parser("env", help="list, inspect and play environments", description=text)
    commands = parser.add_subparsers(metavar="list|info|play", required=True)
    lister = commands.add_parser("list", help="the names of all environments", description=LIST)
    lister.set_defaults(handler=list_envs)
    info = commands.add_parser("info", help="tools, tasks and isolation of one", description=INFO)
    info.set_defaults(handler=show_env)
    player = commands.add_parser("play", help="play an episode by hand", description=PLAY)
    player.add_argument("--split", default="train", help="draw the task from this split (default: train)")
    player.add_argument("--task", metavar="ID", help="play this task, e.g. test-3")
    player.add_argument("--seed", type=int, default=0, help="of the draw of the task (default: 0)")
    player.set_defaults(handler=play_env)
    for command in (info, player):
        command.add_argument("env_id", metavar="ENV", help="e.g. toolgym/python-v0")
        command.add_argument("words", metavar="key=value", nargs="*", help="arguments of the environment")
    for command in (lister, info):
        command.add_argument("--json", action="store_true", help="print JSON")


def list_envs(args: argparse.Namespace) -> int:
    """Handler of ``toolgym env list``."""
    rows = [(env_id, _summary(registry.env_class(env_id))) for env_id in registry.list_envs()]
    if args.json:
        print_json(dict(rows))
    else:
        print_table(["environment", "what it is"], rows)
    return 0


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _arguments(words: list[str]) -> dict[str, Any]:
    parse = importlib.import_module("toolgym.config").parse_override  # pydantic takes 100 ms to import
    pairs = [parse(word) for word in words]
    return {".".join(path): value for path, value in pairs}


def show_env(args: argparse.Namespace) -> int:
    """Handler of ``toolgym env info``."""
    open_envs = importlib.import_module("toolgym.envs").open_envs

    async def collect() -> dict[str, Any]:
        async with open_envs(args.env_id, **_arguments(args.words)) as envs:
            return _describe(envs)

    data = anyio.run(collect)
    if args.json:
        print_json(data)
        return 0
    print(f"{data['env']}: {data['summary']}\n{data['isolation']}\n\ntools:")
    for tool in data["tools"]:
        function = tool["function"]
        names = ", ".join(function["parameters"].get("properties", {}))
        print(f"  {function['name']}({names}): {function.get('description', '')}")
    print("\ntasks:")
    for split, count in data["tasks"].items():
        print(f"  {split}: {count}")
    print(f"\none of them ({data['example']['id']}):")
    for key, value in data["example"]["data"].items():
        print(f"  {key}: {format_value(value)}")
    return 0


def _describe(envs: EnvFactory) -> dict[str, Any]:
    cls = registry.env_class(envs.env_id)
    counts = {split: len(envs.tasks(split)) for split in cls.splits}
    example = envs.tasks(next(split for split, n in counts.items() if n))[0]
    return {
        "env": envs.env_id,
        "summary": _summary(cls),
        "isolation": envs.describe(),
        "tools": [tool.schema for tool in envs.tools],
        "tasks": counts,
        "example": {"id": example.id, "data": dict(example.data)},
    }


def play_env(args: argparse.Namespace) -> int:
    """Handler of ``toolgym env play``."""
    return anyio.run(_play, args)


async def _play(args: argparse.Namespace) -> int:
    open_envs = importlib.import_module("toolgym.envs").open_envs
    options = {"task_id": args.task} if args.task else {}
    async with open_envs(args.env_id, split=args.split, **_arguments(args.words)) as envs:
        env: Env = envs.make()
        try:
            messages, _ = await env.areset(seed=args.seed, options=options)
            print(envs.describe())
            _print(messages)
            return await _turns(env)
        finally:
            await env.aclose()


async def _turns(env: Env) -> int:
    while True:
        line = await _ask()
        if line is None:
            print("left before the end")
            return 0
        try:
            action = read_action(line)
        except ConfigError as error:
            print(f"  {error}")
            continue
        step = await env.astep(action)
        _print(step.messages)
        if step.outcome is not None:
            print(f"=> {render_outcome(step.outcome)}")
            return 0


async def _ask() -> str | None:
    """A line from standard input; None at its end."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    line = await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return line.rstrip("\n") if line else None


def read_action(line: str) -> Message:
    """``!name {json}`` as a tool call, anything else as an assistant message in the canonical form.

    Raises:
        ConfigError: what follows the name is no JSON object.
    """
    if not line.startswith("!"):
        return parse_assistant(line)
    name, _, text = line[1:].strip().partition(" ")
    try:
        arguments = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f'{text!r} is not JSON ({error}); a call is like !{name} {{"key": "value"}}') from None
    if not isinstance(arguments, dict):
        raise ConfigError(f'{text!r} is no JSON object; a call is like !{name} {{"key": "value"}}')
    return Message(role="assistant", tool_calls=(ToolCall(name=name, arguments=arguments, id="call-1"),))


def _print(messages: tuple[Message, ...]) -> None:
    for message in messages:
        print(f"{message.role:>9}: " + message.content.replace("\n", "\n" + " " * 11))


def render_outcome(outcome: Outcome) -> str:
    """``score 1 (answer 1)`` or ``failed (sandbox): …``."""
    if isinstance(outcome, Failed):
        return f"failed ({outcome.kind}): {outcome.detail}"
    parts = ", ".join(f"{name} {value:g}" for name, value in outcome.parts.items())
    return f"score {outcome.value:g}" + (f" ({parts})" if parts else "")
