"""The catalogue of methods: every public equation registers itself with one decorator, and its docstring is its card.

A card says what a method computes, with which defaults, where it comes from, how sure we are of it and where we differ
from its source. It is read from the function's docstring and signature, so that each thing is said once::

    @card(family="kl", certainty="certain")
    def k1(...):
        '''One sentence.

            the equation, indented

        Args:    ...
        Source:  paper (arXiv id), equation number.
        Differs: what we do otherwise, and why.
        '''
"""

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from toolgym.errors import ConfigError, nearest

Certainty: TypeAlias = Literal["certain", "secondary", "derived"]
Family: TypeAlias = Literal[
    "advantage",  # rewards -> advantages
    "ratio",  # how far the policy has moved, token by token
    "policy_loss",  # a token's loss from its log-probability, old log-probability and advantage
    "correction",  # weights and rejections for data of another policy
    "kl",  # per-token divergence estimators from sampled tokens
    "aggregation",  # per-token losses -> one number
    "value",  # critics
    "entropy",
    "reward",  # rewards from rewards: shaping, votes, several objectives
    "curriculum",  # which task next
    "fit",  # curves through results
    "distillation",
    "feedback",
    "sft",
    "preference",
    "test_time",
    "merging",
]
Function = TypeVar("Function", bound=Callable[..., Any])

_SECTION = re.compile(r"^(Args|Returns|Raises|Edge|Source|Differs|Example|Note|Parts):[ \t]*(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known of one method. Example: ``get("group_advantage").family == "advantage"``.

    ``certainty``: ``certain`` was read in the authors' code or text, ``secondary`` in somebody else's account of it,
    ``derived`` was chosen here. ``parts`` names the other cards that it is made of.
    """

    name: str
    family: Family
    summary: str
    equation: str
    parts: tuple[str, ...]
    defaults: Mapping[str, Any]
    source: str
    certainty: Certainty
    differs: str
    function: Callable[..., Any] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON values, with the public path of its function."""
        plain = {
            key: getattr(self, key)
            for key in ("name", "family", "summary", "equation", "source", "certainty", "differs")
        }
        defaults = {
            k: v if isinstance(v, bool | int | float | str | None) else repr(v) for k, v in self.defaults.items()
        }
        path = f"{self.function.__module__}.{self.function.__qualname__}"
        return plain | {"parts": list(self.parts), "defaults": defaults, "function": path}


_CARDS: dict[str, Card] = {}


def card(*, family: Family, certainty: Certainty, parts: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Register a public function under its own name; its docstring gives the card.

    Args:    family: chooses the checks that it must pass. certainty: how sure we are of the formula. parts: names of
             other cards that it is made of.
    Raises:  ConfigError: another function has this name, or the docstring lacks a summary, an indented equation or
             a Source.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        known = _CARDS.get(name)
        if known is not None and known.function.__module__ != function.__module__:
            raise ConfigError(f"two algorithms called {name!r}: {known.function.__module__}, {function.__module__}")
        summary, equation, sections = _read(inspect.getdoc(function) or "")
        if not (summary and equation and sections.get("Source")):
            raise ConfigError(
                f"{function.__module__}.{name}: its docstring needs a summary, an indented equation and Source"
            )
        parameters = inspect.signature(function).parameters.values()
        _CARDS[name] = Card(
            name=name,
            family=family,
            summary=summary,
            equation=equation,
            parts=parts,
            defaults={p.name: p.default for p in parameters if p.default is not p.empty},
            source=sections["Source"],
            certainty=certainty,
            differs=sections.get("Differs", ""),
            function=function,
        )
        return function

    return register


def cards(family: Family | None = None) -> tuple[Card, ...]:
    """All cards (of one family), sorted by name; imports every module of the package."""
    _load()
    return tuple(c for _, c in sorted(_CARDS.items()) if family is None or c.family == family)


def get(name: str) -> Card:
    """The card of that name. Raises ConfigError, with the nearest name, when there is none."""
    _load()
    if name not in _CARDS:
        raise ConfigError(nearest(name, _CARDS, what="algorithm"))
    return _CARDS[name]


@functools.cache
def _load() -> None:
    package = importlib.import_module(__package__ or "toolgym.algorithms")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)


def _read(doc: str) -> tuple[str, str, dict[str, str]]:
    """Split a docstring into its first paragraph, its first indented block and its sections."""
    head: list[str] = []
    sections: dict[str, list[str]] = {}
    current = head
    for line in doc.splitlines():
        match = _SECTION.match(line)
        if match:
            current = sections.setdefault(match[1], [])
            line = match[2]
        current.append(line)
    paragraphs = re.split(r"\n\s*\n", "\n".join(head).strip("\n"))
    summary = " ".join(paragraphs[0].split())
    equation = next((inspect.cleandoc(" \n" + p) for p in paragraphs[1:] if p.startswith("    ")), "")
    return summary, equation, {name: " ".join(" ".join(lines).split()) for name, lines in sections.items()}
