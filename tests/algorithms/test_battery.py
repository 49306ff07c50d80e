"""The generic battery: every registered function, on every check that its case has the inputs for (see cases.py)."""

import math
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from toolgym.algorithms import cards, get

from .cases import B, Case, T, collect

CASES = collect()
SEED = 20


def inputs_of(case: Case) -> dict[str, Any]:
    return case.make(torch.Generator().manual_seed(SEED))


def run(case: Case, inputs: dict[str, Any]) -> torch.Tensor:
    return case.output(get(case.name).function(**inputs))


def with_grad(case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {name: inputs[name].detach().clone().requires_grad_(True) for name in case.grad}


def gradients(case: Case, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Gradient of a weighted sum of the output (weights differ by row, so that rows cannot cancel)."""
    inputs = with_grad(case, inputs)
    output = run(case, inputs)
    return torch.autograd.grad(output.sum(), [inputs[name] for name in case.grad])


def floats(inputs: dict[str, Any]) -> list[str]:
    return [k for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]


def cases_for(check: str, *needs: str) -> Any:
    """Parametrise over the cases that have what the check needs and do not skip it."""
    chosen = [c for c in CASES if check not in c.skip and all(getattr(c, need) for need in needs)]
    return pytest.mark.parametrize("case", chosen, ids=[c.label for c in chosen])


@pytest.mark.parametrize("name", [c.name for c in cards()])
def test_battery_every_registered_function_has_a_case(name):
    assert name in {c.name for c in CASES}, f"{name} is registered but in no cases_*.py: no check runs on it"


def test_battery_every_case_is_of_a_registered_function_and_labels_are_unique():
    assert {c.name for c in CASES} <= {c.name for c in cards()}
    labels = [c.label for c in CASES]
    assert len(labels) == len(set(labels)), sorted(x for x in labels if labels.count(x) > 1)


@cases_for("dtype")
@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_battery_dtype_float64_stays_and_less_is_lifted(case, given, expected):
    inputs = inputs_of(case)
    if not floats(inputs):
        assert run(case, inputs).dtype in (torch.float32, torch.float64)
        return
    got = run(case, inputs | {name: inputs[name].to(given) for name in floats(inputs)})
    assert got.dtype == expected
    assert got.isfinite().all()


@cases_for("dtype")
def test_battery_dtype_half_precision_is_lifted_before_anything_is_computed(case):
    inputs = inputs_of(case)
    half = {name: inputs[name].bfloat16() for name in floats(inputs)}
    lifted = {name: x.float() for name, x in half.items()}
    assert run(case, inputs | half).equal(run(case, inputs | lifted))


@cases_for("fake")
def test_battery_fake_tensors_suffice(case):
    inputs = with_grad(case, inputs_of(case))
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        output = run(case, fake)
        if case.grad:
            output.sum().backward()


@cases_for("permute", "rows")
def test_battery_permute_rows(case):
    check_permutation(case)


@cases_for("permute", "tokens")
def test_battery_permute_token_rows(case):
    check_permutation(case)


def check_permutation(case: Case) -> None:
    inputs = inputs_of(case)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    moved = inputs | {name: inputs[name][order] for name in (*case.rows, *case.tokens)}
    before, after = run(case, inputs), run(case, moved)
    expected = before[order] if before.dim() and before.shape[0] == B else before
    assert_close(after, expected, equal_nan=True)


OLD = torch.tensor(
    [1, 2, 3, 5, 6, 7, 8]
)  # where the T columns go among T + 3: new ones at the front, inside, at the end


def wide(x: torch.Tensor, is_mask: bool) -> torch.Tensor:
    """Three more columns: false for the mask, NaN for floats, a repetition of valid values for integers."""
    fill = 0 if is_mask else math.nan if x.is_floating_point() else x.flatten()[0]
    out = torch.full((B, T + 3, *x.shape[2:]), fill, dtype=x.dtype)
    out[:, OLD] = x
    return out


@cases_for("pad", "tokens", "mask")
def test_battery_pad_columns_change_nothing(case):
    inputs = inputs_of(case)
    padded = inputs | {name: wide(inputs[name], name == case.mask) for name in case.tokens}
    before, after = run(case, inputs), run(case, padded)
    if before.dim() > 1 and before.shape[1] == T and after.shape[1] == T + 3:
        assert after.sum() == pytest.approx(after[:, OLD].sum().item(), abs=1e-12)
        after = after[:, OLD]
    assert_close(after, before)
    for got, expected in zip(gradients(case, padded), gradients(case, inputs), strict=True) if case.grad else ():
        same = got[:, OLD] if got.shape[1:2] == (T + 3,) else got
        assert_close(same, expected)
        assert got.isfinite().all()


def poisoned(case: Case, inputs: dict[str, Any], value: float) -> dict[str, Any]:
    m = inputs[case.mask]
    out = dict(inputs)
    for name in case.tokens:
        x = inputs[name]
        if x.is_floating_point():
            out[name] = torch.where(m.reshape(m.shape + (1,) * (x.dim() - 2)), x, value)
    return out


@cases_for("nan", "tokens", "mask")
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_battery_nan_under_the_mask_changes_nothing(case, value):
    inputs = inputs_of(case)
    bad = poisoned(case, inputs, value)
    assert_close(run(case, bad), run(case, inputs))
    if case.grad:
        for got, expected in zip(gradients(case, bad), gradients(case, inputs), strict=True):
            assert_close(got, expected)


@cases_for("empty", "grad", "mask")
def test_battery_all_masked_is_a_differentiable_zero(case):
    inputs = inputs_of(case)
    inputs[case.mask] = torch.zeros_like(inputs[case.mask])
    assert run(case, inputs).eq(0).all()
    for grad in gradients(case, inputs):
        assert grad.eq(0).all()


@cases_for("empty", "mask")
def test_battery_metrics_are_detached_finite_scalars_even_when_all_is_masked(case):
    inputs = with_grad(case, inputs_of(case))
    for m in (inputs[case.mask], torch.zeros_like(inputs[case.mask])):
        result = get(case.name).function(**(inputs | {case.mask: m}))
        metrics = result[-1] if isinstance(result, tuple) and isinstance(result[-1], dict) else {}
        for name, value in metrics.items():
            assert value.dim() == 0, name
            assert not value.requires_grad, name
            assert value.isfinite(), name


@cases_for("split", "rows")
def test_battery_split_rows_between_groups(case):
    check_split(case)


@cases_for("split", "tokens")
def test_battery_split_token_rows_between_groups(case):
    check_split(case)


def check_split(case: Case) -> None:
    inputs = inputs_of(case)
    names = (*case.rows, *case.tokens)
    whole = run(case, inputs)
    parts = [run(case, inputs | {n: inputs[n][s] for n in names}) for s in (slice(0, B // 2), slice(B // 2, B))]
    joined = torch.cat(parts) if whole.dim() else parts[0] + parts[1]
    assert_close(joined, whole, equal_nan=True)


@cases_for("gradcheck", "grad")
def test_battery_gradcheck(case):
    inputs = with_grad(case, inputs_of(case))

    def function(*values):
        return run(case, inputs | dict(zip(case.grad, values, strict=True)))

    assert torch.autograd.gradcheck(function, [inputs[name] for name in case.grad], fast_mode=True)


@cases_for("zero", "zero", "grad")
def test_battery_zero_advantage_gives_zero_gradient(case):
    inputs = inputs_of(case)
    inputs[case.zero] = torch.zeros_like(inputs[case.zero])
    for grad in gradients(case, inputs):
        assert grad.eq(0).all()


@cases_for("detached")
def test_battery_gradients_reach_only_what_they_should(case):
    inputs = inputs_of(case)
    constants = [name for name in (case.detached if case.grad else floats(inputs)) if name in floats(inputs)]
    for name in (*case.grad, *constants):
        inputs[name] = inputs[name].detach().clone().requires_grad_(True)
    output = run(case, inputs)
    assert output.requires_grad == bool(case.grad)
    if case.grad:
        output.sum().backward()
        assert all(inputs[name].grad is not None for name in case.grad)
        assert all(inputs[name].grad is None for name in constants)


POLICY_LOSSES = [c for c in CASES if c.name in {card.name for card in cards("policy_loss")}]


@pytest.mark.parametrize("case", POLICY_LOSSES, ids=[c.label for c in POLICY_LOSSES])
def test_battery_on_policy_every_policy_loss_has_the_plain_policy_gradient(case):
    inputs = inputs_of(case)
    for name in ("old_logprobs", "sampler_logprobs"):
        if name in inputs:
            inputs[name] = inputs["logprobs"].clone()
    a = inputs["advantages"] if inputs["advantages"].dim() == 2 else inputs["advantages"][:, None]
    (got,) = gradients(case, inputs)
    assert_close(got, torch.where(inputs["mask"], -a, 0.0))
