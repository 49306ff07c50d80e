"""Grading apart from doing: what a policy made is run in a fresh sandbox, and judged on the host.

    candidate's sandbox --take named files--> fresh sandbox --run on one input at a time--> text --compare on the
    host--> Grade

Whoever shares an interpreter with the candidate can be lied to by it, so nothing that knows an expected value goes in:
only inputs do, and what comes back are claims in JSON or plain text. A program that ends early, patches ``json``,
overrides ``__eq__``, forges files or prints verdicts has made at most a wrong claim, and to make a right one it must
compute the answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from toolgym.sandboxes.base import CommandResult, ProgramError, Sandbox, SandboxFileError

JSON: TypeAlias = Any
Files: TypeAlias = Mapping[str, bytes]
OpenSandbox: TypeAlias = Callable[[], AbstractAsyncContextManager[Sandbox]]

MAX_FILES = 256
_CALLER = (Path(__file__).parent / "inside" / "call.py").read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input and the value expected for it.

    ``Case(args=[2, 3], expected=5)``; ``expected`` never leaves the host.
    """

    args: Sequence[JSON] = ()
    kwargs: Mapping[str, JSON] = field(default_factory=dict[str, Any])
    expected: JSON = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IOCase:
    """One standard input and the standard output expected for it. ``IOCase(stdin="2 3", expected="5")``."""

    stdin: str = ""
    expected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one case.

    ``Verdict(passed=False, detail="got 4")``; the detail is for people, never for the policy.
    """

    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What came of all cases. ``Grade(verdicts=(Verdict(passed=True),)).share`` is 1.0."""

    verdicts: tuple[Verdict, ...]

    @property
    def share(self) -> float:
        """The share of cases that passed; 0 where there are none."""
        return sum(verdict.passed for verdict in self.verdicts) / len(self.verdicts) if self.verdicts else 0.0

    @property
    def passed(self) -> bool:
        """Whether there were cases and all of them passed."""
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)


async def take_files(sandbox: Sandbox, paths: Sequence[str]) -> dict[str, bytes]:
    """The named files of a sandbox, and nothing else that lies there (no ``conftest.py``, no ``.pth``).

    Missing files are left out, and so are things that are no regular files or larger than ``file_mb``.

    Raises:
        SandboxLost: the engine is gone.
        SandboxClosed: the sandbox has ended.
    """
    if len(paths) > MAX_FILES:
        raise ValueError(f"at most {MAX_FILES} files, got {len(paths)}")
    taken: dict[str, bytes] = {}
    for path in paths:
        try:
            taken[path] = await sandbox.read_bytes(path)
        except SandboxFileError:
            continue
    return taken


def equal(got: JSON, expected: JSON) -> bool:
    """Whether two JSON values are the same: types count (1 is not True, 1 is not 1.0), NaN equals nothing."""
    if type(got) is not type(expected):
        return False
    if isinstance(got, dict):
        return got.keys() == expected.keys() and all(equal(got[key], expected[key]) for key in got)
    if isinstance(got, list):
        return len(got) == len(expected) and all(equal(a, b) for a, b in zip(got, expected, strict=True))
    return got == expected


def close(got: JSON, expected: JSON, *, tolerance: float = 1e-6) -> bool:
    """As `equal`, with numbers (not booleans) equal within a relative and absolute tolerance."""
    numbers = (int, float)
    if type(got) in numbers and type(expected) in numbers:
        return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(
            close(a, b, tolerance=tolerance) for a, b in zip(got, expected, strict=True)
        )
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(close(got[key], expected[key], tolerance=tolerance) for key in got)
    return equal(got, expected)


def same_lines(got: str, expected: str) -> bool:
    """Whether two outputs have the same lines, trailing blanks and blank lines at the end aside."""
    return [line.rstrip() for line in got.rstrip().splitlines()] == [
        line.rstrip() for line in expected.rstrip().splitlines()
    ]


async def grade_function(
    open_fresh: OpenSandbox,
    files: Files,
    entry: str,
    cases: Sequence[Case],
    *,
    compare: Callable[[JSON, JSON], bool] = equal,
    timeout_s: float = 10.0,
) -> Grade:
    """Call a function of the candidate's files on each case's arguments and compare what it returns, on the host.

    Args:
        open_fresh: opens a fresh sandbox, for example ``pool.acquire``.
        files: what to put into it, by relative path; see `take_files`.
        entry: module and function, ``"solution:add"``.
        cases: arguments (JSON) and expected values.
        compare: takes the claimed and the expected value, both as JSON gives them (tuples are lists).
        timeout_s: deadline of each case.

    Raises:
        ValueError: ``entry`` is not of the form module:function.
        SandboxLost: the engine is gone: the grade is unknown, not zero.
    """
    module, colon, function = entry.partition(":")
    if not colon or not module or not function.isidentifier():
        raise ValueError(f"entry must be module:function, got {entry!r}")

    async def run(sandbox: Sandbox, case: Case) -> Verdict:
        call = json.dumps(
            {"module": module, "function": function, "args": list(case.args), "kwargs": dict(case.kwargs)}
        )
        # The call is data for a program that is the same for all cases; the claim is its last line.
        result = await sandbox.run(["python3", "-c", _CALLER()], stdin=call, timeout_s=timeout_s)
        return _judge(result, lambda text: compare(_claim(text), json.loads(json.dumps(case.expected))))

    return await _grade(open_fresh, files, cases, run)


async def grade_program(
    open_fresh: OpenSandbox,
    files: Files,
    command: Sequence[str],
    cases: Sequence[IOCase],
    *,
    compare: Callable[[str, str], bool] = same_lines,
    timeout_s: float = 10.0,
) -> Grade:
    """Run the candidate's program on each case's standard input and compare its standard output, on the host.

    Its exit code proves nothing and is not looked at. Arguments and errors as in `grade_function`.
    """

    async def run(sandbox: Sandbox, case: IOCase) -> Verdict:
        result = await sandbox.run(command, stdin=case.stdin, timeout_s=timeout_s)
        return _judge(result, lambda text: compare(text, case.expected))

    return await _grade(open_fresh, files, cases, run)


async def _grade(
    open_fresh: OpenSandbox, files: Files, cases: Sequence[Any], run: Callable[[Sandbox, Any], Any]
) -> Grade:
    verdicts: list[Verdict] = []
    async with open_fresh() as sandbox:
        for case in cases:
            try:
                # Again for each case: an earlier run of the candidate may have changed them.
                await sandbox.write_many(files)
                verdicts.append(await run(sandbox, case))
            except ProgramError as error:  # its own doing, such as a sandbox brought down: the rest has not passed
                verdicts.append(Verdict(passed=False, detail=str(error)))
    return Grade(verdicts=tuple(verdicts))


def _judge(result: CommandResult, compare: Callable[[str], bool]) -> Verdict:
    if result.timed_out or result.oom or result.output_cut:
        return Verdict(passed=False, detail=str(result.end))
    try:
        passed = bool(compare(result.stdout))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        return Verdict(passed=False, detail=f"no claim that can be read: {error}; {result.stderr[-300:]}")
    return Verdict(passed=passed, detail="" if passed else f"got {result.stdout[-300:]!r}")


def _claim(text: str) -> JSON:
    """The JSON value in the last line of output. Raises ValueError: there is none, or it is not plain JSON."""
    lines = text.splitlines()
    if not lines:
        raise ValueError("no output")

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(lines[-1], parse_constant=refuse)
