"""For every distillation loss another teacher changes the gradient: an additive constant would teach nothing."""

import inspect

import pytest
import torch

from toolgym.algorithms import cards, get
from toolgym.algorithms.distill_async import multi_sample_forward_kl
from toolgym.algorithms.vocabulary import gather_logprobs

from .cases import collect, mask, randn
from .test_battery import gradients, inputs_of

TEACHERS = ("teacher_logprobs", "teacher_logits")
# Here the teacher is in the drawn tokens, not in their scores: see the test below.
BY_SAMPLING = {"multi_sample_forward_kl"}


def losses():
    """Cases of registered functions that take a teacher and have a gradient."""
    known = {c.name for c in cards() if set(TEACHERS) & inspect.signature(c.function).parameters.keys()}
    return [c for c in collect() if c.name in known and c.grad and c.name not in BY_SAMPLING]


def test_teacher_swap_covers_every_distillation_loss():
    losing = {c.name for c in cards("distillation") if c.name.endswith(("_loss", "_kl", "_jsd"))}
    assert losing == {c.name for c in losses()} | BY_SAMPLING


@pytest.mark.parametrize("case", losses(), ids=lambda case: case.label)
def test_teacher_swap_changes_the_gradient(case):
    inputs = inputs_of(case)
    (name,) = set(TEACHERS) & inputs.keys()
    before = gradients(case, inputs)[0]
    other = inputs[name] + 0.5 * randn(torch.Generator().manual_seed(1), *inputs[name].shape)
    if name == "teacher_logprobs":
        other = other.clamp(max=-0.01)
    after = gradients(case, inputs | {name: other})[0]
    shown = inputs["mask"].reshape(inputs["mask"].shape + (1,) * (before.dim() - 2)).expand(before.shape)
    changed = ((before - after).abs() > 1e-6)[shown]
    assert changed.float().mean() > 0.5
    assert get(case.name).function(**inputs)[0].isfinite().all()


def test_teacher_swap_changes_the_gradient_through_the_drawn_tokens():
    gen = torch.Generator().manual_seed(0)
    valid = mask(gen)
    student = randn(gen, *valid.shape, 5).requires_grad_()

    def gradient(teacher):
        ids = torch.multinomial(teacher, 4, replacement=True, generator=torch.Generator().manual_seed(3))
        ids = ids.expand(*valid.shape, 4)
        loss, _ = multi_sample_forward_kl(gather_logprobs(student, ids, valid), teacher.log()[ids], valid)
        return torch.autograd.grad(loss.sum(), student)[0]

    a = gradient(torch.tensor([0.9, 0.025, 0.025, 0.025, 0.025], dtype=torch.float64))
    b = gradient(torch.tensor([0.025, 0.025, 0.025, 0.025, 0.9], dtype=torch.float64))
    assert (a - b)[valid].abs().max() > 0.1
