"""``toolgym sandbox`` as one uses it."""

import json
from pathlib import Path

import pytest

from toolgym.cli import main


def test_run_prints_what_the_program_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    program = tmp_path / "p.py"
    program.write_text("print('hello')\n6 * 7")
    assert main(["sandbox", "run", str(program), "--provider", "local"]) == 0
    out, err = capsys.readouterr()
    assert out == "hello\n42\n"
    assert err.startswith("sandbox: local: isolates memory; DOES NOT ISOLATE network")


def test_run_shows_errors_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    program = tmp_path / "p.py"
    program.write_text("1 / 0")
    assert main(["sandbox", "run", str(program), "--provider", "local"]) == 1
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err
    program.write_text("while True: pass")
    assert main(["sandbox", "run", str(program), "--provider", "local", "--timeout-s", "0.1"]) == 1
    assert capsys.readouterr().err.endswith("[timeout]\n")


def test_run_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    program = tmp_path / "p.py"
    program.write_text("print(1)")
    assert main(["sandbox", "run", str(program), "--provider", "local", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["stdout"], result["end"], result["exit_code"]) == ("1\n", "exited", 0)


def test_run_without_file_or_with_an_unknown_provider_is_the_users_to_mend(capsys: pytest.CaptureFixture[str]):
    assert main(["sandbox", "run", "/no/such.py"]) == 2
    assert "no file /no/such.py" in capsys.readouterr().err
    assert main(["sandbox", "run", __file__, "--provider", "dokcer"]) == 2
    assert "did you mean 'docker'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "ps"])
def test_without_an_engine_says_what_to_do(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    assert main(["sandbox", command]) == 1
    out, err = capsys.readouterr()
    assert "no Docker engine answers at unix://" in out + err
    assert "scripts/setup-docker.sh" in out if command == "doctor" else "toolgym sandbox doctor" in err


@pytest.mark.docker
@pytest.mark.slow
def test_build_ps_and_prune(capsys: pytest.CaptureFixture[str]):
    assert main(["sandbox", "build", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image"].startswith("toolgym/python:")
    assert main(["sandbox", "ps", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    assert main(["sandbox", "prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] >= 0
