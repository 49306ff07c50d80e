"""`main`: exit codes, one line per error, quick start-up; and the commands that need no model."""

import argparse
import errno
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from tests.store.groups import make_group
from toolgym.cli import bench as bench_command
from toolgym.cli import main as run_main
from toolgym.cli.main import BROKEN_PIPE, COMMANDS, root_cause
from toolgym.errors import ConfigError, EngineError, TrainingError
from toolgym.store import RunStore, StoreError

ROOT = Path(__file__).resolve().parents[2]
Output = pytest.CaptureFixture[str]


def command_that(monkeypatch: pytest.MonkeyPatch, handler: Callable[[argparse.Namespace], int]) -> None:
    """Make ``toolgym config`` call a handler of our own."""
    module = type(sys)("fake_command")

    def register(subparsers: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
        parser = subparsers.add_parser("config")
        parser.add_argument("words", nargs="*")
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(handler=handler)

    module.register = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(COMMANDS, "config", ("fake_command", "a fake"))


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def handler(_: argparse.Namespace) -> int:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("unknown recipe\n'x'"), 2, "toolgym: unknown recipe 'x'"),
        (EngineError("hung"), 1, "toolgym: hung"),
        (StoreError("run.db: the disk is full"), 1, "toolgym: run.db: the disk is full"),
        (KeyboardInterrupt(), 130, "toolgym: interrupted"),
        (KeyError("x"), 1, "toolgym: KeyError: 'x' (unexpected: --debug shows where)"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            1,
            "toolgym: the disk is full (runs/x): free some space, then go on with --resume",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "toolgym: [Errno 13] Permission denied: 'x'"),
        (ExceptionGroup("g", [ValueError("a"), TrainingError("most episodes fail")]), 1, "toolgym: most episodes fail"),
    ],
)
def test_main_turns_errors_into_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capfd: Output
):
    command_that(monkeypatch, raising(error))
    assert run_main(["config"]) == code
    out, err = capfd.readouterr()
    assert (out, err) == ("", line + "\n")


