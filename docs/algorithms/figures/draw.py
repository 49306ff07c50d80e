"""Draws the figures of docs/algorithms from the public functions: ``python docs/algorithms/figures/draw.py``."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from toolgym.algorithms.distill_extrapolation import cliff_lambda
from toolgym.algorithms.preferences import dpo_loss, f_dpo_loss, ipo_loss, slic_loss
from toolgym.algorithms.sft import f_divergence_sft_loss

mpl.use("svg")
mpl.rcParams.update(
    {"svg.hashsalt": "toolgym", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
)
import matplotlib.pyplot as plt  # noqa: E402  (after the backend has been chosen)

HERE = Path(__file__).parent


def axes(title: str, x: str, y: str) -> plt.Axes:
    """One small plot."""
    _, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    ax.set(title=title, xlabel=x, ylabel=y)
    return ax


def save(ax: plt.Axes, name: str) -> None:
    """As SVG without a date, so that drawing again changes nothing."""
    ax.legend(frameon=False)
    ax.figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


def cliff() -> None:
    """The cliff over p."""
    ax = axes(
        "largest extrapolation that a clip of 5 survives", "teacher's probability p of the structural token", "λ*"
    )
    p = torch.linspace(0.6, 0.9995, 300, dtype=torch.float64)
    for b in (0.3, 0.5, 0.8):
        shown = p[p > b + 0.02]
        ax.plot(shown, cliff_lambda(shown, torch.full_like(shown, b)), label=f"base b = {b}")
    ax.set_ylim(1, 4)
    save(ax, "cliff")


def f_sft() -> None:
    """The pull of each f-divergence."""
    ax = axes("pull at a token", "implicit reward r = β log π/ref", "−dL/dr")
    for kind in ("tv", "kl", "reverse_kl", "pearson", "hellinger", "js"):
        r = torch.linspace(-0.5, 2.5, 200, dtype=torch.float64).unsqueeze(0).requires_grad_()
        loss, _ = f_divergence_sft_loss(r, torch.zeros_like(r), torch.ones_like(r).bool(), kind=kind, beta=1.0)
        (pull,) = torch.autograd.grad(-loss.sum(), r)
        ax.plot(r.detach()[0], pull[0], label=kind)
    ax.set_ylim(0, 3)
    save(ax, "f_sft")


def preferences() -> None:
    """Losses over the margin."""
    ax = axes("preference losses, β = 0.1", "margin h_w − h_l", "loss")
    delta = torch.linspace(-20, 30, 200, dtype=torch.float64)
    zero = torch.zeros_like(delta)
    for name, loss in (("dpo", dpo_loss), ("slic", slic_loss), ("ipo / 25", ipo_loss)):
        value = loss(delta, zero, zero, zero, beta=0.1)[0]
        ax.plot(delta, value / (25 if name.startswith("ipo") else 1), label=name)
    ax.plot(delta, f_dpo_loss(delta, zero, zero, zero, beta=0.1)[0], label="f-dpo, js (h_l = 0)")
    ax.set_ylim(0, 3)
    save(ax, "preferences")


def power() -> None:
    """The worked example of power sampling."""
    ax = axes("two tokens, α = 4", "sequence", "probability")
    joint = np.array([0.3, 0.3, 0.36, 0.04])
    target = joint**4 / (joint**4).sum()

    def cold(p: float) -> float:
        return p**4 / (p**4 + (1 - p) ** 4)

    a, aa, ba = cold(0.6), cold(0.5), cold(0.9)
    low = [a * aa, a * (1 - aa), (1 - a) * ba, (1 - a) * (1 - ba)]
    x = np.arange(4)
    ax.bar(x - 0.2, target, 0.4, label="p(y)^4, normalised")
    ax.bar(x + 0.2, low, 0.4, label="temperature 1/4")
    ax.set_ylim(0, 0.65)
    ax.set_xticks(x, ["aa", "ab", "ba", "bb"])
    save(ax, "power")


if __name__ == "__main__":
    for draw in (cliff, f_sft, preferences, power):
        draw()
