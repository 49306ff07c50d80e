"""The scripted engine: answers, cuts, versions, pause and close."""

import anyio
import numpy as np
import pytest

from toolgym.engines.base import Request, Sampling, WeightsHandle
from toolgym.engines.scripted import ScriptedEngine
from toolgym.errors import EngineError
from toolgym.types import PolicyVersion, StopReason

HANDLE = WeightsHandle(path="-", checksum="-", canary_tokens=(), canary_logprobs=())


def request(tokens=(1, 2), *, max_new_tokens=4, stop=(9,)):
    return Request(id="r", tokens=tokens, sampling=Sampling(max_new_tokens=max_new_tokens, stop_tokens=stop))


@pytest.mark.parametrize(
    ("answer", "tokens", "stop"),
    [
        ([3, 9], [3, 9], StopReason.END_OF_TURN),
        ([3, 9, 4], [3, 9], StopReason.END_OF_TURN),
        ([9, 9], [9], StopReason.END_OF_TURN),
        ([3, 4], [3, 4], StopReason.LENGTH),
        ([3, 4, 5, 6, 9], [3, 4, 5, 6], StopReason.LENGTH),
    ],
)
async def test_generate_cuts_at_stop_and_length(answer, tokens, stop):
    completion = await ScriptedEngine([answer]).generate(request())
    assert completion.tokens.tolist() == tokens
    assert completion.stop is stop
    assert completion.tokens.dtype == np.int32
    assert completion.logprobs.dtype == np.float32
    assert completion.versions.tolist() == [0] * len(tokens)


async def test_generate_from_function_sees_the_request():
    engine = ScriptedEngine(lambda r: [len(r.tokens), 9])
    assert (await engine.generate(request([1, 1, 1]))).tokens.tolist() == [3, 9]
    assert len(engine.requests) == 1


async def test_generate_refuses_when_answers_are_used_up():
    engine = ScriptedEngine([[9]])
    await engine.generate(request())
    with pytest.raises(EngineError, match="1 answers"):
        await engine.generate(request())


async def test_publish_sets_the_version_and_never_goes_back():
    engine = ScriptedEngine(lambda r: [9])
    await engine.publish(PolicyVersion(n=2), HANDLE)
    assert (await engine.generate(request())).versions.tolist() == [2]
    for version in (PolicyVersion(n=2), PolicyVersion(n=1)):
        with pytest.raises(EngineError, match="may not go back"):
            await engine.publish(version, HANDLE)
    await engine.publish(PolicyVersion(lineage=1, n=0), HANDLE)
    assert engine.info().version == PolicyVersion(lineage=1, n=0)


async def test_pause_holds_requests_until_resume():
    engine = ScriptedEngine(lambda r: [9])
    await engine.pause()
    done = []

    async def ask():
        done.append(await engine.generate(request()))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert not done
        await engine.resume()
    assert len(done) == 1


async def test_close_refuses_requests():
    async with ScriptedEngine(lambda r: [9]) as engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        await engine.generate(request())


async def test_score_shapes():
    (scores,) = await ScriptedEngine([]).score([[4, 5, 6]], top_k=2)
    assert scores.logprobs.tolist() == [0.0, -0.5, -0.5]
    assert scores.top_tokens.tolist() == [[4, 5], [5, 6], [6, 7]]
    assert scores.top_logprobs.shape == (3, 2)
