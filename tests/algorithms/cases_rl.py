"""Cases of the reinforcement-learning half: advantages, ratios, losses, corrections, KL, rewards, curricula, fits."""

import math

import torch

from .cases import B, Case, G, T, V, groups, logprobs, mask, near, randn

HOST = {"fake": "runs on the host, on Python numbers"}
BATCH = {"split": "a statistic of the whole batch is part of the formula"}
THROUGH = {"gradcheck": "the gradient is by design not that of the value: part of it is detached; tested by hand"}
PLACES = {"pad": "columns are turns or steps, known by their place"}
BOOL = {"dtype": "returns booleans or integers"}
RANDOM = {"permute": "draws random numbers in order"}


def policy(gen, **more):
    lp = logprobs(gen)
    return {"logprobs": lp, "old_logprobs": near(lp, gen), "advantages": randn(gen, B), "mask": mask(gen)} | more


def policy_tokens(gen, **more):
    return policy(gen) | {"advantages": randn(gen, B, T)} | more


def loss_case(name, make=policy, tokens=(), detached=(), **more):
    by_token = make is policy_tokens or more.get("id") == "tokens"
    fields = {
        "name": name,
        "make": make,
        "tokens": ("logprobs", "old_logprobs", "mask", *(("advantages",) if by_token else ()), *tokens),
        "rows": () if by_token else ("advantages",),
        "grad": ("logprobs",),
        "detached": ("old_logprobs", "advantages", *detached),
        "zero": "advantages",
    }
    return Case(**(fields | more))


def decoupled(gen):
    inputs = policy(gen)
    return inputs | {"sampler_logprobs": near(inputs["old_logprobs"], gen, 1.0)}


LOSSES = [
    loss_case("reinforce"),
    loss_case("reinforce", policy_tokens, id="tokens"),
    loss_case("ppo_clip"),
    loss_case("ppo_clip", lambda g: policy_tokens(g, clip_high=0.28, dual_clip=1.2), id="tokens"),
    loss_case("cispo", skip=THROUGH),
    loss_case("cispo", lambda g: policy_tokens(g, max_ratio=1.1, min_ratio=0.9), id="tokens", skip=THROUGH),
    loss_case("gspo", skip=THROUGH),
    loss_case("gspo", lambda g: policy_tokens(g, clip_low=0.1, clip_high=0.1), id="tokens", skip=THROUGH),
    loss_case("ctpo", lambda g: policy(g, clip_low=0.3, clip_high=0.3), skip=THROUGH),
    loss_case("ctpo", lambda g: policy_tokens(g, power=-0.5, average=True), id="tokens", skip=THROUGH),
    loss_case("ctpo", lambda g: policy(g, power=0.0, dual_clip=None), id="constant", skip=THROUGH),
    loss_case("decoupled_ppo", decoupled, tokens=("sampler_logprobs",), detached=("sampler_logprobs",)),
    loss_case(
        "decoupled_ppo",
        lambda g: decoupled(g) | {"cap_mode": "truncate", "cap": 1.5},
        tokens=("sampler_logprobs",),
        detached=("sampler_logprobs",),
        id="truncate",
    ),
    loss_case("f_tis", lambda g: policy(g, max_kl=0.2), skip=THROUGH),
    loss_case("f_tis", lambda g: policy_tokens(g, kind="k1", reduce="mean"), id="tokens", skip=THROUGH),
]


def pair(gen):
    lp = logprobs(gen)
    return {"logprobs": lp, "old_logprobs": near(lp, gen), "mask": mask(gen)}


def ratio_case(name, **more):
    return Case(
        **(
            {
                "name": name,
                "make": pair,
                "tokens": ("logprobs", "old_logprobs", "mask"),
                "grad": ("logprobs",),
                "detached": ("old_logprobs",),
            }
            | more
        )
    )


RATIOS = [
    ratio_case("token_ratio"),
    ratio_case("sequence_ratio", skip=THROUGH),
    ratio_case("cumulative_ratio", skip=THROUGH),
    ratio_case("cumulative_ratio", make=lambda g: pair(g) | {"average": True}, id="average", skip=THROUGH),
]


