"""Cases of test-time compute, merging and combined rewards; much of it runs on the host."""

import numpy as np
import torch

from toolgym.algorithms.power_sampling import Continuation
from toolgym.algorithms.refine import Draft, ErrorSpan

from .cases import B, Case, groups, randn

HOST = {"fake": "runs on the host, on Python numbers"}
STATES = {"fake": "takes state dicts, on the host"}
CONSTANT = {"detached": "differentiable, but nothing trains through it"}
P = np.array([[0.1, 0.4], [0.3, 0.2]])


def number(x):
    return torch.tensor(float(x), dtype=torch.float64)


def host_case(name, inputs, output=number, **more):
    return Case(name=name, make=lambda g: inputs() if callable(inputs) else inputs, mask=None, output=output,
                skip=HOST, **more)  # fmt: skip


def drive(steps, answer):
    """The value that a generator returns when each of its requests gets this answer."""
    try:
        request = next(steps)
        while True:
            request = steps.send(answer(request))
    except StopIteration as stop:
        return stop.value


def continuation(request):
    tokens = (0,) * request.n
    return Continuation(tokens=tokens, logp=(-1.0,) * request.n, logq=(-1.0,) * request.n)


TEST_TIME = [
    host_case("best_of_n", {"scores": [0.1, 0.7]}),
    host_case("majority_vote", {"answers": ["1", "2", "1"]}),
    host_case("pass_at_k", {"n": 10, "c": 3, "k": 5}),
    host_case("osca_value", {"p": P, "allocation": np.array([2, 1])}),
    host_case("osca_estimate", {"n": np.full((2, 2), 5), "c": np.full((2, 2), 2), "allocation": np.array([2, 1])}),
    host_case("osca_allocate", {"p": P, "budget": 3}, lambda found: number(found.value)),
    host_case(
        "mh_log_ratio", {"logp_new": -1.0, "logp_current": -2.0, "logq_new": -1.0, "logq_current": -1.0, "alpha": 4.0}
    ),
    host_case(
        "power_sampling_steps",
        {"block": 2, "max_new": 3, "mcmc_steps": 1},
        lambda steps: number(len(drive(steps, continuation).sample.tokens)),
    ),
    host_case("severity_score", {"errors": [ErrorSpan(severity="major")]}),
    host_case("acceptance_probability", {"new": -5.0, "old": -1.0, "temperature": 1.0}),
    host_case("next_temperature", {"temperature": 1.0}),
    host_case(
        "refine_steps",
        {"draft": Draft(text="a", feedback=(), score=-3.0), "n": 2},
        lambda steps: number(drive(steps, lambda state: state).final.score),
    ),
]


def psd(gen, *shape):
    """Positive definite matrices [..., 3, 3]."""
    x = randn(gen, *shape, 3, 3)
    return x @ x.mT + 0.5 * torch.eye(3, dtype=torch.float64)


def state(gen):
    return {"layers.0.q_proj.w": randn(gen, 3, 4), "layers.1.q_proj.w": randn(gen, 3, 4), "norm": randn(gen, 4)}


def state_case(name, make, **more):
    return Case(name=name, make=make, mask=None, output=lambda merged: merged["norm"], skip=STATES, **more)


MERGING = [
    state_case("average", lambda g: {"states": [state(g), state(g)], "weights": [1.0, 2.0]}),
    state_case("ties", lambda g: {"base": state(g), "states": [state(g), state(g)], "density": 0.5}),
    state_case("lines", lambda g: {"base": state(g), "merged": state(g), "alpha": 0.3, "beta": 0.7}),
    state_case("gcwm", lambda g: {"base": state(g), "states": [state(g), state(g)]}),
    state_case("continual_merge", lambda g: {"previous": state(g), "update": state(g), "last_update": state(g)}),
    Case(
        name="lines_alpha",
        make=lambda g: {"base": state(g), "states": [state(g), state(g)], "merged": state(g)},
        mask=None,
        output=number,
        skip=STATES,
    ),
    host_case("lines_scale", {"block": 1, "blocks": 4, "alpha": 0.4, "beta": 0.6}),
    Case(name="trim", make=lambda g: {"tau": randn(g, 7), "density": 0.5}, mask=None, skip=CONSTANT),
    Case(name="elect_and_average", make=lambda g: {"taus": randn(g, 3, 7)}, mask=None, skip=CONSTANT),
    Case(
        name="combine_lora",
        make=lambda g: {"adapters": [(randn(g, 2, 4), randn(g, 3, 2))] * 2, "weights": [0.5, 0.5]},
        mask=None,
        skip=STATES,
    ),
    Case(
        name="bures_distance",
        make=lambda g: {"a": psd(g, B), "b": psd(g, B)},
        rows=("a", "b"),
        mask=None,
        skip=CONSTANT,
    ),
    Case(name="geometry_conflict", make=lambda g: {"covariances": psd(g, 3)}, mask=None, skip=CONSTANT),
    Case(
        name="conflict_gate",
        make=lambda g: {"conflict": torch.rand(B, generator=g, dtype=torch.float64)},
        rows=("conflict",),
        mask=None,
        skip=CONSTANT,
    ),
    Case(
        name="wasserstein_barycenter",
        make=lambda g: {"covariances": psd(g, 3)},
        mask=None,
        skip=CONSTANT | {"fake": "iterates until it has converged"},
    ),
    Case(name="wudi", make=lambda g: {"updates": randn(g, 2, 3, 4)}, mask=None),
    Case(
        name="wudi",
        make=lambda g: {"updates": randn(g, 2, 3, 4), "method": "adam", "iterations": 2},
        mask=None,
        id="adam",
        skip={"fake": "an optimiser runs inside"},
    ),
    Case(
        name="gcwm_merge",
        make=lambda g: {"updates": randn(g, 2, 3, 4)},
        mask=None,
        skip={"fake": "the rank of the common basis depends on the values"},
    ),
]

REWARD = [
    Case(
        name="combine_rewards",
        make=lambda g: {"components": randn(g, B, 3), "weights": [1.0, 2.0, 0.5], "gate": torch.arange(B) != 1},
        rows=("components", "gate"),
        mask=None,
    ),
    *[
        Case(
            name="combine_rewards",
            make=lambda g, mode=mode: {"components": randn(g, B, 3), "mode": mode, "group": groups()},
            rows=("components", "group"),
            mask=None,
            id=mode,
        )
        for mode in ("group-normalised", "lexicographic")
    ],
    Case(
        name="crpo_reward",
        make=lambda g: {name: randn(g, B) for name in ("accuracy", "faithfulness", "comprehensiveness")},
        rows=("accuracy", "faithfulness", "comprehensiveness"),
        mask=None,
    ),
]

CASES = [*TEST_TIME, *MERGING, *REWARD]
