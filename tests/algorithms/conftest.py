"""Hypothesis: no deadline, since a busy machine is not a wrong equation; the same examples in every run."""

from hypothesis import settings

settings.register_profile("algorithms", deadline=None, derandomize=True)
settings.load_profile("algorithms")
