"""`open_envs`: shared resources are opened once, and closed; instances are independent."""

from contextlib import asynccontextmanager

import pytest

from tests.envs.small import Small, call, say
from toolgym.envs import make, open_envs, register
from toolgym.errors import ConfigError

log: list[str] = []


@register("tests/shared-v0")
class Shared(Small):
    """Has something to open."""

    @asynccontextmanager
    async def open_shared(self):
        log.append("open")
        try:
            yield {"size": self.max_turns}
        finally:
            log.append("close")

    def describe(self, shared=None):
        return f"shared {shared}"


@pytest.fixture(autouse=True)
def _clear_log():
    log.clear()


async def test_open_envs_opens_shared_resources_once():
    async with open_envs("tests/shared-v0", max_turns=3) as envs:
        assert envs.env_id == "tests/shared-v0"
        assert envs.describe() == "shared {'size': 3}"
        assert [t.name for t in envs.tools][:2] == ["double", "add"]
        assert envs.tasks("test")[0].id == "test-20"
        first, second = envs.make(), envs.make()
        assert first is not second
        assert first.shared is second.shared
        await first.areset(options={"task_id": "train-1"})
        await second.areset(options={"task_id": "train-2"})
        assert (await first.astep(call("add", a=1))).messages[0].content == "2"
        assert (await second.astep(say("3"))).reward == 1.0
        assert (await first.astep(say("2"))).reward == 1.0
        await first.aclose()
        assert log == ["open"]
    assert log == ["open", "close"]


async def test_open_envs_closes_after_an_error():
    with pytest.raises(ZeroDivisionError):
        async with open_envs("tests/shared-v0"):
            raise ZeroDivisionError
    assert log == ["open", "close"]


async def test_open_envs_refuses_before_it_opens():
    with pytest.raises(ConfigError, match="did you mean 'max_turns'"):
        async with open_envs("tests/shared-v0", maxturns=3):
            pass
    with pytest.raises(ConfigError, match="did you mean 'tests/shared-v0'"):
        async with open_envs("tests/shard-v0"):
            pass
    assert log == []


async def test_an_instance_made_alone_opens_and_closes_its_own():
    env = make("tests/shared-v0")
    assert log == []
    await env.areset(seed=0)
    await env.areset(seed=0)
    assert log == ["open"]
    await env.aclose()
    await env.aclose()
    assert log == ["open", "close"]
    async with make("tests/shared-v0", max_turns=2) as env:
        assert env.shared == {"size": 2}
    assert log == ["open", "close"] * 2


def test_gymnasium_instance_opens_and_closes_its_own():
    env = Shared()
    env.reset(seed=0)
    env.step("1")
    env.reset()
    env.close()
    assert log == ["open", "close"]
    env.reset()
    env.close()
    assert log == ["open", "close"] * 2
