"""Cases of supervised fine-tuning, its mixtures with reinforcement, text feedback and preferences."""

import random

import torch

from .cases import B, Case, G, T, groups, logprobs, mask, near, randn

HOST = {"fake": "runs on the host, on Python numbers"}
THROUGH = {"gradcheck": "the gradient is by design not that of the value: part of it is detached; tested by hand"}
BOOL = {"dtype": "returns booleans"}
SFT_RL_ROWS = ("rewards", "group")


def demonstration(gen, **more):
    lp = logprobs(gen)
    return {"logprobs": lp, "ref_logprobs": near(lp, gen), "mask": mask(gen)} | more


def pear(gen, **more):
    lp = logprobs(gen)
    return {"logprobs": lp, "demo_logprobs": near(lp, gen, 0.1), "mask": mask(gen)} | more


def divergence_case(kind):
    return Case(
        name="f_divergence_sft_loss",
        make=lambda g: demonstration(g, kind=kind, beta=0.5),
        tokens=("logprobs", "ref_logprobs", "mask"),
        grad=("logprobs",),
        detached=("ref_logprobs",),
        id=kind,
    )


PEAR = {"tokens": ("logprobs", "demo_logprobs", "mask")}
SFT = [
    Case(
        name="sft_loss",
        make=lambda g: {"logprobs": logprobs(g), "mask": mask(g)},
        tokens=("logprobs", "mask"),
        grad=("logprobs",),
    ),
    *[divergence_case(kind) for kind in ("tv", "kl", "reverse_kl", "pearson", "hellinger", "js")],
    Case(name="pear_weights", make=pear, **PEAR),
    Case(name="pear_weights", make=lambda g: pear(g, level="block", block=2), id="block", **PEAR),
    Case(name="pear_weights", make=lambda g: pear(g, level="sequence"), id="sequence", **PEAR),
    Case(name="pear_loss", make=pear, grad=("logprobs",), detached=("demo_logprobs",), skip=THROUGH, **PEAR),
]


def prefixes(gen):
    """Every first row of a group starts with three demonstration tokens."""
    prefix = torch.zeros(B, T, dtype=torch.bool)
    prefix[::G, :3] = True
    return {
        "rewards": randn(gen, B),
        "group": groups(),
        "prefix_mask": prefix,
        "mask": mask(gen) | prefix,
        "kept_prefix": prefix & (torch.rand(B, T, generator=gen) < 0.7),
    }


def binary(gen):
    """Rewards of a mixed group and of one whose rows all fail."""
    return {"rewards": torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64), "group": groups()}


SFT_RL = [
    Case(
        name="prefix_ratio_range",
        make=lambda g: {"step": 3, "total": 10},
        mask=None,
        output=lambda x: torch.tensor(x, dtype=torch.float64),
        skip=HOST,
    ),
    Case(
        name="prefix_length",
        make=lambda g: {"demo_length": 9, "ratio_range": (0.5, 0.9), "rng": random.Random(0)},
        mask=None,
        output=lambda x: torch.tensor(float(x)),
        skip=HOST,
    ),
    Case(
        name="prefix_entropy_mask",
        make=lambda g: {
            "entropy": torch.rand(B, T, generator=g, dtype=torch.float64),
            "prefix_mask": mask(g),
            "keep": 0.5,
        },
        tokens=("entropy", "prefix_mask"),
        mask="prefix_mask",
        skip=BOOL,
    ),
    *[
        Case(
            name="prefix_rft_advantages",
            make=lambda g, style=style: prefixes(g) | {"repo_style": style},
            tokens=("prefix_mask", "mask", "kept_prefix"),
            rows=SFT_RL_ROWS,
            id="repo" if style else "",
        )
        for style in (False, True)
    ],
    Case(name="dypo_states", make=binary, rows=SFT_RL_ROWS, mask=None, skip=BOOL),
    Case(
        name="group_alignment_loss",
        make=lambda g: demonstration(g) | binary(g),
        tokens=("logprobs", "ref_logprobs", "mask"),
        rows=SFT_RL_ROWS,
        grad=("logprobs",),
        detached=("ref_logprobs", "rewards"),
    ),
    Case(
        name="dypo_loss",
        make=lambda g: {name: randn(g, B) for name in ("rl", "alignment", "sft")} | binary(g),
        rows=("rl", "alignment", "sft", *SFT_RL_ROWS),
        mask=None,
        grad=("rl", "alignment", "sft"),
        detached=("rewards",),
    ),
]

