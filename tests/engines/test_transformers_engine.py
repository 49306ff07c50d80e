"""The engine's parent side against workers that misbehave, then the real worker from start to end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engines.models import VOCAB, make_model
from toolgym.engines import Request, Sampling, WeightsHandle, engine_names, open_engine
from toolgym.engines.transformers_engine import TransformersEngine
from toolgym.engines.weights import WeightsWriter
from toolgym.errors import ConfigError, EngineError
from toolgym.types import PolicyVersion, StopReason

HANDLE = WeightsHandle(path="-", checksum="right", canary_tokens=(1, 2), canary_logprobs=(0.0, 0.0))


def ask(tokens=(1, 2, 3), *, session=None, seed=0, new=6, **sampling):
    return Request(
        id=f"r{seed}",
        tokens=list(tokens),
        session=session,
        seed=seed,
        sampling=Sampling(max_new_tokens=new, **sampling),
    )


def faked(folder, mode, **options):
    engine = TransformersEngine(folder, **({"deadline_s": 20.0} | options))
    engine._command = [sys.executable, str(Path(__file__).with_name("fake_worker.py")), mode]
    return engine


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# -- the parent side


async def test_fake_worker_serves(model_folder):
    async with faked(model_folder, "fine") as engine:
        pid = engine._process.pid
        completion = await engine.generate(ask())
        assert completion.tokens.tolist() == [1, 2]
        assert completion.stop is StopReason.LENGTH
        await engine.publish(PolicyVersion(n=3), HANDLE)
        assert (await engine.generate(ask())).versions.tolist() == [3, 3]
        with pytest.raises(EngineError, match="may not go back"):
            await engine.publish(PolicyVersion(n=3), HANDLE)
        await engine.generate(ask())  # a refused publication harms nothing
    assert gone(pid)
    with pytest.raises(EngineError, match="it was closed"):
        await engine.generate(ask())
    await engine.aclose()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("lost publish", r"no answer to publish within 0\.3 s"),
        ("old acknowledged", "version 1 was published, the worker serves version 0"),
        ("flipped", "checksum of version 1 differs"),
    ],
)
async def test_publish_faults_break_the_engine_at_once(model_folder, mode, message):
    async with faked(model_folder, mode, deadline_s=0.3 if mode == "lost publish" else 20.0) as engine:
        with pytest.raises(EngineError, match=message):
            await engine.publish(PolicyVersion(n=1), HANDLE)
        with pytest.raises(EngineError, match=message):
            await engine.generate(ask())


async def test_publish_with_another_canary_breaks_the_engine(model_folder):
    handle = WeightsHandle(path="-", checksum="right", canary_tokens=(1, 2), canary_logprobs=(0.0, -0.5))
    async with faked(model_folder, "fine") as engine:
        with pytest.raises(EngineError, match=r"canary of version 1 differs by 0\.5 at token 1"):
            await engine.publish(PolicyVersion(n=1), handle)


async def test_publish_acknowledged_but_never_swapped_is_caught_by_the_next_completion(model_folder):
    async with faked(model_folder, "swap forgotten") as engine:
        await engine.publish(PolicyVersion(n=1), HANDLE)
        with pytest.raises(EngineError, match="sampled with version 0 after version 1"):
            await engine.generate(ask())


async def test_silent_worker_fails_all_waiting_calls(model_folder):
    errors = []

    async def waiting(seed):
        with pytest.raises(EngineError, match="it hangs") as caught:
            await engine.generate(ask(seed=seed))
        errors.append(caught.value)

    async with faked(model_folder, "silent", deadline_s=0.2) as engine, anyio.create_task_group() as group:
        for seed in range(3):
            group.start_soon(waiting, seed)
    assert len(errors) == 3


@pytest.mark.slow
async def test_worker_that_works_longer_than_the_deadline_is_not_hung(model_folder):
    async with faked(model_folder, "busy", deadline_s=0.7) as engine:
        assert len((await engine.generate(ask())).tokens) == 2


@pytest.mark.slow
async def test_parent_that_is_busy_longer_than_the_deadline_accuses_nobody(model_folder):
    async with faked(model_folder, "fine", deadline_s=0.5) as engine, anyio.create_task_group() as group:
        group.start_soon(engine.generate, ask())
        await anyio.wait_all_tasks_blocked()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:  # a learner that blocks the event loop
            pass


async def test_crash_fails_all_waiting_calls_with_the_exit_code(model_folder):
    async with faked(model_folder, "crash") as engine:
        with pytest.raises(EngineError, match="ended with code 4"):
            await engine.generate(ask())
        with pytest.raises(EngineError, match="ended with code 4"):
            await engine.generate(ask())


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fatal", "no such model"),
        ("crash at start", "(?s)ended with code 3.*this is why"),
        ("never ready", "not ready"),
    ],
)
async def test_start_faults_are_told_and_leave_no_process(model_folder, mode, message):
    engine = faked(model_folder, mode, start_deadline_s=0.5 if mode == "never ready" else 20.0)
    with pytest.raises(EngineError, match=message):
        await engine.start()
    assert engine._process.returncode is not None


async def test_cancelling_the_task_cancels_the_request(model_folder):
    async with faked(model_folder, "silent") as engine:
        with anyio.move_on_after(0.05) as scope:
            await engine.generate(ask())
        assert scope.cancelled_caught
        assert not engine._calls


async def test_close_fails_waiting_calls(model_folder):
    async def waiting():
        with pytest.raises(EngineError, match="it was closed"):
            await engine.generate(ask())

    async with anyio.create_task_group() as group:
        engine = faked(model_folder, "silent")
        await engine.start()
        group.start_soon(waiting)
        await anyio.wait_all_tasks_blocked()
        await engine.aclose()


async def test_unstarted_engine_says_so(model_folder):
    with pytest.raises(EngineError, match="not started"):
        await TransformersEngine(model_folder).generate(ask())


def test_options_are_checked_before_anything_starts(model_folder, tmp_path):
    with pytest.raises(ConfigError, match="slots"):
        TransformersEngine(model_folder, slot=4)
    with pytest.raises(ConfigError, match="slots"):
        TransformersEngine(model_folder, slots=0)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        TransformersEngine(tmp_path)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"new": 0}, "max_new_tokens 0"),
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, r"top_p 0\.0"),
        ({"top_k": -1}, "top_k -1"),
    ],
)
async def test_generate_refuses_impossible_sampling(model_folder, sampling, message):
    with pytest.raises(ConfigError, match=f"'r0': {message}"):
        await TransformersEngine(model_folder).generate(ask(**sampling))


def test_open_engine_by_name(model_folder):
    assert isinstance(open_engine("transformers", model_path=model_folder, slots=4), TransformersEngine)
    assert {"scripted", "transformers"} <= set(engine_names())
    with pytest.raises(ConfigError, match="did you mean 'transformers'"):
        open_engine("transfomers")


# -- the real worker: each start costs seconds, so each test plays a whole story


def plain_logprobs(model, tokens):
    with torch.no_grad():
        table = torch.log_softmax(model(input_ids=torch.tensor([list(tokens)])).logits[0, :-1].float(), -1)
        return table.gather(1, torch.tensor(list(tokens[1:]))[:, None])[:, 0].numpy()


async def play_turn(engine, model, contexts, turn):
    """One turn of every session at once; the largest difference of a log-probability to the learner's."""
    worst = []

    async def one(name):
        context = contexts[name]
        completion = await engine.generate(ask(context, session=name, seed=turn, new=5 + len(context) % 7))
        whole = [*context, *completion.tokens.tolist()]
        worst.append(np.abs(plain_logprobs(model, whole)[len(context) - 1 :] - completion.logprobs).max())
        assert set(completion.versions.tolist()) == {engine.info().version.n}
        contexts[name] = [*whole, 3, 4, 5]

    async with anyio.create_task_group() as group:
        for name in contexts:
            group.start_soon(one, name)
    return float(max(worst))


