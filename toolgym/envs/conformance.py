"""The conformance suite for environments: what the rollout loop, the trainer and Gymnasium rely on."""

from __future__ import annotations

import json
import random
import warnings
from functools import partial
from typing import Any

import anyio.to_thread
import gymnasium
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

from toolgym.envs.base import Env
from toolgym.envs.experts import demonstrate
from toolgym.envs.factory import EnvFactory, open_envs
from toolgym.errors import ConfigError, EnvError
from toolgym.types import Message, Step, Task, ToolCall

EXPERT_EPISODES = 40


async def check_env(env_id: str, **kwargs: Any) -> None:
    """Check a registered environment: its tasks and splits, episodes, tools, expert (where it has one), and Gymnasium
    view.

    Args:
        env_id: a registered name.
        **kwargs: the environment's arguments.

    Raises:
        EnvError: it breaks the contract; the message says how.
        ConfigError: no such environment or argument.
    """
    async with open_envs(env_id, **kwargs) as envs:
        _check_tasks(envs)
        for split in envs.splits:
            await _check_episode(envs, envs.tasks(split)[0])
        _check_schemas(envs)
        await _check_wrong_calls(envs)
    if hasattr(envs.make(), "expert"):
        async with open_envs(env_id, demonstrations=True, **kwargs) as demo:
            await _check_expert(demo)
    await anyio.to_thread.run_sync(partial(_check_gymnasium, env_id, kwargs))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise EnvError(message)


def _check_tasks(envs: EnvFactory) -> None:
    name = envs.env_id
    ids: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for split in envs.splits:
        tasks = envs.tasks(split)
        _require(len(tasks) > 0, f"{name}: split {split!r} has no tasks")
        _require(
            [t.id for t in tasks] == [t.id for t in envs.make().tasks(split)],
            f"{name}: tasks({split!r}) differs by call",
        )
        for task in tasks:
            where = f"{name}: task {task.id} of {split!r}"
            _require(task.env_id == name and task.split == split, f"{where} says {task.env_id} {task.split!r}")
            _require(task.id not in ids, f"{where}: its id occurs twice")
            seen = hashes.get(task.content_hash)
            _require(seen is None, f"{where} has the same content as a task of {seen!r}")
            ids[task.id] = hashes[task.content_hash] = split
            _require(json.loads(json.dumps(dict(task.data))) == task.data, f"{where}: its data are not JSON")
    try:
        envs.tasks("no such split")
    except ConfigError:
        return
    raise EnvError(f"{name}: tasks('no such split') must raise ConfigError")


async def _check_episode(envs: EnvFactory, task: Task) -> None:
    """Equal resets, an end after which no step is taken, and a close that may be repeated."""
    env = envs.make()
    try:
        first, info = await env.areset(options={"task": task})
        again, info_again = await env.areset(options={"task_id": task.id})
        _require((first, info) == (again, info_again), f"{env.env_id}: two resets to task {task.id} differ")
        _require(
            bool(first) and first[-1].role in ("user", "tool"), f"{env.env_id}: a reset gives no message to answer"
        )
        _require(info.get("task_id") == task.id, f"{env.env_id}: info must hold the task_id {task.id}")
        seeded = [(await env.areset(seed=7))[1]["task_id"] for _ in range(2)]
        _require(seeded[0] == seeded[1], f"{env.env_id}: the same seed draws different tasks")
        await env.areset(options={"task": task})
        step = await env.astep(Message(role="assistant", content="?"))
        if step.outcome is not None:
            await _check_over(env)
        await env.areset(options={"task": task})
        await env.atruncate("turns")
    finally:
        await env.aclose()
        await env.aclose()


async def _check_over(env: Env) -> None:
    try:
        await env.astep(Message(role="assistant", content="?"))
    except EnvError:
        return
    raise EnvError(f"{env.env_id}: a step after the end of the episode must raise EnvError")


def _check_schemas(envs: EnvFactory) -> None:
    names = [tool.name for tool in envs.tools]
    _require(len(set(names)) == len(names), f"{envs.env_id}: two tools have one name: {names}")
    for tool in envs.tools:
        schema = json.loads(json.dumps(tool.schema))
        function = schema.get("function", {})
        _require(
            schema.get("type") == "function"
            and function.get("name") == tool.name
            and function.get("parameters", {}).get("type") == "object",
            f"{envs.env_id}: the schema of {tool.name} is no OpenAI function schema: {schema}",
        )
        _require(bool(function.get("description")), f"{envs.env_id}: tool {tool.name} has no description (docstring)")


async def _check_wrong_calls(envs: EnvFactory) -> None:
    """Each wrong call gets exactly one tool message, in order, with its id; none ends the episode or raises."""
    if not envs.tools:
        return
    calls = (
        ToolCall(name="no_such_tool", id="a"),
        ToolCall(error="not valid JSON", raw="{", id="b"),
        *(
            ToolCall(name=tool.name, arguments={"no such argument": [1]}, id=f"c{i}")
            for i, tool in enumerate(envs.tools)
        ),
    )
    env = envs.make()
    try:
        await env.areset(options={"task": envs.tasks("train")[0]})
        step: Step = await env.astep(Message(role="assistant", tool_calls=calls))
        got = [(m.role, m.tool_call_id) for m in step.messages]
        _require(
            got == [("tool", call.id) for call in calls],
            f"{env.env_id}: {len(calls)} wrong calls need one tool message each, in order; got {got}",
        )
        _require(all(m.content for m in step.messages), f"{env.env_id}: a wrong call was answered with nothing")
        _require(step.outcome is None, f"{env.env_id}: a wrong call ended the episode")
    finally:
        await env.aclose()


async def _check_expert(envs: EnvFactory) -> None:
    env, rng = envs.make(), random.Random(0)
    try:
        scores = [(await demonstrate(env, task, rng)).score for task in envs.tasks("train")[:EXPERT_EPISODES]]
    finally:
        await env.aclose()
    _require(max(scores) > 0, f"{envs.env_id}: its expert scored nothing in {len(scores)} episodes")


def _check_gymnasium(env_id: str, kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id, **kwargs)
        try:
            gymnasium_check_env(env.unwrapped)
        except (AssertionError, Warning) as error:
            raise EnvError(f"{env_id}: Gymnasium's check_env says: {error}") from error
        finally:
            env.close()
