"""Tests that need something which this machine lacks are skipped, and say what they needed."""

import importlib.util
import signal
import threading
from collections.abc import Iterable

import pytest
from hypothesis import settings

from tests.docker_engine import docker_answers

settings.register_profile("toolgym", deadline=None)  # a busy machine is not a wrong answer
settings.load_profile("toolgym")

# A shell that starts us in the background hands down an ignored SIGINT, and what we start would ignore Ctrl-C too.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

PACKAGES = ("vllm", "ray")  # markers named like the package that they need


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skip by marker."""
    for item in items:
        if item.get_closest_marker("docker") and not docker_answers():
            item.add_marker(pytest.mark.skip(reason="no Docker engine answers"))
        for name in PACKAGES:
            if item.get_closest_marker(name) and importlib.util.find_spec(name) is None:
                item.add_marker(pytest.mark.skip(reason=f"{name} is not installed"))