FEEDBACK = [
    Case(
        name="sd_advantages",
        make=lambda g: {
            "first_rewards": randn(g, B),
            "second_rewards": randn(g, B),
            "second": torch.arange(B) % 2 == 0,
            "group": groups(),
        },
        rows=("first_rewards", "second_rewards", "second", "group"),
        mask=None,
    ),
    Case(
        name="rltf_sd_loss",
        make=lambda g: {
            "logprobs": (lp := 2 * logprobs(g)),
            "old_logprobs": near(lp, g),
            "advantages": randn(g, B),
            "mask": mask(g),
        },
        tokens=("logprobs", "old_logprobs", "mask"),
        rows=("advantages",),
        grad=("logprobs",),
        detached=("old_logprobs", "advantages"),
        zero="advantages",
    ),
    Case(
        name="sd_coefficient",
        make=lambda g: {"step": 3, "total": 10},
        mask=None,
        output=lambda x: torch.tensor(x, dtype=torch.float64),
        skip=HOST,
    ),
    Case(
        name="feedback_model_loss",
        make=lambda g: {"logprobs": logprobs(g), "mask": mask(g)},
        tokens=("logprobs", "mask"),
        grad=("logprobs",),
    ),
]

SIDES = ("chosen", "rejected", "ref_chosen", "ref_rejected")


def pair_case(name, **options):
    return Case(
        name=name,
        make=lambda g: {side: randn(g, B) for side in SIDES} | options,
        rows=SIDES,
        mask=None,
        grad=SIDES[:2],
        detached=SIDES[2:],
        id="-".join(map(str, options.values())),
    )


PREFERENCE = [
    pair_case("dpo_loss"),
    pair_case("dpo_loss", smoothing=0.1, robust=True),
    *[pair_case("f_dpo_loss", divergence=name) for name in ("reverse_kl", "forward_kl", "js", "alpha")],
    pair_case("ipo_loss"),
    pair_case("slic_loss"),
    Case(
        name="bradley_terry_loss",
        make=lambda g: {"chosen": randn(g, B), "rejected": randn(g, B), "margin": randn(g, B), "centering": 0.01},
        rows=("chosen", "rejected", "margin"),
        mask=None,
        grad=("chosen", "rejected"),
        detached=("margin",),
    ),
    *[
        Case(
            name="sequence_logprobs",
            make=lambda g, mean=mean: {"logprobs": logprobs(g), "mask": mask(g), "length_normalize": mean},
            tokens=("logprobs", "mask"),
            grad=("logprobs",),
            id="mean" if mean else "",
        )
        for mean in (False, True)
    ],
    Case(
        name="behaviour_average",
        make=lambda g: {"states": [{"w": randn(g, 2)} for _ in range(3)]},
        mask=None,
        output=lambda state: state["w"],
        skip=HOST,
    ),
    Case(
        name="BehaviorReference",
        make=lambda g: {"phase_length": 2},
        mask=None,
        output=lambda reference: torch.tensor(float(reference.maybe_refresh(0, {}))),
        skip=HOST,
    ),
    Case(
        name="length_controlled_winrate",
        make=lambda g: {"preferences": [1.0, 0.0, 0.5], "length_model": [5, 9, 3], "length_baseline": [4, 2, 6]},
        mask=None,
        output=lambda rate: torch.tensor(rate.lc, dtype=torch.float64),
        skip=HOST,
    ),
]

CASES = [*SFT, *SFT_RL, *FEEDBACK, *PREFERENCE]
