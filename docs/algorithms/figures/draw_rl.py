"""Draw this folder's pictures of policy losses and curricula from the functions themselves: ``python draw_rl.py``."""

from pathlib import Path

import matplotlib as mpl
import torch

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "toolgym",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

import matplotlib.pyplot as plt  # noqa: E402 - the backend comes first

from toolgym.algorithms.curricula import ucb_probabilities  # noqa: E402
from toolgym.algorithms.fits import sigmoid_curve  # noqa: E402
from toolgym.algorithms.policy_losses import cispo, ppo_clip  # noqa: E402

HERE = Path(__file__).parent


def save(figure, name):
    """Write one SVG without a date, so that the same code gives the same file."""
    figure.tight_layout()
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def slope(loss, log_rho, advantage, **parameters):
    """How hard the loss pulls a token up, over its log-ratio."""
    old = torch.zeros(1, len(log_rho), dtype=torch.float64)
    logprobs = log_rho.unsqueeze(0).clone().requires_grad_(True)
    a = torch.full((1,), advantage, dtype=torch.float64)
    per_token, _ = loss(logprobs, old, a, torch.ones_like(old, dtype=torch.bool), **parameters)
    return -torch.autograd.grad(per_token.sum(), logprobs)[0][0]


def trust_regions():
    """Pull on a token over its ratio: PPO's clip, dual clip, CISPO."""
    log_rho = torch.linspace(-1.6, 2.2, 800, dtype=torch.float64)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=False)
    for axis, advantage in zip(axes, (1.0, -1.0), strict=True):
        curves = {
            "ppo_clip 0.2": slope(ppo_clip, log_rho, advantage),
            "dual_clip 3": slope(ppo_clip, log_rho, advantage, dual_clip=3.0),
            "cispo, at most 5": slope(cispo, log_rho, advantage),
        }
        for (name, values), style in zip(curves.items(), ("-", "--", ":"), strict=True):
            axis.plot(log_rho.exp(), values, style, label=name)
        axis.set_title(f"A = {advantage:+.0f}")
        axis.set_xlabel("ratio")
    axes[0].set_ylabel("pull on log-probability")
    axes[0].legend(frameon=False)
    save(figure, "trust_regions")


def ctpo_window():
    """CTPO's window over the position, and where two thirds of prefix ratios of a drifting policy lie."""
    t = torch.arange(1, 401, dtype=torch.float64)
    figure, axis = plt.subplots(figsize=(4.6, 2.6))
    axis.fill_between(t, (-0.025 * t.sqrt()).exp(), (0.05 * t.sqrt()).exp(), alpha=0.25, label="CTPO's window")
    spread = 0.03 * t.sqrt()
    axis.plot(t, spread.exp(), "k:", label="one standard deviation of the prefix ratio")
    axis.plot(t, (-spread).exp(), "k:")
    axis.axhspan(0.975, 1.05, color="tab:red", alpha=0.2, label="a constant window")
    axis.set_xlabel("position in tokens")
    axis.set_ylabel("ratio of the prefix")
    axis.legend(frameon=False, loc="upper left")
    save(figure, "ctpo_window")


def informative():
    """What a group of binary rewards gives to learn from, over its pass rate."""
    p = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    figure, axis = plt.subplots(figsize=(4.6, 2.4))
    axis.plot(p, 2 * (p * (1 - p)).sqrt(), label="mean |A|, divided by std (GRPO)")
    axis.plot(p, 2 * p * (1 - p), "--", label="mean |A|, centred only (Dr.GRPO)")
    axis.plot(p, (1 - p) * (1 - (1 - p) ** 8), ":", label="regret of 8 samples (eva), about")
    axis.set_xlabel("pass rate")
    axis.legend(frameon=False, fontsize=8)
    save(figure, "informative")


def sources():
    """DUMP's probabilities over the sample count of a solved source."""
    counts = torch.logspace(0, 4, 60, dtype=torch.float64)
    p = torch.stack([ucb_probabilities(torch.tensor([0.1, 0.6, 0.3]), torch.tensor([n, n, n]))[1] for n in counts])
    figure, axis = plt.subplots(figsize=(4.6, 2.4))
    for column, mean in zip(p.T, ("0.1", "0.6", "0.3"), strict=True):
        axis.plot(counts, column, label=f"mean |A| = {mean}")
    axis.set_xscale("log")
    axis.set_xlabel("samples of each source")
    axis.set_ylabel("P(source)")
    axis.legend(frameon=False)
    save(figure, "sources")


def sigmoid():
    """ScaleRL's curve and what its three parameters do."""
    c = torch.logspace(2.5, 5.5, 200, dtype=torch.float64)
    figure, axis = plt.subplots(figsize=(4.6, 2.4))
    base = {"start": 0.30, "asymptote": 0.645, "exponent": 1.7, "midpoint": 8000.0}
    axis.plot(c, sigmoid_curve(c, **base), label="A = 0.645, B = 1.7, C_mid = 8,000")
    axis.plot(c, sigmoid_curve(c, **(base | {"asymptote": 0.55})), "--", label="a lower asymptote")
    axis.plot(c, sigmoid_curve(c, **(base | {"exponent": 1.0})), ":", label="less efficient: B = 1")
    axis.set_xscale("log")
    axis.set_xlabel("compute")
    axis.set_ylabel("pass rate")
    axis.legend(frameon=False, fontsize=8)
    save(figure, "sigmoid")


if __name__ == "__main__":
    for draw in (trust_regions, ctpo_window, informative, sources, sigmoid):
        draw()
