"""``toolgym/python-v0``: questions that need a program, splits that share no expression, and whose fault it is."""

import re
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from tests.envs.small import call, say
from toolgym.envs import ToolError, check_env, make, open_envs
from toolgym.envs.python.arithmetic import execute
from toolgym.envs.python.env import PythonEnv, output_of
from toolgym.envs.python.questions import KINDS, questions, split_of
from toolgym.errors import EnvError
from toolgym.sandboxes import End, Execution, ExecutionError, SandboxLost
from toolgym.types import Scored

SPLITS = ("train", "validation", "test")


def expression_of(question: str) -> tuple[object, ...]:
    """The words of a question and its numbers, of which the first two may change places: a * b, sum of [a, b]."""
    a, b, c = map(int, re.findall(r"[0-9]+", question))
    return re.sub(r"[0-9]+", "#", question), tuple(sorted((a, b))), c


def test_python_tasks_are_many_and_of_different_content():
    env = make("toolgym/python-v0")
    assert [len(env.tasks(split)) for split in SPLITS] == [4096, 512, 512]
    hashes = [t.content_hash for split in SPLITS for t in env.tasks(split)]
    assert len(set(hashes)) == len(hashes)
    assert all(split_of(q.key) == split for split in SPLITS for q in questions(split))


def test_python_splits_share_no_expression():
    """However the numbers are ordered, where the order does not matter to the answer."""
    seen = [expression_of(q.text) for split in SPLITS for q in questions(split)]
    assert len(set(seen)) == len(seen) == 4096 + 512 + 512


def test_python_tasks_are_always_the_same():
    assert questions("test")[0].text == "what is 26 * 53 - 35?"
    assert questions("train")[0].text == "what is sum of [55, 57] + 44?"


def test_python_questions_are_of_all_kinds_in_every_split():
    for split in SPLITS:
        kinds = Counter(q.key[0] for q in questions(split))
        assert set(kinds) == set(KINDS)
        assert min(kinds.values()) > len(questions(split)) / 6


def test_python_answers_are_not_in_the_question():
    """Else copying a number, or taking one at random, would score."""
    found = sum(q.answer in re.findall(r"[0-9]+", q.text) for split in SPLITS for q in questions(split))
    assert found <= 5
    common = Counter(q.answer for q in questions("train")).most_common(1)[0][1]
    assert common / 4096 < 0.01


@pytest.mark.parametrize("split", SPLITS)
def test_python_programs_print_the_answer(split: str):
    for q in questions(split):
        assert execute(q.code).stdout == f"{q.answer}\n"


def test_arithmetic_equals_the_interpreter():
    """The stand-in for a sandbox gives what Python itself prints, for every program of every split."""
    programs = [q.code for split in SPLITS for q in questions(split)]
    done = subprocess.run(
        [sys.executable, "-"], input="\n".join(programs), capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "".join(execute(code).stdout for code in programs)


@pytest.mark.parametrize(
    "code",
    ["", "1", "print(1", "print()", "print(1, 2)", "print('a')", "print(1 / 2)", "print(2 ** 9)", "exec(1)", "print(x)",
     "__import__('os')", "print(sum(x for x in range(3)))", "print(1)\nprint(2)",
     "print(True)", "print(max([1]))"],
)  # fmt: skip
def test_arithmetic_refuses_everything_else(code: str):
    with pytest.raises(EnvError, match="not a program of the scripted expert"):
        execute(code)


@pytest.mark.parametrize(
    ("execution", "seen"),
    [
        (Execution(stdout=" 42\n"), "42"),
        (Execution(stdout="1\n2\n"), "1\n2"),
        (Execution(result="42"), "42"),
        (Execution(), "(no output)"),
        (Execution(exit_code=3), "(no output, exit code 3)"),
        (
            Execution(
                stdout="1\n", error=ExecutionError(name="NameError", message="name 'x' is not defined"), exit_code=1
            ),
            "NameError: name 'x' is not defined",
        ),
        (
            Execution(error=ExecutionError(name="ValueError", message="x" * 999), exit_code=1),
            f"ValueError: {'x' * 188}",
        ),
    ],
)
def test_output_of_shows_what_a_program_printed_or_its_error(execution: Execution, seen: str):
    assert output_of(execution) == seen


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (End.TIMEOUT, "the program took too long"),
        (End.OUT_OF_MEMORY, "the program ran out of memory"),
        (End.OUTPUT_CUT, "the program printed too much"),
        (End.KILLED, "the program was killed"),
    ],
)
def test_output_of_tells_the_model_what_stopped_its_program(end: End, told: str):
    with pytest.raises(ToolError, match=told):
        output_of(Execution(end=end, exit_code=-9))


class Pool:
    """Stands for a pool whose every execution ends in the same way."""

    def __init__(self, ending: Execution | Exception) -> None:
        self.ending = ending

    @asynccontextmanager
    async def acquire(self):
        yield self

    async def run_code(self, code: str, *, timeout_s: float) -> Execution:
        if isinstance(self.ending, Exception):
            raise self.ending
        return self.ending


async def test_python_program_that_is_killed_costs_an_error_message():
    env = PythonEnv(shared=Pool(Execution(end=End.TIMEOUT)))
    await env.areset(seed=0)
    step = await env.astep(call("python", code="while True: pass"))
    assert step.messages[0].content == "error: the program took too long"


async def test_python_long_output_costs_an_error_message():
    env = PythonEnv(shared=Pool(Execution(stdout="x" * 2001)))
    await env.areset(seed=0)
    step = await env.astep(call("python", code="print('x' * 2001)"))
    assert step.messages[0].content == "error: python gave too much output: 2001 characters, limit 2000"


async def test_python_lost_sandbox_is_no_fault_of_the_policy():
    env = PythonEnv(shared=Pool(SandboxLost("the engine is gone")))
    await env.areset(seed=0)
    with pytest.raises(SandboxLost, match="the engine is gone"):
        await env.astep(call("python", code="print(1)"))


async def _play(sandbox: str) -> None:
    async with open_envs("toolgym/python-v0", sandbox=sandbox, timeout_s=2.0) as envs:
        assert envs.describe().startswith(sandbox)
        env = envs.make()
        question = (await env.areset(options={"task_id": "test-0"}))[0][0].content
        assert question == "what is 26 * 53 - 35?"
        assert (await env.astep(call("search", query=question))).messages[0].content == "nothing found"
        step = await env.astep(call("python", code="show(1)"))
        assert step.messages[0].content == "NameError: name 'show' is not defined"
        step = await env.astep(call("python", code="print(26 * 53 - 35)"))
        assert step.messages[0].content == "1343"
        step = await env.astep(call("python", code="import os; os._exit(0)"))
        assert step.messages[0].content == "(no output)"
        assert (await env.astep(say("1,343."))).outcome == Scored(value=1.0)
        await env.aclose()


@pytest.mark.slow
async def test_python_plays_in_local_processes():
    await _play("local")


@pytest.mark.docker
async def test_python_plays_in_docker():
    await _play("docker")


@pytest.mark.slow
async def test_python_conforms():
    await check_env("toolgym/python-v0", sandbox="local")
