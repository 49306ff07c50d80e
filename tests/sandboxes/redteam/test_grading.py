"""Candidates that would rather be graded well than compute: none passes, in real containers.

A candidate works in one container, from which only the file that is asked for is taken; it runs in a fresh one, and
what it claims is compared on the host.
"""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from toolgym.sandboxes import Sandbox, SandboxSpec, open_sandbox
from toolgym.sandboxes.grading import Case, Grade, IOCase, grade_function, grade_program, take_files

pytestmark = [pytest.mark.docker, pytest.mark.slow]

SPEC = SandboxSpec(memory_mb=128, pids=32, tmp_mb=24, files=512, file_mb=4, output_kb=32, timeout_s=10)
SECRET = 918273645  # expected for arguments from which nobody could compute it
CASES = [Case(args=["opaque"], expected=SECRET)]

SOURCES = {
    "exit before the tests": "import sys\nsys.exit(0)",
    "hard exit before the tests": "import os\nprint('1 passed')\nos._exit(0)",
    "hard exit in the test": "import os\ndef solve(x):\n    print('{\"passed\": true}', flush=True)\n    os._exit(0)",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef solve(x): return True",
    "patched unittest and pytest": "import sys, types, unittest\n"
    "unittest.TestCase.run = lambda self, result=None: result\nunittest.TestCase.assertEqual = lambda *a, **k: None\n"
    "fake = types.ModuleType('pytest')\nfake.main = lambda *a, **k: 0\nsys.modules['pytest'] = fake\n"
    "def solve(x): return True",
    "patched json": "import json\njson.dumps = lambda *a, **k: 'true'\njson.loads = lambda *a, **k: True\n"
    "json.JSONEncoder.encode = lambda *a: 'true'\ndef solve(x): return 1",
    "forged results": "for name in ('result.json', 'results.json', 'report.xml', '/tmp/reward.txt', 'score'):\n"
    "    open(name, 'w').write('{\"passed\": true, \"reward\": 1.0}')\nprint('PASSED')\ndef solve(x): return 'PASSED'",
    "equal to everything": "class Same(int):\n    def __eq__(self, other): return True\n"
    "    def __hash__(self): return 0\n    def __ne__(self, other): return False\ndef solve(x): return Same(1)",
    "equal to everything, as text": "class Same(str):\n    def __eq__(self, other): return True\n"
    "def solve(x): return Same('x')",
    "patched builtins": "import builtins\nbuiltins.isinstance = builtins.all = builtins.any = lambda *a: True\n"
    "builtins.type = lambda *a: int\ndef solve(x): return None",
    "not a number": "def solve(x): return float('nan')",
    "every number": "def solve(x): return list(range(1000))",
    "deep nesting": "def solve(x):\n    for _ in range(900): x = [x]\n    return x",
    "deep text": "import os\ndef solve(x):\n    print('[' * 20000 + ']' * 20000, flush=True)\n    os._exit(0)",
    "huge number": "import os\ndef solve(x):\n    print('9' * 20000, flush=True)\n    os._exit(0)",
}  # fmt: skip

LOOKING = """
import gc, os, sys
def solve(x):
    seen = []
    frame = sys._getframe()
    while frame:
        seen += [repr(frame.f_locals), repr({k: v for k, v in frame.f_globals.items() if k != '__builtins__'})]
        frame = frame.f_back
    seen += [repr(item) for item in gc.get_objects() if isinstance(item, (dict, list, tuple, str, int))]
    for pid in os.listdir('/proc'):
        for name in ('cmdline', 'environ', 'mem'):
            try: seen.append(open(f'/proc/{pid}/{name}', 'rb').read(1 << 20).decode('latin-1'))
            except OSError: pass
    for root in ('/tmp', '/home', '/dev/shm', '/run', '/var', '/etc', '/mnt', '/opt', '/srv'):
        for folder, _, names in os.walk(root):
            for name in names:
                try: seen.append(open(os.path.join(folder, name), 'rb').read(1 << 16).decode('latin-1'))
                except OSError: pass
    try: seen.append(sys.stdin.read())
    except ValueError: pass
    part = str(9182736)  # so that this text is not what is found
    found = [text[text.index(part):][:9] for text in seen if part + '45' in text]
    return int(found[0]) if found else None
"""