def sampled(gen, **more):
    old = logprobs(gen)
    return {"old_logprobs": old, "sampler_logprobs": near(old, gen), "mask": mask(gen)} | more


def correction_case(name, rows=(), **parameters):
    skip = parameters.pop("skip", {})
    tag = parameters.pop("id", "")
    return Case(
        name=name,
        make=lambda g: sampled(g, **{k: v(g) if callable(v) else v for k, v in parameters.items()}),
        tokens=("old_logprobs", "sampler_logprobs", "mask"),
        rows=rows,
        output=lambda result: result[0] * result[1],
        skip=skip,
        id=tag,
    )


CORRECTIONS = [
    correction_case("truncated_is"),
    correction_case("truncated_is", level="sequence", cap=1.5, id="sequence"),
    correction_case("masked_is", low=0.8, high=1.2),
    correction_case("masked_is", level="sequence", id="sequence"),
    correction_case("geometric_rejection", low=0.95, high=1.05),
    correction_case("divergence_rejection", threshold=0.04),
    correction_case("divergence_rejection", kind="k2", threshold=0.04, id="k2"),
    correction_case("mirror_pop", threshold=0.25),
    correction_case("gated_is", low=0.95, high=1.05),
    correction_case("off_policy_sequence_mask", rows=("advantages",), advantages=lambda g: randn(g, B), threshold=0.0),
    Case(
        name="self_normalised",
        make=lambda g: {"weight": randn(g, B, T).exp(), "mask": mask(g)},
        tokens=("weight", "mask"),
        skip=BATCH,
    ),
    Case(
        name="sequence_log_weights",
        make=lambda g: {"sampler_logprobs": logprobs(g), "logprobs": logprobs(g), "mask": mask(g)},
        tokens=("logprobs", "sampler_logprobs", "mask"),
    ),
    Case(name="ess_ratio", make=lambda g: {"log_weights": randn(g, B)}, rows=("log_weights",), mask=None, skip=BATCH),
    Case(name="ess_lr_scale", make=lambda g: {"ratio": torch.rand((), generator=g).double(), "base": 0.5}, mask=None),
]


def reference(gen, **more):
    lp = logprobs(gen)
    return {"logprobs": lp, "ref_logprobs": near(lp, gen), "mask": mask(gen)} | more


KL = [
    Case(
        name="kl",
        make=lambda g, kind=kind: reference(g, kind=kind),
        tokens=("logprobs", "ref_logprobs", "mask"),
        grad=("logprobs",),
        detached=("ref_logprobs",),
        skip=THROUGH if kind.endswith("+") else {},
        id=kind,
    )
    for kind in ("k1", "k2", "k3", "k1+", "k3+")
] + [
    Case(
        name="unbiased_kl",
        make=lambda g: reference(g, sampler_logprobs=logprobs(g)),
        tokens=("logprobs", "ref_logprobs", "sampler_logprobs", "mask"),
        grad=("logprobs",),
        detached=("ref_logprobs", "sampler_logprobs"),
    ),
    Case(
        name="kl_in_reward",
        make=lambda g: reference(g, rewards=randn(g, B)),
        tokens=("logprobs", "ref_logprobs", "mask"),
        rows=("rewards",),
        skip={"empty": "nothing is differentiable"},
    ),
]


def grouped(gen, **more):
    return {"rewards": randn(gen, B), "group": groups()} | more


