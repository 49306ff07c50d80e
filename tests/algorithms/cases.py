"""One `Case` for every registered function: inputs for it, and which of them mean what. The battery runs over them all.

How to add a function: register it with ``@card``, and append a ``Case`` to the list ``CASES`` of a module
``tests/algorithms/cases_<topic>.py`` (all such modules are collected). A registered function without a case fails.

What the battery (``test_battery.py``) checks, as far as the case declares the inputs for it:

- dtype: float64 in, float64 out; float32 and bfloat16 in, float32 out, and nothing is computed in bfloat16
- fake: runs under ``FakeTensorMode`` (no hidden host synchronisation, no branching on data)
- permute: permuting the rows permutes (or leaves) the result
- pad: columns put anywhere under a false mask change nothing, gradients included
- nan: NaN and -inf under the mask change nothing, gradients included
- empty: an all-masked batch gives 0 with a graph, gradient 0
- split: the sum over micro-batches is the whole (per-token losses; scalar ones when ``split`` is true)
- gradcheck: of the inputs in ``grad``
- zero: with the input ``zero`` set to 0, the gradient is 0
- detached: no gradient reaches the inputs in ``detached``

Losses on tokens return ``(per_token [B, T], metrics)``, metrics being detached scalar tensors: the caller aggregates
them with `row_weights`, so that micro-batches split exactly. Losses on rows (preferences): ``(per_row [B], metrics)``.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

B, T, G, V = 6, 7, 3, 5  # rows, tokens, rows of a group, vocabulary: small enough for gradcheck, unequal to each other


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs for one registered function.

    make:     seeded generator -> keyword arguments; float tensors in float64.
    tokens:   names of the arguments that are [B, T, ...] (the mask included).
    rows:     names of the arguments that are [B, ...] (not those in ``tokens``).
    mask:     name of the [B, T] bool argument under which values are not read; None where there is none.
    grad:     names of the arguments that gradients flow into.
    detached: names of the float arguments that they must not flow into.
    zero:     an argument whose being 0 makes the gradient 0 (advantages).
    output:   turns the result into one tensor; by default the first of a tuple.
    skip:     check -> reason why it does not apply.
    """

    name: str
    make: Callable[[torch.Generator], dict[str, Any]]
    tokens: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    mask: str | None = "mask"
    grad: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    zero: str | None = None
    output: Callable[[Any], torch.Tensor] = lambda result: result[0] if isinstance(result, tuple) else result
    split: bool = True
    skip: dict[str, str] = field(default_factory=dict)
    id: str = ""  # a second case of one function, with other parameters, gets another id

    @property
    def label(self) -> str:
        """The test's id."""
        return f"{self.name}-{self.id}" if self.id else self.name


def collect() -> list[Case]:
    """All cases of all ``cases_*.py`` modules beside this one."""
    found: list[Case] = []
    here = Path(__file__).parent
    for info in pkgutil.iter_modules([str(here)]):
        if info.name.startswith("cases_"):
            found += importlib.import_module(f"{__package__}.{info.name}" if __package__ else info.name).CASES
    return found


def logprobs(gen: torch.Generator, *shape: int) -> torch.Tensor:
    """Log-probabilities in about (-3, 0), float64 [B, T] by default."""
    return -3.0 * torch.rand(*(shape or (B, T)), generator=gen, dtype=torch.float64) - 0.01


def near(x: torch.Tensor, gen: torch.Generator, scale: float = 0.3) -> torch.Tensor:
    """``x`` with noise: another policy's log-probabilities of the same tokens."""
    return x + scale * torch.randn(x.shape, generator=gen, dtype=x.dtype)


def mask(gen: torch.Generator) -> torch.Tensor:
    """A bool mask [B, T] with holes; every row has at least one true entry, no row is full."""
    m = torch.rand(B, T, generator=gen) < 0.6
    m[:, 2] = True
    m[:, 5] = False
    return m


def groups() -> torch.Tensor:
    """Group ids int64 [B]: G rows each."""
    return torch.arange(B) // G


def randn(gen: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float64."""
    return torch.randn(*shape, generator=gen, dtype=torch.float64)