def test_main_shows_a_traceback_only_with_debug(monkeypatch: pytest.MonkeyPatch, capfd: Output):
    command_that(monkeypatch, raising(EngineError("hung")))
    assert run_main(["config", "--debug"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.endswith("toolgym: hung\n")


def test_main_takes_words_between_options(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []

    def handler(args: argparse.Namespace) -> int:
        seen.append(args.words)
        return 0

    command_that(monkeypatch, handler)
    assert run_main(["config", "quickstart", "--json", "seed=1", "a.b=-2"]) == 0
    assert seen == [["quickstart", "seed=1", "a.b=-2"]]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'? known: algo, bench"),
        (["config", "show", "quikstart"], "unknown recipe 'quikstart'; did you mean 'quickstart'? known: "),
        (["train", "quikstart"], "unknown recipe 'quikstart'; did you mean 'quickstart'? known: "),
        (["train", "none.toml"], "no recipe file 'none.toml'; recipes known by name: "),
        (["train", "quickstart", "lookup"], "got two recipes, 'quickstart' and 'lookup'"),
        (["train", "--resume", "none"], "unknown run 'none'; known: (none) (in runs/)"),
        (["runs", "show", "none"], "unknown run 'none'; known: (none) (in runs/)"),
        (
            ["env", "info", "toolgym/pyton-v0"],
            "unknown environment 'toolgym/pyton-v0'; did you mean 'toolgym/python-v0'?",
        ),
        (["env", "info", "toolgym/lookup-v0", "sed=1"], "unknown argument of toolgym/lookup-v0 'sed'"),
        (["env", "play", "toolgym/lookup-v0", "--task", "x"], "toolgym/lookup-v0 has no task 'x'"),
        (["env", "inf"], "argument list|info|play: invalid choice: 'inf'"),
        (["runs", "list", "--jsn"], "unknown argument '--jsn'; see toolgym runs --help"),
        (["algo", "show", "group_advantag"], "unknown algorithm 'group_advantag'; did you mean 'group_advantage'?"),
    ],
)
def test_wrong_names_are_one_line_and_exit_code_2(
    words: list[str], expected: str, capfd: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    assert run_main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"toolgym: {expected}")
    assert err.count("\n") == 1


def test_root_cause_prefers_the_interrupt_then_our_own_errors():
    inner = ExceptionGroup("in", [OSError("x"), EngineError("e")])
    assert str(root_cause(ExceptionGroup("out", [KeyError("k"), inner]))) == "e"
    group = BaseExceptionGroup("out", [inner, KeyboardInterrupt()])
    assert isinstance(root_cause(group), KeyboardInterrupt)


def run_script(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolgym", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("words", [[], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_teaches_with_an_example(words: list[str], capfd: Output):
    assert run_main(words) == 0
    out = capfd.readouterr().out
    assert "  toolgym " + (words[0] if len(words) == 2 else "train") in out


def test_help_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run_script("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used_s < 0.5  # 0.2 on an idle machine; torch alone would take over a second


def test_broken_pipe_is_quiet():
    script = f"{sys.executable} -m toolgym algo list | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.returncode in (0, BROKEN_PIPE)  # 0 where everything fitted into the pipe


def test_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "toolgym", "env", "list"]
        result = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr == "toolgym: the disk is full: free some space, then go on with --resume\n"


def test_interrupt_ends_a_command_with_130():
    command = [sys.executable, "-m", "toolgym", "env", "play", "toolgym/lookup-v0"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "user:" not in (line := process.stdout.readline()):
        assert line, "the command ended by itself"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "toolgym: interrupted\n")


def test_env_list_and_info(capfd: Output):
    assert run_main(["env", "list", "--json"]) == 0
    assert {"toolgym/python-v0", "toolgym/lookup-v0"} <= json.loads(capfd.readouterr().out).keys()
    assert run_main(["env", "info", "toolgym/lookup-v0", "--json"]) == 0
    data = json.loads(capfd.readouterr().out)
    assert data["env"] == "toolgym/lookup-v0"
    assert data["tasks"]["test"] >= 400
    assert data["tools"][0]["function"]["name"]
    assert run_main(["env", "info", "toolgym/lookup-v0"]) == 0
    assert "tools:" in capfd.readouterr().out


def test_env_play_reads_answers_from_standard_input():
    result = run_script("env", "play", "toolgym/lookup-v0", input="!nothing [1]\n!nothing {}\nI am not sure.\n")
    assert result.returncode == 0
    assert "is no JSON object; a call is like" in result.stdout
    assert "tool: " in result.stdout
    assert "=> score 0" in result.stdout
    assert run_script("env", "play", "toolgym/lookup-v0", input="").stdout.endswith("left before the end\n")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    with RunStore.create(folder / "run.db") as store:
        store.add_group(make_group("g0"), number=0)
        store.log_metrics(1, {"success": 0.25}, phase="train")
        store.log_metrics(2, {"success": 0.75}, phase="train")
        store.commit_checkpoint(folder / "checkpoints" / "2", step=2, trained=["g0"])
    heldout = {"toolgym/python-v0": {"sampled": {"mean": 0.5, "ci95": [0.4, 0.6], "n": 400}}}
    summary = {"recipe": "quickstart", "seed": 3, "heldout_before": heldout, "heldout_after": heldout}
    (folder / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "runs" / "latest").symlink_to("first")
    return tmp_path / "runs"


def test_runs_list_and_show(runs: Path, capfd: Output):
    assert run_main(["runs", "list", "--runs-dir", str(runs), "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert (row["run"], row["recipe"], row["step"], row["after"], row["state"]) == (
        "first",
        "quickstart",
        2,
        0.5,
        "finished",
    )
    show = ["runs", "show", "latest", "--runs-dir", str(runs)]
    assert run_main([*show, "--json", "--episodes", "2"]) == 0
    data = json.loads(capfd.readouterr().out)
    assert data["metrics"] == {"train": {"success": 0.75, "step": 2}}
    assert data["groups"] == {"trained": 1}
    assert len(data["episodes"]) == 2
    assert data["episodes"][0]["messages"][2]["content"] == "4"
    assert run_main(["runs", "show", str(runs / "first"), "--episodes", "1", "--failed"]) == 0
    out = capfd.readouterr().out
    assert "failed (sandbox: gone)" in out
    assert "held out, after: toolgym/python-v0: sampled 0.500 [0.400, 0.600] of 400" in out
    assert "checkpoints: 1, the last of step 2" in out


def test_runs_show_names_the_nearest(runs: Path, capfd: Output):
    assert run_main(["runs", "show", "frist", "--runs-dir", str(runs)]) == 2
    assert "unknown run 'frist'; did you mean 'first'? known: first, latest" in capfd.readouterr().err


def test_algo_list_and_show(capfd: Output):
    assert run_main(["algo", "show", "group_advantage", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["family"] == "advantage"
    assert run_main(["algo", "show", "group_advantage"]) == 0
    assert "source:" in capfd.readouterr().out
    assert run_main(["algo", "show", "grpo"]) == 0  # a preset, with the functions it is made of
    out = capfd.readouterr().out
    assert 'in a recipe: algorithm = "grpo"' in out
    assert "group_advantage (advantage)" in out
    assert "ppo_clip (policy_loss)" in out
    assert run_main(["algo", "show", "ctpo", "--json"]) == 0  # a preset and a function of one name
    shown = json.loads(capfd.readouterr().out)
    assert shown["family"] == "policy_loss"
    assert [card["name"] for card in shown["preset"]["cards"]] == ["group_advantage", "truncated_is", "row_weights"]
    assert run_main(["algo", "show", "ppo"]) == 0
    assert "it awaits a critic" in capfd.readouterr().out
    assert run_main(["algo", "list"]) == 0
    out = capfd.readouterr().out
    assert 'algorithm = "dr_grpo"' in out
    assert "awaits a critic" in out
    assert "Group-relative advantage" in out
    assert run_main(["algo", "list", "--family", "preset", "--json"]) == 0
    assert {m["family"] for m in json.loads(capfd.readouterr().out)} == {"preset"}
    assert run_main(["algo", "list", "--family", "advantag"]) == 2
    assert "did you mean 'advantage'?" in capfd.readouterr().err


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "speed.py").write_text(
        "def run(*, n=1):\n"
        "    return dict(name='speed', ours=1.0 / n, baseline=2.0, ratio=float('nan'), unit='s', details={'n': n})\n"
    )
    (folder / "broken.py").write_text("\ndef run():\n    return {'name': 'broken'}\n")
    (folder / "helper.py").write_text("x = 1\n")
    monkeypatch.setattr(bench_command, "FOLDER", folder)
    return folder


def test_bench_prints_one_object(benchmarks: Path, capfd: Output):
    assert run_main(["bench", "speed", "n=2", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result == {
        "name": "speed",
        "ours": 0.5,
        "baseline": 2.0,
        "ratio": None,
        "unit": "s",
        "details": {"n": 2},
    }
    assert run_main(["bench", "speed"]) == 0
    assert "baseline  2\n" in capfd.readouterr().out
    assert run_main(["bench", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == ["broken", "speed"]


def test_bench_refuses_wrong_names_and_results(benchmarks: Path, capfd: Output):
    assert run_main(["bench", "sped"]) == 2
    assert run_main(["bench", "speed", "m=1"]) == 2
    assert run_main(["bench", "broken"]) == 1
    err = capfd.readouterr().err.splitlines()
    assert "benchmark 'broken' returned no ours, baseline" in err[2]


def test_bench_without_a_checkout_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_command, "FOLDER", tmp_path / "none")
    with pytest.raises(ConfigError, match="benchmarks come with a checkout"):
        bench_command.list_benchmarks()


def test_main_runs_inside_no_event_loop(monkeypatch: pytest.MonkeyPatch):
    async def work() -> int:
        await anyio.lowlevel.checkpoint()
        return 0

    command_that(monkeypatch, lambda _: anyio.run(work))
    assert run_main(["config"]) == 0