ADVANTAGES = [
    Case(name="group_advantage", make=grouped, rows=("rewards", "group"), mask=None),
    Case(
        name="group_advantage",
        make=lambda g: grouped(g, scale="batch", ddof=1, keep=torch.rand(B, generator=g) < 0.8),
        rows=("rewards", "group", "keep"),
        mask=None,
        skip=BATCH,
        id="batch",
    ),
    Case(
        name="group_advantage", make=lambda g: grouped(g, scale="none"), rows=("rewards", "group"), mask=None, id="none"
    ),
    Case(name="rloo", make=grouped, rows=("rewards", "group"), mask=None),
    Case(
        name="reinforce_plus_plus",
        make=lambda g: {
            "rewards": randn(g, B),
            "mask": mask(g),
            "kl": randn(g, B, T),
            "beta": 0.1,
            "gamma": 0.9,
        },
        tokens=("mask", "kl"),
        rows=("rewards",),
        skip=BATCH,
    ),
    Case(
        name="reinforce_plus_plus_baseline",
        make=lambda g: grouped(g, mask=mask(g)),
        tokens=("mask",),
        rows=("rewards", "group"),
        skip=BATCH,
    ),
    Case(
        name="discounted_returns",
        make=lambda g: {"token_rewards": randn(g, B, T), "mask": mask(g), "gamma": 0.9},
        tokens=("token_rewards", "mask"),
    ),
    Case(name="whiten", make=lambda g: {"x": randn(g, B, T), "mask": mask(g)}, tokens=("x", "mask"), skip=BATCH),
    Case(
        name="gae",
        make=lambda g: {
            "token_rewards": randn(g, B, T),
            "values": randn(g, B, T),
            "mask": mask(g),
            "gamma": 0.9,
            "lam": 0.8,
            "bootstrap": randn(g, B),
        },
        tokens=("token_rewards", "values", "mask"),
        rows=("bootstrap",),
    ),
    Case(
        name="turn_gae",
        make=lambda g: {
            "turn_rewards": randn(g, B, T),
            "values": randn(g, B, T),
            "turn_mask": mask(g),
            "turn": torch.randint(-1, T, (B, T), generator=g),
            "lam": 0.8,
        },
        mask="turn_mask",
        skip=PLACES,
        tokens=("turn_rewards", "values", "turn_mask"),
        rows=("turn",),
    ),
    Case(
        name="optimal_baseline",
        make=lambda g: grouped(g, log_weights=randn(g, B), squared_norms=randn(g, B).square()),
        rows=("rewards", "log_weights", "squared_norms", "group"),
        mask=None,
    ),
    Case(
        name="vcpo_advantage",
        make=lambda g: grouped(g, log_weights=randn(g, B), squared_norms=randn(g, B).square(), normalise=True),
        rows=("rewards", "log_weights", "squared_norms", "group"),
        mask=None,
    ),
    Case(
        name="score_norm",
        make=lambda g: {
            "logprobs": logprobs(g),
            "sum_squared_probs": torch.rand(B, T, generator=g, dtype=torch.float64),
            "mask": mask(g),
        },
        tokens=("logprobs", "sum_squared_probs", "mask"),
    ),
    Case(
        name="mixed_var_weight",
        make=lambda g: {"scores": 2 * randn(g, B), "low": -1.0, "high": torch.tensor(1.0, dtype=torch.float64)},
        rows=("scores",),
        mask=None,
    ),
    Case(
        name="track_quantiles",
        make=lambda g: {
            "quantiles": randn(g, 3),
            "scores": randn(g, B),
            "levels": torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64),
        },
        mask=None,
    ),
    Case(
        name="bundle_scores",
        make=lambda g: {"correct": randn(g, B, G), "bundles": torch.tensor([[0, 3], [4, 1]])},
        mask=None,
    ),
    Case(
        name="bundle_advantage",
        make=lambda g: {
            "correct": randn(g, B, G),
            "bundles": torch.tensor([[0, 3], [4, 1]]),
            "weights": randn(g, 2, G),
            "credit": "sum-mean",
        },
        mask=None,
    ),
    Case(
        name="progress_advantage",
        make=lambda g: reference(g, beta=0.5),
        tokens=("logprobs", "ref_logprobs", "mask"),
    ),
    *(
        Case(
            name="progress_steps",
            make=lambda g, reduce=reduce: reference(
                g, step=torch.randint(0, 3, (B, T), generator=g), n_steps=3, reduce=reduce
            ),
            tokens=("logprobs", "ref_logprobs", "mask", "step"),
            id=reduce,
        )
        for reduce in ("mean", "sum", "last", "min", "max")
    ),
    *(
        Case(
            name="progress_score",
            make=lambda g, reduce=reduce: {"steps": randn(g, B, T), "present": mask(g), "reduce": reduce},
            tokens=("steps", "present"),
            mask="present",
            id=reduce,
        )
        for reduce in ("mean", "last", "min", "bottom10")
    ),
    Case(
        name="erring_step",
        make=lambda g: {"steps": randn(g, B, T), "present": mask(g)},
        tokens=("steps", "present"),
        mask="present",
        skip=BOOL | PLACES | {"empty": "the step of a row without steps means nothing"},
    ),
]