@pytest.mark.slow
async def test_real_worker_turns_publishes_scores_and_faults(model_folder, tmp_path):
    model = make_model()
    contexts = {f"s{i}": list(range(1, 4 + 5 * i)) for i in range(6)}
    async with TransformersEngine(model_folder, slots=4, max_context=256) as engine:
        with WeightsWriter(tmp_path) as writer:
            assert await play_turn(engine, model, contexts, 0) < 1e-4
            for n in (1, 2, 5):
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(0.05 * torch.randn_like(parameter))
                await engine.publish(PolicyVersion(n=n), writer.write(model))
                assert await play_turn(engine, model, contexts, n) < 1e-4

            (scores,) = await engine.score([contexts["s3"]], top_k=2)
            assert np.abs(scores.logprobs[1:] - plain_logprobs(model, contexts["s3"])).max() < 1e-4
            assert scores.top_tokens.shape == (len(contexts["s3"]), 2)
            assert scores.version == PolicyVersion(n=5)
            with pytest.raises(EngineError, match="outside the vocabulary"):
                await engine.score([[VOCAB]])
            with pytest.raises(EngineError, match="'r0': the context has 400 tokens"):
                await engine.generate(ask([1] * 400))
            with pytest.raises(EngineError, match=f"token id {VOCAB} is outside"):
                await engine.generate(ask([VOCAB]))

            await engine.pause()
            with anyio.move_on_after(0.1) as scope:
                await engine.generate(ask())
            assert scope.cancelled_caught
            await engine.resume()
            await engine.generate(ask())
            await engine.release("s0")
            stats = await engine.stats()
            assert stats["evictions"] > 0
            assert stats["cpu_s"] > 0
            assert stats["tokens"] > 100

            handle = writer.write(model)
            tensors = load_file(handle.path)
            lost = tensors.pop("model.layers.1.mlp.up_proj.weight")
            save_file(tensors, handle.path)
            with pytest.raises(EngineError, match=r"lacks 1 of .* model\.layers\.1\.mlp\.up_proj\.weight"):
                await engine.publish(PolicyVersion(n=6), handle)
            assert await play_turn(engine, model, contexts, 6) < 1e-4  # the old weights are still served

            lost.view(torch.int32)[0, 0] ^= 1 << 10  # one flipped bit of one float
            save_file(tensors | {"model.layers.1.mlp.up_proj.weight": lost}, handle.path)
            with pytest.raises(EngineError, match="checksum of version 6 differs"):
                await engine.publish(PolicyVersion(n=6), handle)
            with pytest.raises(EngineError, match="checksum of version 6 differs"):
                await engine.generate(ask())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"max_context": 513}, "max_context 513 is more than the model's 512 positions"),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, {}, "sliding window of 16"),
    ],
)
async def test_real_worker_refuses_a_model_it_cannot_serve(tmp_path, changes, options, message):
    make_model(**changes).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=message):
        async with TransformersEngine(tmp_path, **({"max_context": 64} | options)):
            pass


