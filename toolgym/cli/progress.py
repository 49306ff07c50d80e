"""Showing a run while it goes: bars and numbers on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from toolgym.cli.output import finite

if TYPE_CHECKING:
    from toolgym.trainer.reporter import Reporter

# Metric name -> (label, format): what one watches. The run database and --json have every number.
NUMBERS: dict[str, tuple[str, str]] = {
    "success": ("success", "{:.1%}"),
    "reward": ("reward", "{:.3f}"),
    "loss": ("loss", "{:.4f}"),
    "tool_calls_per_episode": ("tool calls/episode", "{:.2f}"),
    "parse_failure_rate": ("parse failures", "{:.1%}"),
    "failed_share": ("failed", "{:.1%}"),
    "staleness_max": ("staleness", "{:g}"),
    "logprob_max_abs_diff": ("logprob difference", "{:.1e}"),
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
    "time_step_s": ("seconds/step", "{:.2f}"),
}
OTHERS = 4  # so many numbers that are not in the list above are shown; more would bury it
FAILURES = "failed_"  # prefix of a count of failed episodes by kind: failed_sandbox
TOTAL = FAILURES + "episodes"  # of all kinds
TIMES = "time_"  # prefix, with suffix _s, of the seconds spent on a part: time_generate_s
LINES_PER_PHASE = 40  # plain output stays readable in a log however long the phase
COUNT_EVERY_S = 1.0  # a line that only counts, without numbers, is not worth more


def make_reporter(*, as_json: bool, stream: TextIO | None = None) -> Reporter:
    """The reporter that suits the stream (default: standard output)."""
    out = sys.stdout if stream is None else stream
    if as_json:
        return JsonReporter(out)
    return TerminalReporter(out) if out.isatty() else LineReporter(out)


def summarize(numbers: Mapping[str, float]) -> list[tuple[str, str]]:
    """Labels and values for people, in a fixed order; failures by kind and the time split are one entry each.

    Example: ``{"success": 0.5, "time_generate_s": 3.0, "time_learn_s": 1.0}`` gives
    ``[("success", "50.0%"), ("time", "generate 75%, learn 25%")]``.
    """
    rows = [(label, form.format(numbers[name])) for name, (label, form) in NUMBERS.items() if name in numbers]
    rest = {name: value for name, value in numbers.items() if name not in NUMBERS}
    times = {k[len(TIMES) : -2]: v for k, v in rest.items() if k.startswith(TIMES) and k.endswith("_s")}
    failures = {k.removeprefix(FAILURES): v for k, v in rest.items() if k.startswith(FAILURES) and k != TOTAL}
    others = {k: v for k, v in rest.items() if not k.startswith((TIMES, FAILURES))}
    if len(others) <= OTHERS:
        rows += [(name.replace("_", " "), _format(value)) for name, value in others.items()]
    if any(failures.values()):
        rows.append(("failures", ", ".join(f"{k} {v:g}" for k, v in failures.items() if v)))
    if total := sum(times.values()):
        rows.append(("time", ", ".join(f"{k} {v / total:.0%}" for k, v in times.items())))
    return rows


def _format(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


class _StreamReporter:
    """Counts a phase and writes lines; a stream that breaks ends the output, not the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._numbers: dict[str, float] = {}
        self._began = self._counted = time.monotonic()

    def _begin(self, name: str, total: int | None) -> None:
        self._name, self._total, self._done = name, total, 0
        self._numbers = {}
        self._began = self._counted = time.monotonic()

    def _write(self, line: str) -> None:
        if self._broken:
            return
        try:
            print(line, file=self._stream, flush=True)
        except (OSError, ValueError):  # the reader went away, the disk is full, or the stream is closed
            self._broken = True


class LineReporter(_StreamReporter):
    """Plain lines: one when a phase begins and ends, and up to `LINES_PER_PHASE` in between.

    Those without numbers come `COUNT_EVERY_S` apart at least.
    """

    def phase(self, name: str, total: int | None = None) -> None:
        """See `Reporter`."""
        self.done()
        self._begin(name, total)
        self._write(f"{name} …" if total is None else f"{name}: 0/{total}")

    def advance(self, n: int = 1, **numbers: float) -> None:
        """See `Reporter`."""
        before, self._done = self._done, self._done + n
        self._numbers |= numbers
        every = max(1, (self._total or 0) // LINES_PER_PHASE)
        due = bool(self._numbers) or time.monotonic() - self._counted >= COUNT_EVERY_S
        if due and self._done // every > before // every and self._done != self._total:
            self._counted = time.monotonic()
            self._write(self._line())

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self._write(text)

    def done(self) -> None:
        """See `Reporter`."""
        if self._name:
            self._write(f"{self._line()}  {time.monotonic() - self._began:.1f} s")
        self._name = ""

    def _line(self) -> str:
        count = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        return "  ".join([f"{self._name}: {count}", *(f"{k} {v}" for k, v in summarize(self._numbers))])


class JsonReporter(_StreamReporter):
    """One JSON object a line, for programs: events ``phase``, ``progress``, ``note`` and ``done``."""

    def phase(self, name: str, total: int | None = None) -> None:
        """See `Reporter`."""
        self.done()
        self._begin(name, total)
        self._event("phase", total=total)

    def advance(self, n: int = 1, **numbers: float) -> None:
        """See `Reporter`."""
        self._done += n
        self._event("progress", done=self._done, total=self._total, numbers=numbers)

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self._event("note", text=text)

    def done(self) -> None:
        """See `Reporter`."""
        if self._name:
            self._event("done", done=self._done, wall_s=round(time.monotonic() - self._began, 3))
        self._name = ""

    def _event(self, event: str, **fields: Any) -> None:
        self._write(json.dumps(finite({"event": event, "phase": self._name, **fields}), ensure_ascii=False))


class TerminalReporter:
    """Progress bars, one per phase, with the newest numbers under them; notes scroll by above."""

    def __init__(self, stream: TextIO) -> None:
        self._task: Any = None
        self._numbers: dict[str, float] = {}
        progress = importlib.import_module("rich.progress")  # rich takes 50 ms to import
        console = importlib.import_module("rich.console").Console(file=stream)
        self._table = importlib.import_module("rich.table").Table
        self._group = importlib.import_module("rich.console").Group
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=32),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
        )
        self._live = importlib.import_module("rich.live").Live(
            console=console, refresh_per_second=4, get_renderable=self._render
        )

    def phase(self, name: str, total: int | None = None) -> None:
        """See `Reporter`."""
        self._finish()
        self._numbers = {}
        self._task = self._bars.add_task(name, total=total)
        self._live.start()

    def advance(self, n: int = 1, **numbers: float) -> None:
        """See `Reporter`."""
        self._numbers |= numbers
        if self._task is not None:
            self._bars.advance(self._task, n)

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self._live.console.print(text, markup=False, highlight=False)

    def done(self) -> None:
        """See `Reporter`."""
        self._finish()
        self._live.stop()

    def _finish(self) -> None:
        if self._task is not None:
            self._bars.stop_task(self._task)
            self._task = None

    def _render(self) -> Any:
        grid = self._table.grid(padding=(0, 2))
        for label, value in summarize(dict(self._numbers)):
            grid.add_row(f"  {label}", value)
        return self._group(self._bars, grid)
