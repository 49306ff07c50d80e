"""Providers by name, and what may stand in for what."""

import os
import subprocess
import sys

import pytest

from toolgym.errors import ConfigError
from toolgym.sandboxes import FakeProvider, SandboxSpec, SandboxUnavailable, open_sandbox, providers, register_provider
from toolgym.sandboxes import provider as provider_module
from toolgym.sandboxes.base import CommandResult, End, ProgramOutOfMemory
from toolgym.sandboxes.owner import owner_is_dead, owner_name
from toolgym.sandboxes.provider import choose_provider, get_provider
from toolgym.sandboxes.slots import EngineSlots


@pytest.fixture
def only_local(monkeypatch: pytest.MonkeyPatch):
    """A machine without Docker and bubblewrap."""

    async def missing(self: object, spec: SandboxSpec) -> None:
        raise SandboxUnavailable("not here")

    for name in ("docker", "bubblewrap"):
        monkeypatch.setattr(type(get_provider(name)), "prepare", missing)


async def test_unknown_provider_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'docker'"):
        async with open_sandbox("dokcer"):
            pass


async def test_registered_provider_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provider_module, "_factories", {})
    monkeypatch.setattr(provider_module, "_providers", {})
    fake = FakeProvider()
    register_provider("mine", lambda: fake)
    assert "mine" in providers()
    async with open_sandbox("mine") as sandbox:
        assert sandbox is fake.opened[0]
    assert fake.opened[0].killed
    with pytest.raises(ConfigError, match="exists already"):
        register_provider("mine", lambda: fake)


@pytest.mark.usefixtures("only_local")
async def test_auto_falls_back_and_says_so():
    with pytest.warns(RuntimeWarning, match="local: isolates memory; DOES NOT ISOLATE network.*docker: not here"):
        assert (await choose_provider("auto", SandboxSpec())).name == "local"


@pytest.mark.usefixtures("only_local")
async def test_auto_does_not_fall_back_where_isolation_is_needed():
    with pytest.raises(SandboxUnavailable, match="needs an isolated sandbox"):
        await choose_provider("auto", SandboxSpec(needs_isolation=True))
    with pytest.raises(SandboxUnavailable, match="DOES NOT ISOLATE network"):
        await choose_provider("local", SandboxSpec(needs_isolation=True))


@pytest.mark.usefixtures("only_local")
async def test_a_named_provider_is_never_replaced():
    with pytest.raises(SandboxUnavailable, match="not here"):
        await choose_provider("docker", SandboxSpec())


@pytest.mark.parametrize(
    "wrong", [{"memory_mb": 0}, {"timeout_s": -1.0}, {"lifetime_s": float("inf")}, {"cpus": float("nan")}]
)
def test_spec_refuses_impossible_limits(wrong: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SandboxSpec(**wrong)  # type: ignore[arg-type]


def test_spec_refuses_an_allow_list_beside_the_whole_network():
    with pytest.raises(ConfigError, match="allow_hosts"):
        SandboxSpec(network=True, allow_hosts=("pypi.org:443",))


def test_check_raises_by_kind_of_end():
    with pytest.raises(ProgramOutOfMemory, match="out_of_memory"):
        CommandResult(end=End.OUT_OF_MEMORY, exit_code=-9).check()
    assert CommandResult(stdout="x").check().stdout == "x"


def test_owner_is_dead_only_when_known():
    child = subprocess.run(
        [sys.executable, "-c", "from toolgym.sandboxes.owner import owner_name; print(owner_name())"],
        capture_output=True, text=True, check=True, cwd=os.getcwd(), timeout=60,
    )  # fmt: skip
    assert owner_is_dead(child.stdout.strip())
    assert not owner_is_dead(owner_name())
    assert not owner_is_dead("otherboot.1.2.3")
    assert not owner_is_dead("")


def test_slots_are_shared_and_freed(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TOOLGYM_MAX_SANDBOXES", "2")
    ours, theirs = EngineSlots("e"), EngineSlots("e")
    first, second = ours.try_acquire(), theirs.try_acquire()
    assert first is not None
    assert second is not None
    assert ours.try_acquire() is None
    assert theirs.try_acquire() is None
    second.release()
    second.release()
    assert ours.try_acquire() is not None
    assert EngineSlots("other").try_acquire() is not None


def test_slots_refuse_a_strange_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLGYM_MAX_SANDBOXES", "many")
    with pytest.raises(ConfigError, match="whole number"):
        EngineSlots("e")