@pytest.mark.slow
async def test_real_worker_publish_while_rows_are_live(model_folder, tmp_path):
    """Rows that live through a swap carry both versions, each with that version's own log-probabilities."""
    old, new = make_model(), make_model(seed=1)
    async with TransformersEngine(model_folder, slots=2, max_context=500) as engine:
        with WeightsWriter(tmp_path) as writer:
            handle = writer.write(new)
            results = []

            async def long_row():
                results.append(await engine.generate(ask(new=490)))

            async with anyio.create_task_group() as group:
                group.start_soon(long_row)
                while (await engine.stats()).get("tokens", 0) < 20:
                    pass
                await engine.publish(PolicyVersion(n=1), handle)
        (completion,) = results
        whole = [1, 2, 3, *completion.tokens.tolist()]
        split = int((completion.versions == 0).sum())
        assert 20 <= split < 490
        assert completion.versions.tolist() == [0] * split + [1] * (490 - split)
        assert np.abs(plain_logprobs(old, whole)[2 : 2 + split] - completion.logprobs[:split]).max() < 1e-4
        assert np.abs(plain_logprobs(new, whole)[2 + split :] - completion.logprobs[split:]).max() < 1e-4


@pytest.mark.slow
async def test_real_worker_stopped_then_killed_then_orphaned(model_folder):
    async with TransformersEngine(model_folder, slots=2, deadline_s=0.4) as engine:
        pid = engine.info().details["pid"]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match="it hangs"):
            await engine.generate(ask(new=400))
    assert gone(pid)

    async with TransformersEngine(model_folder, slots=2) as engine:
        os.kill(engine.info().details["pid"], signal.SIGKILL)
        with pytest.raises(EngineError, match="killed by signal 9"):
            await engine.generate(ask(new=400))


@pytest.mark.slow
def test_real_worker_ends_with_its_parent(tmp_path):
    """The parent is killed while the worker decodes: nothing stays behind."""
    make_model(max_position_embeddings=100000).save_pretrained(tmp_path)
    program = (
        "import anyio, sys\n"
        "from toolgym.engines import open_engine, Request, Sampling\n"
        "async def main():\n"
        f"    options = dict(model_path={str(tmp_path)!r}, slots=1, max_context=100000)\n"
        "    async with open_engine('transformers', **options) as engine:\n"
        "        print(engine.info().details['pid'], flush=True)\n"
        "        await engine.generate(Request(id='a', tokens=[1], sampling=Sampling(max_new_tokens=90000)))\n"
        "anyio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    worker = psutil.Process(pid) if psutil.pid_exists(pid) else None
    if worker is not None:
        psutil.wait_procs([worker], timeout=10)
    assert gone(pid)
