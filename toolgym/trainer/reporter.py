"""What the trainer tells whoever watches it: phases, progress and numbers, as they come."""

from typing import Protocol


class Reporter(Protocol):
    """Shows a run while it goes. A reporter never raises and never blocks for long; the trainer does not look at it.

    Example::

        reporter.phase("warm start", total=400)
        reporter.advance(1, loss=0.31)
        reporter.done()
    """

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins (the one before ends); ``total`` is what `advance` will add up to, None if unknown."""
        ...

    def advance(self, n: int = 1, **numbers: float) -> None:
        """``n`` more are done; the numbers are the newest values by metric name (``success``, ``time_generate_s``)."""
        ...

    def note(self, text: str) -> None:
        """One line for people that stays on the screen."""
        ...

    def done(self) -> None:
        """The last phase ends and the display is taken down; harmless when called twice."""
        ...


class SilentReporter:
    """Shows nothing; for tests and programs that use the trainer as a library."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Nothing."""

    def advance(self, n: int = 1, **numbers: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def done(self) -> None:
        """Nothing."""
