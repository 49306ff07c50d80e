"""Merging: worked values, identities, and what adapters' factors do."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.merging import (
    average,
    combine_lora,
    elect_and_average,
    lines,
    lines_alpha,
    lines_scale,
    svd,
    task_vectors,
    ties,
    trim,
)
from toolgym.errors import ConfigError

DOUBLE = torch.float64


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


A = t([3, 7, 1, 9, 4, 2], [8, 2, 6, 1, 5, 7])
B = t([4, 1, 9, 6, 2, 8], [7, 6, 5, 1, 7, 4])


def test_average_worked_values():
    got = average([{"w": A}, {"w": B}])["w"]
    assert got.tolist() == [[3.5, 4, 5, 7.5, 3, 5], [7.5, 4, 5.5, 1, 6, 5.5]]
    assert average([{"w": A}, {"w": B}], weights=[3, 1])["w"][0, 0].item() == 3.25


def test_average_of_one_is_itself_and_order_does_not_matter():
    assert torch.equal(average([{"w": A}])["w"], A)
    states = [{"w": A * k} for k in (1, 2, 4)]
    for order in itertools.permutations(range(3)):
        got = average([states[i] for i in order], weights=[[1, 2, 5][i] for i in order])["w"]
        torch.testing.assert_close(got, average(states, weights=[1, 2, 5])["w"])


def test_average_keeps_dtypes_takes_buffers_from_the_first_and_ties_tied():
    shared = torch.ones(2, dtype=torch.bfloat16)
    first = {"a": shared, "b": shared, "n": torch.tensor([3])}
    second = {"a": shared * 2, "b": shared * 2, "n": torch.tensor([9])}
    got = average([first, second])
    assert got["a"].dtype == torch.bfloat16
    assert got["a"].tolist() == [1.5, 1.5]
    assert got["a"] is got["b"]
    assert got["n"].tolist() == [3]
    assert got["n"] is not first["n"]


def test_average_computes_in_float32_without_gradients():
    states = [{"w": torch.tensor([1.0, 256.0], dtype=torch.bfloat16, requires_grad=True)} for _ in range(3)]
    got = average(states, weights=[1.0, 1.0, 1.1])["w"]
    assert got.tolist() == [1.0, 256.0]  # in bfloat16, shares of about a third add up to 0.996
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "no state dicts"),
        ([{"w": A}, {"v": A}], r"state 1 and state 0 differ in \['v', 'w'\]"),
        ([{"w": A}, {"w": A[:1]}], r"w: state 1 has \[1, 6\], state 0 \[2, 6\]"),
    ],
)
def test_average_refuses_states_that_do_not_fit(states, message):
    with pytest.raises(ConfigError, match=message):
        average(states)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0]])
def test_average_refuses_bad_weights(weights):
    with pytest.raises(ConfigError, match="weights"):
        average([{"w": A}, {"w": B}], weights=weights)


TAUS = t([1, -2, 0.1, 3], [-0.5, -1, 2, -4])


def test_ties_worked_values_step_by_step():
    trimmed = torch.stack([trim(x, density=0.5) for x in TAUS])
    assert trimmed.tolist() == [[0, -2, 0, 3], [0, 0, 2, -4]]
    assert elect_and_average(trimmed).tolist() == [0, -2, 2, -4]


def test_elect_and_average_worked_values_without_trimming():
    taus = t([2, -1, 0, 3], [1, 2, -3, 0], [-4, 1, -1, 1])
    assert elect_and_average(taus).tolist() == [-4, 1.5, -2, 2]
    assert taus.mean(0).tolist() == pytest.approx([-1 / 3, 2 / 3, -4 / 3, 4 / 3])


def test_elect_and_average_breaks_zero_sums_by_majority_or_plus():
    taus = t([1, -3, -3, 2], [-1, -1, -1, 2])  # signs 0, -, -, +
    assert elect_and_average(taus).tolist() == [-1, -2, -2, 2]
    assert elect_and_average(taus, zero_sign="positive").tolist() == [1, -2, -2, 2]
    assert elect_and_average(-taus).tolist() == [1, 2, 2, -2]  # now plus is the majority's sign


def test_elect_and_average_weighs_tasks():
    taus = t([1.0], [4.0], [-2.0])
    assert elect_and_average(taus, weights=[1, 3, 1]).tolist() == [(1 + 12) / 4]
    assert elect_and_average(taus, weights=[0, 1, 9]).tolist() == [-2.0]
    with pytest.raises(ConfigError, match="2 weights for 3 tasks"):
        elect_and_average(taus, weights=[1, 1])


@given(st.lists(st.lists(st.integers(-4, 4), min_size=3, max_size=3), min_size=1, max_size=4))
def test_elect_and_average_is_equivariant_under_sign_flips(rows):
    taus = torch.tensor(rows, dtype=DOUBLE)
    if (taus.sum(0) == 0).any():
        return  # the tie rule is not symmetric
    torch.testing.assert_close(elect_and_average(-taus), -elect_and_average(taus))


def test_trim_counts_and_keeps_ties():
    assert trim(t(1, -2, 3, -4, 5), density=0.2).tolist() == [0, 0, 0, 0, 5]
    assert trim(t(1, -2, 3, -4, 5), density=0.4).tolist() == [0, 0, 0, -4, 5]
    assert trim(t(2, -2, 1), density=0.34).tolist() == [2, -2, 0]  # k = 1, but equal magnitudes stay together
    assert trim(t(1, 2), density=0.0).tolist() == [0, 0]
    assert trim(t(1, 2), density=1.0).tolist() == [1, 2]
    with pytest.raises(ConfigError, match=r"density 1\.1"):
        trim(t(1), density=1.1)


BASE = {"x": t(1.0, 1.0), "y": t([2.0, 2.0]), "step": torch.tensor(7)}


def plus(*tau):
    return {"x": BASE["x"] + t(*tau[:2]), "y": BASE["y"] + t([*tau[2:]]), "step": torch.tensor(9)}


def test_ties_on_state_dicts():
    got = ties(BASE, [plus(1, -2, 0.1, 3), plus(-0.5, -1, 2, -4)], density=0.5)
    assert got["x"].tolist() == [1, -1]
    assert got["y"].tolist() == [[4, -2]]
    assert got["step"].item() == 7
    half = ties(BASE, [plus(1, -2, 0.1, 3), plus(-0.5, -1, 2, -4)], density=0.5, scale=0.5)
    assert half["x"].tolist() == [1, 0]


def test_ties_at_its_ends():
    tuned = plus(1, -2, 0.1, 3)
    for got in (ties(BASE, [tuned], density=1.0), ties(BASE, [tuned] * 3, density=1.0)):
        torch.testing.assert_close(got["x"], tuned["x"])
        torch.testing.assert_close(got["y"], tuned["y"])
    assert torch.equal(ties(BASE, [tuned], density=0.0)["y"], BASE["y"])


def test_ties_threshold_is_global_or_per_tensor():
    tuned = plus(0.1, 0.2, 5, 6)
    assert ties(BASE, [tuned], density=0.5)["x"].tolist() == [1.0, 1.0]
    assert ties(BASE, [tuned], density=0.5, per_tensor=True)["x"].tolist() == pytest.approx([1.0, 1.2])
    assert ties(BASE, [tuned], density=0.5, per_tensor=True)["y"].tolist() == [[2.0, 8.0]]


def test_task_vectors_are_differences_of_floats():
    base = {"w": torch.tensor([1.0], dtype=torch.bfloat16, requires_grad=True)}
    (small,) = task_vectors(base, [{"w": torch.tensor([3.0], dtype=torch.bfloat16, requires_grad=True)}])
    assert (small["w"].dtype, small["w"].requires_grad) == (torch.float32, False)
    (tau,) = task_vectors(BASE, [plus(1, 2, 3, 4)])
    assert tau["x"].tolist() == [1, 2]
    assert "step" not in tau


def test_lines_scale_worked_values():
    assert [lines_scale(i, 4, alpha=0.4, beta=0.6) for i in range(4)] == pytest.approx([0.4, 0.6, 0.8, 1.0], abs=1e-12)
    assert lines_scale(None, 4, alpha=0.4, beta=0.6) == 0.4
    assert lines_scale(0, 1, alpha=0.4, beta=0.6) == 1.0
    with pytest.raises(ConfigError, match="block 4 of 4"):
        lines_scale(4, 4, alpha=0.4, beta=0.6)


NAMES = ["model.embed.weight", *(f"model.layers.{i}.w" for i in range(3)), "vision.layers.0.w", "vision.layers.1.w"]


def test_lines_scales_each_stack_by_depth():
    base, tuned = {n: t(1.0) for n in NAMES}, {n: t(2.0) for n in NAMES}
    got = {n: x.item() - 1 for n, x in lines(base, tuned, alpha=0.0, beta=1.0).items()}
    assert got == pytest.approx(dict(zip(NAMES, [0.0, 0.0, 0.5, 1.0, 0.0, 1.0], strict=True)), abs=1e-12)
    assert all(x.item() == 2.0 for x in lines(base, tuned, alpha=1.0, beta=0.0).values())


def test_lines_warns_when_no_name_holds_a_block():
    with pytest.warns(UserWarning, match="no parameter name"):
        got = lines({"w": t(1.0)}, {"w": t(2.0)}, alpha=0.25, beta=1.0)
    assert got["w"].item() == 1.25


def test_lines_alpha_of_average_and_sum_merges():
    states = [plus(1, -2, 0.1, 3), plus(-0.5, -1, 2, -4), plus(0, 1, 1, 0)]
    taus = task_vectors(BASE, states)
    total = {n: sum(tau[n] for tau in taus) for n in ("x", "y")}
    mean = {n: BASE[n] + total[n] / 3 if n in total else BASE[n] for n in BASE}
    summed = {n: BASE[n] + total[n] if n in total else BASE[n] for n in BASE}
    assert lines_alpha(BASE, states, mean) == pytest.approx(1.0, abs=1e-12)
    assert lines_alpha(BASE, states, summed) == pytest.approx(1 / 3, abs=1e-12)
    with pytest.raises(ConfigError, match="equals the base"):
        lines_alpha(BASE, states, BASE)


# A = e_i^T, B = e_i: the updates are e_1 e_1^T and e_2 e_2^T
UNITS = [(t([1.0, 0.0]), t([1.0], [0.0])), (t([0.0, 1.0]), t([0.0], [1.0]))]


def product(factors):
    return factors[1] @ factors[0]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cat", [[0.5, 0.0], [0.0, 0.5]]),
        ("svd", [[0.5, 0.0], [0.0, 0.5]]),
        ("factors", [[0.25, 0.25], [0.25, 0.25]]),  # averaging factors is not averaging updates
        ("linear", [[0.5, 0.5], [0.5, 0.5]]),
    ],
)
def test_combine_lora_worked_values(mode, expected):
    got = product(combine_lora(UNITS, weights=[0.5, 0.5], mode=mode, rank=2))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=DOUBLE), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["cat", "svd"])
def test_combine_lora_is_exact_whatever_the_ranks(mode):
    gen = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=gen, dtype=DOUBLE)

    adapters = [(randn(r, 5), randn(4, r)) for r in (1, 3)]
    a, b = combine_lora(adapters, weights=[0.3, -2.0], scalings=[2.0, 0.5], mode=mode, rank=4)
    expected = 0.6 * product(adapters[0]) - 1.0 * product(adapters[1])
    torch.testing.assert_close(b @ a, expected)


def test_combine_lora_svd_truncates_to_the_nearest_rank():
    wide = [(torch.eye(2, dtype=DOUBLE), torch.diag(t(3.0, 1.0)))]
    got = product(combine_lora(wide, weights=[1.0], mode="svd", rank=1))
    torch.testing.assert_close(got, torch.diag(t(3.0, 0.0)), atol=1e-12, rtol=0)


def test_combine_lora_linear_puts_the_sign_on_a():
    a, b = combine_lora(UNITS[:1], weights=[-4.0], mode="linear")
    assert a.tolist() == [[-2.0, 0.0]]
    assert b.tolist() == [[2.0], [0.0]]


def test_combine_lora_refuses():
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        combine_lora(UNITS, weights=[1, 1], mode="linea")
    with pytest.raises(ConfigError, match="1 weights"):
        combine_lora(UNITS, weights=[1])
    unequal = [UNITS[0], (torch.ones(2, 2), torch.ones(2, 2))]
    with pytest.raises(ConfigError, match="equal ranks"):
        combine_lora(unequal, weights=[1, 1], mode="linear")


def test_task_vectors_of_halves_are_taken_in_float32():
    (tau,) = task_vectors({"w": torch.tensor([256.0]).bfloat16()}, [{"w": torch.tensor([1.0]).bfloat16()}])
    assert tau["w"].tolist() == [-255.0]
    assert tau["w"].dtype == torch.float32
    with pytest.raises(ConfigError, match=r"differ in \['v'\]"):
        task_vectors({"w": A}, [{"w": A, "v": A}])


@pytest.mark.parametrize("x", [A, A.T])
def test_svd_is_thin(x):
    u, sigma, v = svd(x)
    assert (u.shape, sigma.shape, v.shape) == ((x.shape[0], 2), (2,), (2, x.shape[1]))
    torch.testing.assert_close(u * sigma @ v, x)


def test_lines_counts_the_blocks_whatever_their_order():
    base = {name: t(0.0) for name in ("layers.1.w", "layers.0.w", "norm")}
    got = lines(base, {"layers.1.w": t(2.0), "layers.0.w": t(4.0), "norm": t(2.0)}, alpha=0.5, beta=1.0)
    assert {name: x.item() for name, x in got.items()} == {"layers.1.w": 3.0, "layers.0.w": 2.0, "norm": 1.0}
