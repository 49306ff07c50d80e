"""Continuous batching against the plain forward, and bit for bit against itself in deterministic mode."""

import numpy as np
import pytest
import torch

from tests.engines.models import VOCAB, make_model
from toolgym.engines.base import Sampling
from toolgym.engines.generation import Generator, self_test
from toolgym.engines.rows import Job
from toolgym.engines.slots import ATTENTION
from toolgym.engines.weights import checksum, named_weights
from toolgym.errors import EngineError
from toolgym.types import StopReason

FAMILIES = ("qwen2", "qwen3", "llama")


def make_generator(family="qwen2", *, seed=0, slots=8, max_context=128, **options):
    model = make_model(family, seed=seed, **options.pop("changes", {}))
    model.set_attn_implementation(ATTENTION)
    return Generator(model, slots=slots, max_context=max_context, **options)


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, length).astype(np.int32)


def job(number, tokens, *, new=8, session=None, seed=None, **sampling):
    return Job(
        id=number,
        tokens=np.asarray(tokens, dtype=np.int32),
        sampling=Sampling(max_new_tokens=new, **sampling),
        seed=number if seed is None else seed,
        session=session,
    )


def finish(generator):
    done = {}
    while generator.busy:
        done |= {f.id: f for f in generator.step()}
    return done


