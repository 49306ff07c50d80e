"""The learner: what its step computes, against plain torch.

Pinned: micro-batches and padding change nothing; failed episodes and groups without variance change nothing; at ratio 1
GRPO's gradient is REINFORCE with the group's advantages; a non-finite loss leaves the parameters untouched.
"""

import pytest
import torch

from tests.trainer.builders import VOCAB, gradients, group, tiny_model
from toolgym.errors import TrainingError
from toolgym.trainer.algorithm import AlgorithmConfig
from toolgym.trainer.batch import collate
from toolgym.trainer.learner import Learner, OptimizerConfig
from toolgym.trainer.logprobs import token_logprobs

GRPO = AlgorithmConfig.model_validate("grpo")


def learner(algorithm: AlgorithmConfig = GRPO, **options: object) -> Learner:
    optimizer = OptimizerConfig(lr=1e-3, lr_final=1e-3, grad_clip=1e9)
    return Learner(tiny_model(), algorithm, optimizer, steps=10, **options)  # type: ignore[arg-type]


def step_gradient(batch: object, **options: object) -> torch.Tensor:
    made = learner(**options)
    made.step(batch, version=0)  # type: ignore[arg-type]
    return gradients(made.model)


def test_token_logprobs_equal_the_full_table() -> None:
    model = tiny_model()
    tokens = torch.randint(2, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    mask[1, 5:] = False
    table = torch.log_softmax(model(tokens).logits[:, :-1] / 0.7, -1).gather(2, tokens[:, 1:, None])[..., 0]
    got = token_logprobs(model, tokens, mask, temperature=0.7)
    torch.testing.assert_close(got[:, 1:][mask[:, 1:]], table[mask[:, 1:]])
    assert (got[~mask] == 0).all()


def test_token_logprobs_in_chunks_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(2, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    found = []
    for chunk in (4096, 5):
        monkeypatch.setattr("toolgym.trainer.logprobs.CHUNK_TOKENS", chunk)
        model = tiny_model()
        token_logprobs(model, tokens, mask).square().sum().backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1])


def test_token_logprobs_refuse_the_first_token() -> None:
    with pytest.raises(ValueError, match="first token"):
        token_logprobs(tiny_model(), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))


def test_step_gradient_does_not_depend_on_micro_batches_or_padding() -> None:
    groups = [group([1.0, 0.0, 1.0], seed=1), group([0.0, 1.0, 1.0], name="g000001", seed=2)]
    whole = step_gradient(collate(groups, pad=0))
    torch.testing.assert_close(step_gradient(collate(groups, pad=0), micro_batch_tokens=15), whole)
    torch.testing.assert_close(step_gradient(collate(groups, pad=9)), whole)


def test_step_gradient_ignores_failed_episodes_and_groups_without_variance() -> None:
    plain = collate([group([1.0, 0.0], seed=1)], pad=0)
    crowded = collate([group([1.0, 0.0, None, None], seed=1), group([1.0, 1.0], name="g000001", seed=5)], pad=0)
    torch.testing.assert_close(step_gradient(crowded), step_gradient(plain))


def test_step_on_policy_is_reinforce_with_group_advantages() -> None:
    # rewards 1, 0, 0, 1: mean 1/2, population std 1/2, so the advantages are 1, -1, -1, 1
    batch = collate([group([1.0, 0.0, 0.0, 1.0], seed=3)], pad=0)
    algorithm = AlgorithmConfig.model_validate({"preset": "grpo", "old_logprobs": "recomputed"})
    got = step_gradient(batch, algorithm=algorithm)
    model = tiny_model()
    a = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)[:, None]
    logprobs = token_logprobs(model, batch.tokens, batch.mask)
    (-(a * logprobs).sum() / batch.mask.sum()).backward()
    torch.testing.assert_close(got, gradients(model), rtol=1e-5, atol=1e-6)


def test_step_without_any_signal_changes_nothing_but_the_count() -> None:
    made = learner()
    before = [p.clone() for p in made.model.parameters()]
    metrics = made.step(collate([group([1.0, 1.0])], pad=0), version=0)
    assert metrics["skipped"] == 1.0
    assert made.step_count == 1
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_step_measures_the_difference_to_the_sampler_at_its_own_version_only() -> None:
    batch = collate([group([1.0, 0.0], seed=1, version=3)], pad=0)
    assert "logprob_max_abs_diff" not in learner().step(batch, version=4)
    model = tiny_model()
    with torch.no_grad():
        wanted = (token_logprobs(model, batch.tokens, batch.mask) + 1.0)[batch.mask].abs().max()
    assert learner().step(batch, version=3)["logprob_max_abs_diff"] == pytest.approx(float(wanted))


def test_step_with_a_nonfinite_gradient_raises_and_leaves_the_parameters() -> None:
    made = learner()
    batch = collate([group([1.0, 0.0], seed=1)], pad=0)
    with torch.no_grad():
        made.model.model.norm.weight[0] = float("nan")
    before = [p.clone() for p in made.model.parameters()]
    with pytest.raises(TrainingError, match=r"step 0: loss nan.*optimizer\.lr"):
        made.step(batch, version=0)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, made.model.parameters(), strict=True))


def test_kl_term_pulls_towards_the_reference() -> None:
    batch = collate([group([1.0, 1.0], seed=1)], pad=0)  # no advantage: the KL term alone acts
    algorithm = AlgorithmConfig.model_validate({"preset": "grpo", "kl": {"coef": 1.0, "kind": "k2"}})
    reference = tiny_model(seed=1)
    made = learner(algorithm, reference=reference)

    def distance() -> float:
        with torch.no_grad():
            ours, theirs = (token_logprobs(m, batch.tokens, batch.mask) for m in (made.model, reference))
        return float((ours - theirs).square().sum())

    before = distance()
    made.step(batch, version=0)
    assert distance() < before


def test_minibatches_make_that_many_optimizer_steps() -> None:
    groups = [group([1.0, 0.0], name=f"g00000{i}", seed=i) for i in range(4)]
    made = learner(minibatches=2)
    made.step(collate(groups, pad=0), version=0)
    state = next(iter(made.optimizer.state.values()))
    assert int(state["step"]) == 2
    assert made.step_count == 1


def test_lr_goes_linearly_from_the_first_to_the_last_step() -> None:
    config = OptimizerConfig(lr=1.0, lr_final=0.5)
    assert [config.lr_at(i, 3) for i in range(4)] == [1.0, 0.75, 0.5, 0.5]


def test_state_round_trip_goes_on_bit_for_bit() -> None:
    batch = collate([group([1.0, 0.0], seed=1)], pad=0)
    straight = learner()
    for _ in range(3):
        straight.step(batch, version=0)
    first, second = learner(), learner()
    first.step(batch, version=0)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step(batch, version=0)
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True))
