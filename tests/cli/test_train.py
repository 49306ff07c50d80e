"""``toolgym train`` and ``eval`` up to where the trainer begins."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolgym.cli import main as run_main
from toolgym.cli import train as command
from toolgym.cli.evaluate import resolve
from toolgym.errors import ConfigError, TrainingError
from toolgym.store import RunStore

Output = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has begun."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    RunStore.create(folder / "run.db").close()
    (folder / "recipe.toml").write_text('schema = 1\nname = "mine"\nseed = 5\n')
    return folder


def test_train_resumes_with_the_runs_own_recipe_only(run: Path, capfd: Output):
    options = ["--resume", "first", "--runs-dir", str(run.parent)]
    assert run_main(["train", "seed=3", *options]) == 2
    assert "got 'seed=3' beside --resume: a run goes on with its own recipe" in capfd.readouterr().err


@pytest.mark.slow
def test_train_takes_the_recorded_config(run: Path):
    assert command._recorded_config(run, []).seed == 5


def test_train_refuses_a_runs_dir_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make the folder .*file/runs for runs: Not a directory"):
        command._make_folder(tmp_path / "file" / "runs")


def test_train_names_a_full_disk_whatever_the_library_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    obscure = RuntimeError("unexpected pos 640 vs 598")
    assert command._disk_error(obscure, tmp_path) is obscure
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    error = command._disk_error(obscure, tmp_path)
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC
    ours = TrainingError("most episodes fail")
    assert command._disk_error(ours, tmp_path) is ours


def test_eval_needs_a_finished_run_or_a_model(run: Path):
    with pytest.raises(
        ConfigError, match="the run first has no model yet: finish it with toolgym train --resume first"
    ):
        resolve("first", [], run.parent)
    with pytest.raises(ConfigError, match=r"is neither a run .* nor a model folder"):
        resolve(str(run.parent), [], run.parent)


@pytest.mark.slow
def test_eval_takes_the_runs_recipe_and_overrides_or_the_defaults(run: Path):
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    config, folder = resolve("first", ["evaluate.tasks=7"], run.parent)
    assert (config.seed, config.evaluate.tasks, folder) == (5, 7, run / "model")
    config, folder = resolve(str(run / "model"), ["seed=2"], run.parent)
    assert (config.seed, folder) == (2, run / "model")


SCORES = {"toolgym/python-v0": {"sampled": {"mean": 0.9, "ci95": [0.85, 0.93], "n": 400}}}


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_train_passes_the_recipe_on_and_prints_the_summary(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Output
):
    async def train(config, *, resume, reporter, runs_dir):
        reporter.phase("train", total=1)
        reporter.advance(1, success=0.5)
        return {"seed": config.seed, "resumed": resume is not None, "heldout_after": SCORES, "versions": {"x": "1"}}

    monkeypatch.setattr("toolgym.trainer.run.train", train)
    words = ["train", "lookup", "--runs-dir", str(tmp_path), "seed=4", *(["--json"] if as_json else [])]
    assert run_main(words) == 0
    lines = capfd.readouterr().out.splitlines()
    if as_json:
        events = [json.loads(line) for line in lines]
        assert [e["event"] for e in events] == ["phase", "progress", "done", "summary"]
        assert events[-1]["summary"]["seed"] == 4
        assert events[-1]["summary"]["heldout_after"] == SCORES
    else:
        assert lines[0] == "train: 0/1"
        assert lines[-3:] == [
            "seed: 4",
            "resumed: false",
            "after: toolgym/python-v0: sampled 0.900 [0.850, 0.930] of 400",
        ]
