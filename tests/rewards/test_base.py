"""`evaluate`: a score, or a typed error within the deadline. Nothing else."""

import os
import subprocess
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Sequence

import anyio
import pytest

from toolgym.errors import EnvError, RewardError, SandboxError
from toolgym.rewards import InProcess, evaluate
from toolgym.rewards import deadline as deadline_module
from toolgym.rewards.deadline import run_in_thread
from toolgym.types import Message, Scored, Task

TASK = Task(id="test-1", env_id="x/y-v0", split="test", seed=1, content_hash="0", data={"answer": "4"})


async def run(reward, **options) -> Scored:
    return await evaluate(reward, TASK, (), "4", **options)


async def test_evaluate_takes_synchronous_and_asynchronous_functions_and_objects():
    class Object:
        async def __call__(self, task: Task, messages: Sequence[Message], answer: str) -> float:
            return 0.25

    async def asynchronous(task: Task, messages: Sequence[Message], answer: str) -> Scored:
        return Scored(value=0.5, parts={"a": 0.5})

    assert await run(lambda task, messages, answer: float(answer == task.data["answer"])) == Scored(value=1.0)
    assert await run(asynchronous) == Scored(value=0.5, parts={"a": 0.5})
    assert await run(Object()) == Scored(value=0.25)
    assert await run(lambda *_: True) == Scored(value=1.0)


async def test_evaluate_runs_a_synchronous_reward_beside_the_event_loop():
    main = threading.get_ident()
    assert await run(lambda *_: float(threading.get_ident() != main)) == Scored(value=1.0)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), None, "1", [1.0], Scored(value=1.0, parts={"a": float("nan")})],
    ids=repr,
)
async def test_evaluate_refuses_what_is_no_finite_number(value: object):
    with pytest.raises(RewardError, match="expected a"):
        await run(lambda *_: value)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3), MemoryError(), RecursionError()], ids=repr)
async def test_evaluate_types_whatever_a_reward_raises(error: BaseException):
    def bad(*_: object) -> float:
        raise error

    async def bad_too(*_: object) -> float:
        raise error

    for reward in (bad, bad_too):
        with pytest.raises(RewardError, match=rf"reward bad\w* raised {type(error).__name__}.*test-1"):
            await run(reward)


async def test_evaluate_types_a_timeout_that_the_reward_itself_raises_as_its_error():
    async def bad(*_: object) -> float:
        raise TimeoutError("the judge is slow")

    with pytest.raises(RewardError, match="raised TimeoutError: the judge is slow"):
        await run(bad)


async def test_evaluate_passes_typed_errors_on():
    async def bad(*_: object) -> float:
        raise SandboxError("gone")

    with pytest.raises(SandboxError, match="gone"):
        await run(bad)


async def test_evaluate_ends_at_the_deadline_though_the_reward_hangs():
    release = threading.Event()

    def hangs(*_: object) -> float:
        release.wait(30)
        return 1.0

    async def hangs_too(*_: object) -> float:
        await anyio.sleep_forever()
        return 1.0

    try:
        for reward in (hangs, hangs_too):
            with anyio.fail_after(2), pytest.raises(RewardError, match=r"took longer than 0\.02 s"):
                await run(reward, timeout_s=0.02)
    finally:
        release.set()


async def test_evaluate_lets_cancellation_pass():
    async def hangs(*_: object) -> float:
        await anyio.sleep_forever()
        return 1.0

    with anyio.move_on_after(0.02) as scope:
        await run(hangs, timeout_s=30)
    assert scope.cancelled_caught


async def test_run_in_thread_does_not_let_an_exception_pass_for_a_cancellation():
    def cancelled() -> None:
        raise CancelledError("x")

    with pytest.raises(RuntimeError, match="CancelledError: x"):
        await run_in_thread(cancelled, timeout_s=1)


async def test_run_in_thread_refuses_when_too_many_calls_hang(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deadline_module, "MAX_ABANDONED", 2)
    monkeypatch.setattr(deadline_module, "_abandoned", set())  # earlier tests' threads may not be over yet
    release = threading.Event()
    try:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await run_in_thread(release.wait, 30, timeout_s=0.01)
        with pytest.raises(EnvError, match="2 synchronous calls"):
            await run_in_thread(release.wait, 30, timeout_s=0.01)
    finally:
        release.set()


async def test_run_in_thread_waits_for_a_thread_within_its_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deadline_module, "MAX_THREADS", 1)
    release = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: run_in_thread(release.wait, 30, timeout_s=30))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(TimeoutError):
            await run_in_thread(int, timeout_s=0.01)
        release.set()
    assert await run_in_thread(int, timeout_s=1) == 0


@pytest.mark.slow
def test_run_in_thread_does_not_keep_the_process_from_ending():
    """A reward that hangs for good is abandoned, and the interpreter still ends."""
    code = """
import anyio, threading
from toolgym.rewards.deadline import run_in_thread
async def main():
    try:
        await run_in_thread(threading.Event().wait, timeout_s=0.01)
    except TimeoutError:
        print("abandoned")
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "abandoned\n"


def _length(task: Task, messages: Sequence[Message], answer: str) -> float:
    return float(len(answer))


def _hangs(task: Task, messages: Sequence[Message], answer: str) -> float:
    time.sleep(60)
    return 1.0


def _dies(task: Task, messages: Sequence[Message], answer: str) -> float:
    os._exit(1)


def _raises(task: Task, messages: Sequence[Message], answer: str) -> float:
    raise ValueError("no")


@pytest.mark.slow
async def test_in_process_scores_and_kills_what_hangs_or_dies():
    assert await run(InProcess(_length)) == Scored(value=1.0)
    with anyio.fail_after(10), pytest.raises(RewardError, match="took longer"):
        await run(InProcess(_hangs), timeout_s=0.5)
    with pytest.raises(RewardError, match="died"):
        await run(InProcess(_dies))
    with pytest.raises(RewardError, match="raised ValueError: no"):
        await run(InProcess(_raises))
    assert await run(InProcess(_length)) == Scored(value=1.0)