def fresh() -> AbstractAsyncContextManager[Sandbox]:
    """A fresh container."""
    return open_sandbox("docker", SPEC, run_id="redteam")


async def grade(files: dict[str, bytes]) -> Grade:
    """The grade of a candidate's files."""
    return await grade_function(fresh, files, "solution:solve", CASES, timeout_s=8.0)


@pytest.mark.parametrize("name", SOURCES)
async def test_cheating_source_does_not_pass(name: str):
    result = await grade({"solution.py": SOURCES[name].encode()})
    assert [verdict.passed for verdict in result.verdicts] == [False]


async def test_introspection_finds_no_expected_value():
    result = await grade({"solution.py": LOOKING.encode()})
    assert [verdict.passed for verdict in result.verdicts] == [False]
    assert result.verdicts[0].detail.startswith("got")  # it ran to its end and claimed to have found nothing
    assert "null" in result.verdicts[0].detail


async def test_introspection_would_find_a_value_that_leaks():
    assert (await grade({"solution.py": LOOKING.encode(), "leak.txt": str(SECRET).encode()})).passed


async def test_the_same_grader_passes_what_is_right():
    assert (await grade({"solution.py": f"def solve(x): return {SECRET}".encode()})).passed


PLANTED = """
import os, site
hook = "import builtins, json\\njson.dumps = lambda *a, **k: '{secret}'\\nbuiltins.solve = 1\\nprint({secret})"
home = os.path.expanduser('~')
for name in ('conftest.py', 'sitecustomize.py', 'usercustomize.py', 'json.py', 'importlib.py', 'pytest.py'):
    open(os.path.join(home, name), 'w').write(hook)
user = site.getusersitepackages()
os.makedirs(user, exist_ok=True)
for name in ('usercustomize.py', 'sitecustomize.py'):
    open(os.path.join(user, name), 'w').write(hook)
open(os.path.join(user, 'hook.pth'), 'w').write("import builtins; print({secret})\\n")
open(os.path.join(home, 'pytest.ini'), 'w').write('[pytest]\\naddopts = -p conftest\\n')
open(os.path.join(home, '.pythonrc'), 'w').write(hook)
open(os.path.join(home, 'solution.py'), 'w').write('def solve(x): return 0')
""".replace("{secret}", str(SECRET))


async def test_hooks_planted_beside_the_solution_are_left_behind():
    async with fresh() as workshop:
        assert (await workshop.run_code(PLANTED)).error is None
        # They do work where they were planted, so that being left behind is what defeats them.
        assert str(SECRET) in (await workshop.run(["python3", "-c", "pass"])).stdout
        taken = await take_files(workshop, ["solution.py"])
    assert [*taken] == ["solution.py"]
    assert not (await grade(taken)).passed


async def test_pickles_are_not_loaded_on_the_host(tmp_path: Path):
    mark = tmp_path / "mark"
    source = (
        "import os, pickle\n"
        f"class Run:\n    def __reduce__(self): return os.system, ('touch {mark}',)\n"
        "def solve(x):\n    os.write(1, pickle.dumps(Run()) + b'\\n')\n"
        "    print(repr(pickle.dumps(Run())), flush=True)\n"
        "    os._exit(0)\n"
    )
    assert not (await grade({"solution.py": source.encode()})).passed
    assert not mark.exists()


async def test_program_is_judged_by_its_output_alone():
    programs = {
        "import sys\nprint('OK')\nsys.exit(0)": False,
        "print('\\x1b[2K\\r42')": False,
        "print('41')\nprint('42')": False,
        "print(42)": True,
    }
    for source, passes in programs.items():
        result = await grade_program(fresh, {"p.py": source.encode()}, ["python3", "p.py"], [IOCase(expected="42")])
        assert result.passed is passes, source
