"""Reporters: what a run's watcher sees on a terminal, in a log, and as JSON lines."""

import io
import json
import math

import pytest

from toolgym.cli.progress import JsonReporter, LineReporter, TerminalReporter, make_reporter, summarize
from toolgym.trainer.reporter import Reporter


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def play(reporter: Reporter) -> None:
    reporter.phase("warm start", total=2)
    reporter.advance(1, loss=0.5)
    reporter.advance(1, loss=0.25)
    reporter.note("the sandbox is local")
    reporter.phase("train", total=None)
    reporter.advance(3, success=0.5, failed_sandbox=2.0, time_generate_s=3.0, time_learn_s=1.0)
    reporter.done()
    reporter.done()


def test_summarize_labels_the_known_and_groups_times_and_failures():
    numbers = {
        "time_generate_s": 3.0,
        "time_learn_s": 1.0,
        "time_step_s": 4.0,
        "my_number": 12.34567,
        "failed_sandbox": 2.0,
        "failed_env": 0.0,
        "failed_episodes": 2.0,
        "failed_share": 0.01,
        "success": 0.5,
        "logprob_max_abs_diff": 1.5e-6,
    }
    assert summarize(numbers) == [
        ("success", "50.0%"),
        ("failed", "1.0%"),
        ("logprob difference", "1.5e-06"),
        ("seconds/step", "4.00"),
        ("my number", "12.35"),
        ("failures", "sandbox 2"),
        ("time", "generate 75%, learn 25%"),
    ]


def test_summarize_shows_other_numbers_only_when_they_are_few():
    assert summarize({"copy_loss": 0.5, "tokens": 12345.6}) == [("copy loss", "0.5"), ("tokens", "12,346")]
    many = {f"n{i}": 1.0 for i in range(9)}
    assert summarize({"success": 1.0} | many) == [("success", "100.0%")]


def test_line_reporter_writes_a_line_per_step_and_the_end_of_each_phase():
    out = io.StringIO()
    play(LineReporter(out))
    lines = out.getvalue().splitlines()
    assert lines[0] == "warm start: 0/2"
    assert lines[1] == "warm start: 1/2  loss 0.5000"
    assert lines[2] == "the sandbox is local"
    assert lines[3].startswith("warm start: 2/2  loss 0.2500  ")
    assert lines[4] == "train …"
    assert lines[5] == "train: 3  success 50.0%  failures sandbox 2  time generate 75%, learn 25%"
    assert len(lines) == 7


def test_line_reporter_stays_short_however_long_the_phase():
    out = io.StringIO()
    reporter = LineReporter(out)
    reporter.phase("sft", total=10_000)
    for _ in range(10_000):
        reporter.advance(1, loss=0.5)
    reporter.done()
    assert 30 < len(out.getvalue().splitlines()) < 50


def test_line_reporter_that_only_counts_writes_a_line_a_second(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("toolgym.cli.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    reporter = LineReporter(out)
    reporter.phase("evaluate", total=100)
    for _ in range(100):
        now[0] += 0.03
        reporter.advance(1)
    reporter.done()
    assert out.getvalue().splitlines() == [
        "evaluate: 0/100",
        "evaluate: 34/100",
        "evaluate: 68/100",
        "evaluate: 100/100  3.0 s",
    ]


def test_json_reporter_writes_one_object_a_line_and_null_for_nan():
    out = io.StringIO()
    reporter = JsonReporter(out)
    play(reporter)
    reporter.phase("odd")
    reporter.advance(1, loss=math.nan)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [e["event"] for e in events[:5]] == ["phase", "progress", "progress", "note", "done"]
    assert events[1] == {
        "event": "progress",
        "phase": "warm start",
        "done": 1,
        "total": 2,
        "numbers": {"loss": 0.5},
    }
    assert events[-1]["numbers"] == {"loss": None}


def test_terminal_reporter_shows_bars_numbers_and_notes():
    out = Terminal()
    play(TerminalReporter(out))
    text = out.getvalue()
    assert "warm start" in text
    assert "2/2" in text
    assert "the sandbox is local" in text
    assert "failures" in text


@pytest.mark.parametrize("kind", [LineReporter, JsonReporter])
def test_reporters_outlive_a_broken_stream(kind: type[LineReporter] | type[JsonReporter]):
    play(kind(Broken()))


def test_make_reporter_suits_the_stream():
    assert isinstance(make_reporter(as_json=False, stream=io.StringIO()), LineReporter)
    assert isinstance(make_reporter(as_json=False, stream=Terminal()), TerminalReporter)
    assert isinstance(make_reporter(as_json=True, stream=Terminal()), JsonReporter)