def answers(gen):
    return {"answers": torch.randint(-1, 3, (B,), generator=gen), "group": groups()}


REWARDS = [
    Case(
        name="overlong_penalty",
        make=lambda g: {"lengths": torch.randint(0, 30, (B,), generator=g), "l_max": 20, "l_cache": 8},
        rows=("lengths",),
        mask=None,
        skip={"dtype": "integers in, float32 out"},
    ),
    Case(
        name="drop_truncated",
        make=lambda g: {"mask": mask(g), "truncated": torch.rand(B, generator=g) < 0.5},
        tokens=("mask",),
        rows=("truncated",),
        skip=BOOL,
    ),
    Case(
        name="prime_echo",
        make=lambda g: {
            "scores": 2 * torch.rand(B, T, generator=g).double(),
            "turns": torch.arange(T) < torch.arange(1, B + 1)[:, None],
        },
        tokens=("scores", "turns"),
        mask="turns",
        skip=PLACES | {"empty": "the first turn always takes place"},
    ),
    Case(
        name="first_turn",
        make=lambda g: {"mask": mask(g), "turn": torch.randint(0, 3, (B, T), generator=g)},
        tokens=("mask", "turn"),
        skip=BOOL,
    ),
    Case(
        name="attempt_reward",
        make=lambda g: {"passed": torch.rand(B, generator=g).double(), "speedup": 1 + randn(g, B).abs()},
        rows=("passed", "speedup"),
        mask=None,
    ),
    Case(
        name="vote_rewards",
        make=answers,
        rows=("answers", "group"),
        mask=None,
        skip={"dtype": "integers in", "permute": "ties go to the first seen; tested without ties"},
    ),
    Case(
        name="vote_metrics",
        make=lambda g: answers(g) | {"gold": groups()},
        rows=("answers", "gold", "group"),
        mask=None,
        output=lambda result: torch.stack(list(result.values())),
        skip=BATCH | {"dtype": "integers in", "permute": "ties go to the first seen"},
    ),
    Case(
        name="vpo_scores",
        make=lambda g: {
            "rewards": torch.rand(B, 3, 2, generator=g).double(),
            "weights": torch.rand(4, 2, generator=g).double(),
        },
        rows=("rewards",),
        mask=None,
    ),
    Case(name="simplex_weights", make=lambda g: {"n": 4, "k": 3}, mask=None, skip={"dtype": "takes no tensor"}),
    Case(
        name="distinct",
        make=lambda g: {
            "rewards": torch.rand(B, 4, 2, generator=g).double(),
            "candidates": torch.randint(-1, 3, (B, 4), generator=g),
        },
        rows=("rewards", "candidates"),
        grad=("rewards",),
        mask=None,
    ),
    Case(
        name="auroc",
        make=lambda g: {"scores": randn(g, B), "labels": torch.arange(B) % 2 == 0},
        rows=("scores", "labels"),
        mask=None,
        skip=BATCH,
    ),
]

OTHERS = [
    Case(
        name="value_loss",
        make=lambda g: {
            "values": (v := randn(g, B, T)),
            "old_values": near(v, g),
            "returns": randn(g, B, T),
            "mask": mask(g),
        },
        tokens=("values", "old_values", "returns", "mask"),
        grad=("values",),
        detached=("old_values", "returns"),
    ),
    Case(
        name="entropy",
        make=lambda g: {"logits": randn(g, B, T, V), "mask": mask(g), "temperature": 0.7},
        tokens=("logits", "mask"),
        grad=("logits",),
    ),
    Case(
        name="entropy_loss",
        make=lambda g: {"logits": randn(g, B, T, V), "mask": mask(g)},
        tokens=("logits", "mask"),
        grad=("logits",),
    ),
    Case(
        name="row_weights",
        make=lambda g: {"mask": mask(g), "mode": "prompt-mean", "group": groups()},
        tokens=("mask",),
        rows=("group",),
        skip=BATCH | {"dtype": "booleans in, float64 out"},
    ),
    Case(
        name="aggregate",
        make=lambda g: {"loss": randn(g, B, T), "mask": mask(g), "weights": torch.rand(B, generator=g).double()},
        tokens=("loss", "mask"),
        rows=("weights",),
        grad=("loss",),
    ),
]

