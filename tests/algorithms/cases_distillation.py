"""Cases of distillation: on tokens, on distributions, from stale and sparse data, beyond the teacher, speculative."""

import random

import torch

from toolgym.algorithms.speculative import DraftRequest, SKDOptions

from .cases import B, Case, T, V, groups, logprobs, mask, near, randn

HOST = {"fake": "runs on the host, on Python numbers"}
THROUGH = {"gradcheck": "the gradient is by design not that of the value: part of it is detached; tested by hand"}
BOOL = {"dtype": "returns booleans"}
N = 3  # samples, or support, of a position


def tokens(gen, **more):
    lp = logprobs(gen)
    return {"logprobs": lp, "teacher_logprobs": near(lp, gen), "mask": mask(gen)} | more


def stale(gen, **more):
    inputs = tokens(gen)
    return inputs | {"old_logprobs": near(inputs["logprobs"], gen)} | more


def samples(gen, **more):
    lp = logprobs(gen, B, T, N)
    drawn = torch.rand(B, T, N, generator=gen) < 0.8
    return {"logprobs": lp, "teacher_logprobs": near(lp, gen), "mask": mask(gen), "samples": drawn} | more


def stale_samples(gen, **more):
    inputs = samples(gen)
    return inputs | {"old_logprobs": near(inputs["logprobs"], gen)} | more


def vocabulary(gen, **more):
    return {"student_logits": randn(gen, B, T, V), "teacher_logits": randn(gen, B, T, V + 1), "mask": mask(gen)} | more


def sparse(gen, **more):
    ids = torch.rand(B, T, V, generator=gen).argsort(-1)[..., :N]
    ids[0, :, 1] = -1
    teacher = randn(gen, B, T, V).log_softmax(-1).gather(-1, ids.clamp(min=0))
    inputs = {"student_logits": randn(gen, B, T, V), "ids": ids, "teacher_logprobs": teacher, "mask": mask(gen)}
    return inputs | more


def token_case(name, make=tokens, **more):
    fields = {
        "name": name,
        "make": make,
        "tokens": ("logprobs", "teacher_logprobs", "mask"),
        "grad": ("logprobs",),
        "detached": ("teacher_logprobs",),
    }
    return Case(**(fields | more))


STALE = {
    "tokens": ("logprobs", "old_logprobs", "teacher_logprobs", "mask"),
    "detached": ("old_logprobs", "teacher_logprobs"),
}
SAMPLED = {"tokens": ("logprobs", "teacher_logprobs", "mask", "samples")}
STALE_SAMPLED = {
    "tokens": ("logprobs", "old_logprobs", "teacher_logprobs", "mask", "samples"),
    "detached": ("old_logprobs", "teacher_logprobs"),
}


def vocabulary_case(name, make=vocabulary, **more):
    fields = {
        "name": name,
        "make": make,
        "tokens": ("student_logits", "teacher_logits", "mask"),
        "grad": ("student_logits",),
        "detached": ("teacher_logits",),
    }
    return Case(**(fields | more))


def sparse_case(**more):
    fields = {
        "name": "sparse_kl",
        "tokens": ("student_logits", "ids", "teacher_logprobs", "mask"),
        "grad": ("student_logits",),
        "detached": ("teacher_logprobs",),
    }
    return Case(**(fields | more))


def kdrl(gen):
    return tokens(gen) | {"rl_loss": randn(gen, B, T), "kd_weight": torch.rand(B, generator=gen, dtype=torch.float64)}


LOSSES = [
    token_case("distillation_kl"),
    token_case("distillation_kl", lambda g: tokens(g, kind="k3"), id="k3"),
    token_case("distillation_kl", lambda g: tokens(g, kind="k3+"), id="k3+", skip=THROUGH),
    token_case("distillation_kl", stale, id="stale", skip=THROUGH, **STALE),
    token_case(
        "kdrl_loss",
        kdrl,
        tokens=("logprobs", "teacher_logprobs", "mask", "rl_loss"),
        rows=("kd_weight",),
        grad=("logprobs", "rl_loss"),
        detached=("teacher_logprobs", "kd_weight"),
    ),
    token_case("opd_loss", stale, skip=THROUGH, **STALE),
    token_case("opd_loss", lambda g: stale(g, recompute=False, clip=0.2), id="stored", **STALE),
    token_case("opd_loss", lambda g: stale(g, discount=1.0, clip=0.2), id="returns", skip=THROUGH, **STALE),
    token_case("opd_loss", lambda g: stale(g, discount=0.5), id="discounted", skip=THROUGH, **STALE),
    token_case("offline_opd_loss", skip=THROUGH),
    token_case("multi_sample_opd_loss", stale_samples, skip=THROUGH, **STALE_SAMPLED),
    token_case("multi_sample_opd_loss", lambda g: stale_samples(g, recompute=False), id="stored", **STALE_SAMPLED),
    token_case("multi_sample_forward_kl", samples, **SAMPLED),
    vocabulary_case("mixed_kl"),
    vocabulary_case("mixed_kl", lambda g: vocabulary(g, reverse_weight=1.0, temperature=0.7), id="reverse"),
    vocabulary_case("mixed_kl", lambda g: vocabulary(g, reverse_weight=0.0), id="forward"),
    vocabulary_case("generalized_jsd"),
    vocabulary_case("generalized_jsd", lambda g: vocabulary(g, beta=0.0, temperature=0.9), id="forward"),
    vocabulary_case("generalized_jsd", lambda g: vocabulary(g, beta=1.0), id="reverse"),
    sparse_case(make=sparse),
    sparse_case(make=lambda g: sparse(g, reverse_weight=0.5, clip=0.1), id="skewed"),
    sparse_case(make=lambda g: sparse(g, reverse_weight=1.0, tail_bucket=True), id="bucket"),
]


