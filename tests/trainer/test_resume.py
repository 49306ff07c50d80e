"""``kill -9`` at five named points, then ``--resume``; and determinism. Real processes, real files.

Pinned: the resumed run ends as the undisturbed one, in deterministic mode with the same parameters bit for bit; every
group that was finished stays finished and none is trained on twice; nothing of the killed run is left running.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from toolgym.store import RunStore

PLAY = Path(__file__).with_name("play_run.py")
DETERMINISTIC = ("deterministic=true", "rollout.max_staleness=0")
POINTS = ("mid_rollout:25", "group_written:7", "gradient_step:3", "checkpoint_written:2", "publish:6")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def play(runs: Path, *words: str, crash: str | None = None, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment.pop("TOOLGYM_CRASH", None)
    if crash:
        environment["TOOLGYM_CRASH"] = crash
    command = [sys.executable, str(PLAY), str(runs), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def parameters(runs: Path) -> dict[str, torch.Tensor]:
    return load_file(runs / "latest" / "model" / "model.safetensors")


def assert_equal_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    done = play(runs, *DETERMINISTIC, hash_seed="1")
    assert done.returncode == 0, done.stderr
    with RunStore.open(runs / "latest" / "run.db", read_only=True) as store:
        assert list(store.group_states().values()).count("trained") >= 10  # of 20: there is something to repeat
        first = store.checkpoints()[0].path
    before, after = load_file(next(first.rglob("*.safetensors"))), parameters(runs)
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() & after.keys())
    return runs


def test_deterministic_runs_agree_whatever_the_delays_and_the_hash_seed(undisturbed: Path, tmp_path: Path) -> None:
    done = play(tmp_path, *DETERMINISTIC, "--delays", hash_seed="2")
    assert done.returncode == 0, done.stderr
    assert_equal_bits(parameters(undisturbed), parameters(tmp_path))


@pytest.mark.parametrize("point", POINTS)
def test_killed_run_resumes_to_the_same_parameters(point: str, undisturbed: Path, tmp_path: Path) -> None:
    killed = play(tmp_path, *DETERMINISTIC, crash=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_nothing_lives(tmp_path)
    with RunStore.open(tmp_path / "latest" / "run.db", read_only=True) as store:
        states = store.group_states()
        checkpoint = store.latest_checkpoint()
    resumed = play(tmp_path, *DETERMINISTIC, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_bits(parameters(undisturbed), parameters(tmp_path))
    with RunStore.open(tmp_path / "latest" / "run.db", read_only=True) as store:
        after = store.group_states()
        attempts = {t.group_id: t.attempt for e in store.episodes(split="train") for t in [e.trajectory]}
    assert len(after) == 5 * 4
    assert set(after.values()) <= {"trained", "skipped"}
    # What was finished before the kill was not played again: its episodes are still those of the first lineage.
    assert all(attempts[name] == 0 for name in states)
    if checkpoint is not None:
        assert any(attempt == 1 for attempt in attempts.values()) or len(states) == len(after)


def test_killed_run_that_discards_groups_resumes_to_the_same_parameters(tmp_path: Path) -> None:
    """DAPO's refill: groups without signal leave, others are played in their place, across a kill as well."""
    words = (*DETERMINISTIC, "curriculum.type=dynamic_sampling", "curriculum.batch=4", "curriculum.max_batches=200")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = play(whole, *words)
    assert done.returncode == 0, done.stderr
    # Step 3 follows the checkpoint of step 2, with groups finished and discarded since then.
    killed = play(broken, *words, crash="gradient_step:3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = play(broken, *words, "--resume", "--delays")
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_bits(parameters(whole), parameters(broken))
    for runs in (whole, broken):
        with RunStore.open(runs / "latest" / "run.db", read_only=True) as store:
            rows = Counter(store.group_states().values())
            discarded = sum(m.value for m in store.metrics("discarded_groups", phase="train"))
        assert rows["trained"] == 5 * 4  # all with signal
        assert rows["skipped"] == discarded > 0
        assert rows["finished"] == 0


def test_killed_asynchronous_run_that_discards_groups_loses_nothing(tmp_path: Path) -> None:
    words = ("rollout.max_staleness=2", "curriculum.type=dynamic_sampling", "curriculum.max_batches=50")
    killed = play(tmp_path, *words, crash="gradient_step:4")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = play(tmp_path, *words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    with RunStore.open(tmp_path / "latest" / "run.db", read_only=True) as store:
        rows = Counter(store.group_states().values())
        summary = store.meta("summary")
    assert rows["trained"] == 5 * 4
    assert rows["skipped"] > 0
    assert summary["max_staleness_seen"] <= 2


def test_killed_asynchronous_run_loses_and_repeats_nothing(tmp_path: Path) -> None:
    killed = play(tmp_path, "rollout.max_staleness=2", crash="gradient_step:3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with RunStore.open(tmp_path / "latest" / "run.db", read_only=True) as store:
        before = store.group_states()
    resumed = play(tmp_path, "--resume", "rollout.max_staleness=2")
    assert resumed.returncode == 0, resumed.stderr
    with RunStore.open(tmp_path / "latest" / "run.db", read_only=True) as store:
        after = store.group_states()
        rows = Counter(after.values())
        summary = store.meta("summary")
    assert before.keys() <= after.keys()
    assert rows["trained"] + rows["skipped"] == 5 * 4
    assert summary["max_staleness_seen"] <= 2
    assert summary["lineages"] == 2


def test_sigterm_ends_a_run_and_all_that_it_started(tmp_path: Path) -> None:
    command = [sys.executable, str(PLAY), str(tmp_path), "train.steps=1000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any((tmp_path / "latest").glob("checkpoints/step-*")), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"{len(gone)} ended, alive: {alive}"
    assert not list((tmp_path / "latest").rglob("*.partial"))


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    waiter = subprocess.Popen(["sleep", "200"])  # wakes us by ending, at the latest
    try:
        while not condition():  # type: ignore[operator]
            assert process.poll() is None, process.communicate()[1]
            assert waiter.poll() is None, "the run did not get so far in 200 s"
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
    finally:
        waiter.kill()
        waiter.wait()


def assert_nothing_lives(runs: Path) -> None:
    """No process that was started for these runs is left (the engine sees the end of its pipe)."""
    mine = [p for p in psutil.process_iter(["cmdline"]) if str(runs) in " ".join(p.info["cmdline"] or [])]
    _, alive = psutil.wait_procs(mine, timeout=20)
    assert not alive