def plain_logprobs(model, tokens, *, temperature=1.0):
    """Log p(tokens[t] | tokens[:t]) by the model's own forward, without any cache."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([np.asarray(tokens).tolist()]), use_cache=False).logits[0, :-1].float()
    model.set_attn_implementation(ATTENTION)
    table = torch.log_softmax(logits / temperature, -1)
    return table.gather(1, torch.tensor(np.asarray(tokens[1:], dtype=np.int64))[:, None])[:, 0].numpy()


def play(generator, *, episodes, turns=3, seed=0):
    """Uneven multi-turn episodes, all at once; yields (context, finished) of every turn."""
    rng = np.random.default_rng(seed)
    contexts = {f"s{i}": prompt(int(rng.integers(2, 30)), seed=i) for i in range(episodes)}
    for turn in range(turns):
        names = list(contexts)
        rng.shuffle(names)
        for i, name in enumerate(names):
            new = int(rng.integers(1, 12))
            generator.submit(job(i, contexts[name], new=new, session=name, seed=turn * 100 + int(name[1:])))
        done = finish(generator)
        for i, name in enumerate(names):
            yield contexts[name], done[i]
            more = prompt(int(rng.integers(1, 9)), seed=turn * 1000 + i)
            contexts[name] = np.concatenate([contexts[name], done[i].tokens, more])
    for name in contexts:
        generator.release(name)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_plain_forward(family, deterministic):
    generator = make_generator(family, slots=8, deterministic=deterministic)
    worst = 0.0
    for context, done in play(generator, episodes=8):
        whole = np.concatenate([context, done.tokens])
        expected = plain_logprobs(generator.model, whole)[len(context) - 1 :]
        worst = max(worst, float(np.abs(expected - done.logprobs).max()))
    assert worst < 1e-4
    assert generator.stats["prefill_tokens"] < 8 * (30 + 3 * 12 + 2 * 9)  # nothing is prefilled twice


def test_logprobs_with_more_sessions_than_slots():
    """Idle sessions lose their slots and are prefilled again: costs time, changes nothing."""
    generator = make_generator(slots=3)
    for context, done in play(generator, episodes=7):
        whole = np.concatenate([context, done.tokens])
        expected = plain_logprobs(generator.model, whole)[len(context) - 1 :]
        assert np.abs(expected - done.logprobs).max() < 1e-4
    assert generator.stats["evictions"] > 0


def test_logprobs_are_tempered():
    generator = make_generator()
    generator.submit(job(0, prompt(5), temperature=0.7))
    done = finish(generator)[0]
    whole = np.concatenate([prompt(5), done.tokens])
    expected = plain_logprobs(generator.model, whole, temperature=0.7)[4:]
    assert np.abs(expected - done.logprobs).max() < 1e-4


def test_logprobs_under_filters_stay_finite():
    generator = make_generator()
    for i in range(8):
        generator.submit(job(i, prompt(5, seed=i), temperature=1.7, top_p=0.6, top_k=5, new=20))
    for done in finish(generator).values():
        assert np.isfinite(done.logprobs).all()
        assert (done.logprobs <= 1e-6).all()


def test_greedy_is_the_argmax_of_the_plain_forward():
    generator = make_generator()
    generator.submit(job(0, prompt(6), temperature=0.0, new=5))
    tokens = prompt(6).tolist()
    generator.model.set_attn_implementation("eager")
    with torch.no_grad():
        for _ in range(5):
            tokens.append(int(generator.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    generator.model.set_attn_implementation(ATTENTION)
    assert finish(generator)[0].tokens.tolist() == tokens[6:]


def test_same_seed_same_tokens_whatever_the_neighbours():
    alone = make_generator()
    alone.submit(job(0, prompt(9), new=30, seed=5))
    crowd = make_generator()
    for i in range(1, 20):
        crowd.submit(job(i, prompt(4 + i, seed=i), new=3 * i))
    crowd.submit(job(0, prompt(9), new=30, seed=5))
    assert finish(alone)[0].tokens.tolist() == finish(crowd)[0].tokens.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_deterministic_bit_for_bit_whatever_neighbours_order_and_slot(family):
    """The same episodes, together in two orders and among others: tokens and log-probabilities agree in every bit."""

    def run(*, order, noise):
        generator = make_generator(family, slots=6, deterministic=True, changes={"hidden_size": 64, "vocab_size": 211})
        contexts = {i: prompt(3 + 11 * i, seed=i) for i in range(4)}
        bits = []
        for turn in range(2):
            for i in range(noise):
                generator.submit(job(100 + i, prompt(40 - i, seed=50 + i), new=25))
            for i in order:
                generator.submit(job(i, contexts[i], new=10 + 7 * i, session=str(i), seed=turn))
                if noise:
                    generator.step()  # arrivals at other times
            done = finish(generator)
            for i in range(4):
                bits.append((done[i].tokens.tolist(), done[i].logprobs.tobytes()))
                contexts[i] = np.concatenate([contexts[i], done[i].tokens, prompt(5, seed=turn)])
        return bits

    reference = run(order=[0, 1, 2, 3], noise=0)
    assert run(order=[3, 1, 0, 2], noise=0) == reference
    assert run(order=[2, 0, 3, 1], noise=5) == reference


def test_deterministic_new_sessions_wait_for_a_slot():
    generator = make_generator(slots=1, deterministic=True)
    generator.submit(job(0, prompt(4), session="a"))
    generator.submit(job(1, prompt(4), session="b"))
    done = {}
    for _ in range(20):
        done |= {f.id: f for f in generator.step()}
    assert list(done) == [0]
    generator.release("a")
    assert list(finish(generator)) == [1]


def test_versions_and_recompute_after_a_swap():
    """Live rows go on with exact log-probabilities of the new weights; every token says which version sampled it."""
    generator = make_generator()
    other = make_model(seed=1)
    other.set_attn_implementation(ATTENTION)
    first, second = generator.model, other
    generator.submit(job(0, prompt(6), new=10, session="a"))
    for _ in range(4):
        assert not generator.step()
    generator.swap(other, 1)
    done = finish(generator)[0]
    assert done.versions.tolist() == [0] * 4 + [1] * 6
    whole = np.concatenate([prompt(6), done.tokens])
    assert np.abs(plain_logprobs(first, whole)[5:9] - done.logprobs[:4]).max() < 1e-4
    assert np.abs(plain_logprobs(second, whole)[9:] - done.logprobs[4:]).max() < 1e-4


def test_continue_keeps_the_stale_cache_to_the_end_of_the_turn_only():
    generator = make_generator(on_publish="continue")
    other = make_model(seed=1)
    other.set_attn_implementation(ATTENTION)
    generator.submit(job(0, prompt(6), new=10, session="a"))
    for _ in range(4):
        generator.step()
    prefilled = generator.stats["prefill_tokens"]
    generator.swap(other, 1)
    generator.submit(job(9, np.concatenate([prompt(6), prompt(20, seed=3)]), new=1))  # may not copy the stale cache
    done = finish(generator)
    assert done[0].versions.tolist() == [0] * 4 + [1] * 6
    assert generator.stats["prefill_tokens"] == prefilled + 26
    neighbour = np.concatenate([prompt(6), prompt(20, seed=3), done[9].tokens])
    assert np.abs(plain_logprobs(other, neighbour)[25:] - done[9].logprobs).max() < 1e-4
    context = np.concatenate([prompt(6), done[0].tokens, prompt(3)])
    generator.submit(job(1, context, new=5, session="a"))
    done = finish(generator)[1]
    whole = np.concatenate([context, done.tokens])
    assert np.abs(plain_logprobs(other, whole)[len(context) - 1 :] - done.logprobs).max() < 1e-4


def test_idle_caches_are_dropped_on_a_swap():
    generator = make_generator()
    other = make_model(seed=1)
    other.set_attn_implementation(ATTENTION)
    generator.submit(job(0, prompt(30), new=4, session="a"))
    done = finish(generator)[0]
    generator.swap(other, 1)
    context = np.concatenate([prompt(30), done.tokens, prompt(2)])
    generator.submit(job(1, context, new=4, session="a"))
    done = finish(generator)[1]
    whole = np.concatenate([context, done.tokens])
    assert np.abs(plain_logprobs(other, whole)[len(context) - 1 :] - done.logprobs).max() < 1e-4


def test_shared_prefixes_are_computed_once():
    generator = make_generator(slots=8)
    for i in range(8):
        generator.submit(job(i, prompt(60), new=6))
    done = finish(generator)
    assert generator.stats["prefill_tokens"] == 60 + 7  # each copy still computes its last token
    for i in range(8):
        whole = np.concatenate([prompt(60), done[i].tokens])
        assert np.abs(plain_logprobs(generator.model, whole)[59:] - done[i].logprobs).max() < 1e-4


def test_a_session_that_diverges_is_computed_again_from_there():
    generator = make_generator()
    generator.submit(job(0, prompt(30), new=4, session="a"))
    finish(generator)
    changed = prompt(30).copy()
    changed[20] = (changed[20] + 1) % VOCAB
    before = generator.stats["prefill_tokens"]
    generator.submit(job(1, changed, new=4, session="a"))
    done = finish(generator)[1]
    assert generator.stats["prefill_tokens"] - before == 10
    whole = np.concatenate([changed, done.tokens])
    assert np.abs(plain_logprobs(generator.model, whole)[29:] - done.logprobs).max() < 1e-4


def test_prefill_in_pieces():
    generator = make_generator(prefill_tokens=7)
    generator.submit(job(0, prompt(30), new=4))
    generator.submit(job(1, prompt(11, seed=1), new=9))
    done = finish(generator)
    for i, context in ((0, prompt(30)), (1, prompt(11, seed=1))):
        whole = np.concatenate([context, done[i].tokens])
        expected = plain_logprobs(generator.model, whole)[len(context) - 1 :]
        assert np.abs(expected - done[i].logprobs).max() < 1e-4


def test_rows_are_put_in_order_and_nothing_changes():
    """Sessions of very different lengths over several stretches of slots: rows move, each still finds its own cache."""
    generator = make_generator(slots=40, max_context=256)
    contexts = {i: prompt(5 + 37 * i % 160, seed=i) for i in range(40)}
    for i in range(40):
        generator.submit(job(i, contexts[i], new=60 if i % 7 == 0 else 3, session=str(i)))
    done = finish(generator)
    assert generator.stats["moves"] >= 10
    assert generator.stats["padding"] < 0.5 * generator.stats["tokens"]  # 34 of 40 rows idle for 57 of 60 steps
    for i in range(40):
        before = generator.stats["prefill_tokens"]
        context = np.concatenate([contexts[i], done[i].tokens, [1]])
        generator.submit(job(100 + i, context, new=2, session=str(i)))
        again = finish(generator)[100 + i]
        assert generator.stats["prefill_tokens"] - before == 2
        if i % 5 == 0:
            whole = np.concatenate([context, again.tokens])
            expected = plain_logprobs(generator.model, whole)[len(context) - 1 :]
            assert np.abs(expected - again.logprobs).max() < 1e-4


def test_stop_tokens_end_the_turn_and_belong_to_it():
    generator = make_generator()
    generator.submit(job(0, prompt(5), new=40))
    free = finish(generator)[0]
    assert (len(free.tokens), free.stop) == (40, StopReason.LENGTH)
    stop = int(free.tokens[10])
    first = free.tokens.tolist().index(stop)
    unused = next(token for token in range(VOCAB) if token not in free.tokens)
    generator.submit(job(0, prompt(5), new=40, stop_tokens=(unused, stop)))
    done = finish(generator)[0]
    assert done.stop is StopReason.END_OF_TURN
    assert done.tokens.tolist() == free.tokens.tolist()[: first + 1]


def test_a_completion_is_cut_at_max_context():
    generator = make_generator(max_context=20)
    generator.submit(job(0, prompt(15), new=50))
    done = finish(generator)[0]
    assert (len(done.tokens), done.stop) == (5, StopReason.LENGTH)


def test_cancel_waiting_prefilling_and_decoding_jobs():
    generator = make_generator(slots=1)
    generator.submit(job(0, prompt(5), session="a"))
    generator.submit(job(1, prompt(5)))
    generator.step()
    generator.cancel(1)
    generator.cancel(0)
    generator.cancel(99)
    assert not generator.busy
    generator.submit(job(2, prompt(5), session="a"))
    generator.cancel(2)
    assert not generator.busy
    generator.submit(job(3, prompt(5), session="a"))
    assert list(finish(generator)) == [3]


def test_release_frees_the_slot_and_ignores_strangers():
    generator = make_generator(slots=1, deterministic=True)
    generator.submit(job(0, prompt(5), session="a"))
    finish(generator)
    assert generator.release("a") == []
    assert generator.release("nobody") == []
    generator.submit(job(1, prompt(5), session="b"))
    assert list(finish(generator)) == [1]


def test_release_ends_what_is_under_way_as_cancelled():
    generator = make_generator(slots=1)
    generator.submit(job(0, prompt(5), session="a"))
    generator.submit(job(1, prompt(5), session="b"))
    generator.step()
    (waiting,) = generator.release("b")
    (decoding,) = generator.release("a")
    assert (waiting.id, len(waiting.tokens), waiting.stop) == (1, 0, StopReason.CANCELLED)
    assert (decoding.id, len(decoding.tokens), decoding.stop) == (0, 1, StopReason.CANCELLED)
    assert not generator.busy


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "empty"),
        (range(20), "max_context 20"),
        ([1, VOCAB], f"token id {VOCAB} is outside"),
        ([-1], "token id -1 is outside"),
    ],
)
def test_submit_refuses(tokens, message):
    generator = make_generator(max_context=20)
    with pytest.raises(EngineError, match=message):
        generator.submit(job(0, list(tokens)))


def test_submit_refuses_a_busy_session():
    generator = make_generator(slots=1)
    generator.submit(job(0, prompt(5), session="a"))
    with pytest.raises(EngineError, match="under way"):
        generator.submit(job(1, prompt(5), session="a"))
    generator.step()
    with pytest.raises(EngineError, match="under way"):
        generator.submit(job(1, prompt(5), session="a"))


def test_score_literal_and_top_tokens():
    generator = make_generator("qwen3")
    sequences = [prompt(n, seed=n) for n in (1, 2, 30)]
    for (logprobs, top_tokens, top_logprobs), tokens in zip(
        generator.score(sequences, top_k=3), sequences, strict=True
    ):
        assert logprobs[0] == 0.0
        assert top_tokens.shape == top_logprobs.shape == (len(tokens), 3)
        if len(tokens) > 1:
            expected = plain_logprobs(generator.model, tokens)
            assert np.abs(logprobs[1:] - expected).max() < 1e-4
            assert (top_logprobs[1:, 0] >= logprobs[1:]).all()
            assert (np.diff(top_logprobs[1:], axis=1) <= 0).all()


def test_score_does_not_disturb_generation():
    quiet, disturbed = make_generator(), make_generator()
    for generator in (quiet, disturbed):
        generator.submit(job(0, prompt(5), new=10))
    for _ in range(5):
        disturbed.step()
        disturbed.score([prompt(20)])
    assert finish(quiet)[0].logprobs.tobytes() == finish(disturbed)[0].logprobs.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_self_test_passes_and_sees_a_model_that_differs(family):
    generator = make_generator(family)
    self_test(generator, tolerance=1e-4)
    assert not generator.stats

    plain_forward = generator.model.forward

    def forward(*args, **kwargs):  # an architecture that does something of its own when it is cached
        out = plain_forward(*args, **kwargs)
        if "packed_batch" in kwargs:
            out.logits = out.logits + torch.arange(out.logits.shape[-1]) * 1e-2
        return out

    generator.model.forward = forward
    with pytest.raises(EngineError, match="cannot be served"):
        self_test(generator, tolerance=1e-3)


def test_self_test_refuses_a_short_sliding_window():
    generator = make_generator(
        changes={"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, max_context=64
    )
    with pytest.raises(EngineError, match="sliding window of 16"):
        self_test(generator, tolerance=1e-3)


def test_one_flipped_float_of_the_live_weights_changes_the_checksum():
    model = make_model()
    reference = checksum(named_weights(model))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    assert checksum(named_weights(model)) != reference