CURRICULA = [
    Case(name="select_intermediate", make=lambda g: {"values": randn(g, B), "m": 3}, mask=None, skip=BOOL),
    Case(
        name="has_signal",
        make=lambda g: {"rewards": torch.tensor([0, 0, 0, 1.0, 0, 0]), "group": groups()},
        rows=("rewards", "group"),
        mask=None,
        skip=BOOL,
    ),
    Case(
        name="effective_ratio",
        make=lambda g: grouped(g) | {"rewards": torch.tensor([0, 0, 0, 1.0, 0, 0]).double()},
        rows=("rewards", "group"),
        mask=None,
        skip=BATCH,
    ),
    Case(
        name="ucb_probabilities",
        make=lambda g: {"means": randn(g, B).abs(), "counts": torch.randint(0, 50, (B,), generator=g)},
        rows=("means", "counts"),
        mask=None,
        skip=BATCH,
    ),
    *(
        Case(
            name="informativeness",
            make=lambda g, kind=kind: grouped(g, kind=kind),
            rows=("rewards", "group"),
            mask=None,
            id=kind,
        )
        for kind in ("regret", "range", "advantage", "variance")
    ),
    Case(name="sample_informative", make=lambda g: {"info": randn(g, B).abs(), "m": 3}, mask=None, skip=BOOL),
    Case(
        name="mastered",
        make=lambda g: {"passes": torch.randint(0, 9, (B,), generator=g), "attempts": torch.full((B,), 9)},
        rows=("passes", "attempts"),
        mask=None,
        skip=BOOL,
    ),
    Case(
        name="upgraded",
        make=lambda g: {
            "rung": torch.randint(0, 3, (B,), generator=g),
            "mean_reward": torch.rand(B, generator=g),
            "last": torch.full((B,), 2),
        },
        rows=("rung", "mean_reward", "last"),
        mask=None,
        skip=BOOL,
    ),
]

CURVE = [1e3 * 2**i for i in range(8)]
FITS = [
    Case(
        name="sigmoid_curve",
        grad=("compute",),
        make=lambda g: {
            "compute": torch.tensor(CURVE).double(),
            "start": 0.3,
            "asymptote": 0.6,
            "exponent": 1.7,
            "midpoint": 8e3,
        },
        mask=None,
        skip={"dtype": "always float64"},
    ),
    Case(
        name="fit_sigmoid",
        make=lambda g: {"compute": CURVE, "scores": [0.6 - 0.3 / (1 + c / 8e3) for c in CURVE], "start": 0.3},
        mask=None,
        output=lambda fit: torch.tensor([fit.asymptote, fit.exponent], dtype=torch.float64),
        skip=HOST,
    ),
    Case(
        name="power_law_slope",
        grad=("size",),
        make=lambda g: {"size": torch.tensor([1.0, 7.0]).double(), "k_max": 0.5, "n0": 7.0},
        mask=None,
        skip={"dtype": "always float64"},
    ),
    Case(
        name="fit_power_law",
        make=lambda g: {
            "points": [(n, x, math.exp(-0.1 * math.log(x))) for n in (1e9, 3e9) for x in (10.0, 100.0, 1e3)]
        },
        mask=None,
        output=lambda fit: torch.tensor([fit.k_max], dtype=torch.float64),
        skip=HOST,
    ),
]

CASES = [*LOSSES, *RATIOS, *CORRECTIONS, *KL, *ADVANTAGES, *REWARDS, *OTHERS, *CURRICULA, *FITS]