def bernoulli(gen, **more):
    base = 0.05 + 0.4 * torch.rand(B, generator=gen, dtype=torch.float64)
    return {"p": 0.95 - 0.3 * torch.rand(B, generator=gen, dtype=torch.float64), "b": base} | more


def skd_tokens(steps):
    """Drive a sampling of at most 7 tokens: the student always drafts 1, the teacher prefers 2."""
    try:
        request = next(steps)
        while True:
            if isinstance(request, DraftRequest):
                request = steps.send([1] * request.n)
            else:
                request = steps.send(torch.tensor([0.0, 1.0, 2.0]).expand(len(request.draft), 3))
    except StopIteration as stop:
        return torch.tensor(stop.value.tokens, dtype=torch.float64)


OTHERS = [
    token_case("opd_advantage", grad=(), detached=()),
    token_case("opd_advantage", lambda g: tokens(g, discount=0.5, coefficient=0.3), id="half", grad=(), detached=()),
    Case(
        name="extrapolated_advantage",
        make=lambda g: tokens(g, ref_logprobs=logprobs(g)),
        tokens=("logprobs", "teacher_logprobs", "ref_logprobs", "mask"),
    ),
    Case(
        name="critical_positions",
        make=lambda g: {"teacher_logits": 3 * randn(g, B, T, V), "mask": mask(g)},
        tokens=("teacher_logits", "mask"),
        skip=BOOL | {"detached": "returns booleans"},
    ),
    Case(name="bernoulli_fixed_point", make=lambda g: bernoulli(g, lam=1.3), rows=("p", "b"), mask=None,
         skip={"detached": "differentiable, but nothing trains through it"}),
    Case(name="cliff_lambda", make=bernoulli, rows=("p", "b"), mask=None,
         skip={"detached": "differentiable, but nothing trains through it"}),
    Case(name="safe_lambda", make=lambda g: bernoulli(g, lam=1.3), rows=("p", "b"), mask=None,
         skip={"detached": "differentiable, but nothing trains through it"}),
    Case(
        name="reward_guided_mask",
        make=lambda g: {"rewards": randn(g, B), "group": groups(), "mode": "group"},
        rows=("rewards", "group"),
        mask=None,
        skip=BOOL,
    ),
    Case(
        name="kd_coefficient",
        make=lambda g: {"step": 7},
        mask=None,
        output=lambda x: torch.tensor(x, dtype=torch.float64),
        skip=HOST,
    ),
    Case(
        name="prefix_source",
        make=lambda g: {"student_fraction": 0.5, "rng": random.Random(0)},
        mask=None,
        output=lambda x: torch.tensor(float(x == "student")),
        skip=HOST,
    ),
    Case(
        name="EntropyGate",
        make=lambda g: {"ladder": (1, 2), "h_min": 0.1},
        mask=None,
        output=lambda gate: torch.tensor(float(gate.update(0.2))),
        skip=HOST,
    ),
    Case(
        name="filtered_probabilities",
        make=lambda g: {"logits": randn(g, B, V), "temperature": 0.7, "top_p": 0.6},
        rows=("logits",),
        mask=None,
        skip={"detached": "differentiable, but nothing trains through it"},
    ),
    Case(
        name="skd_acceptable",
        make=lambda g: {"drafts": torch.arange(B) % V, "teacher_logits": randn(g, B, V), "k": 2},
        rows=("drafts", "teacher_logits"),
        mask=None,
        skip=BOOL,
    ),
    Case(
        name="skd_steps",
        make=lambda g: {"prompt": (0,), "options": SKDOptions(eos=9, max_new=7, k=1)},
        mask=None,
        output=skd_tokens,
        skip=HOST,
    ),
]  # fmt: skip

CASES = [*LOSSES, *OTHERS]
