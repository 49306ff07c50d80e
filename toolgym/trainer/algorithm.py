"""An algorithm is data: named pure functions of `toolgym.algorithms` with typed parameters, and how they
compose.

The configs are made from the functions' own signatures, so a recipe says ``loss = {type = "ppo_clip", clip_high =
0.28}`` and a wrong name or parameter is refused before anything starts. ``algorithm = "grpo"`` or ``algorithm.preset =
"grpo"`` lays a method's parts under the user's keys.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from pydantic import Field, create_model, model_validator
from torch import Tensor

from toolgym.algorithms import registry
from toolgym.algorithms.aggregation import Mode
from toolgym.algorithms.kl import KLKind
from toolgym.algorithms.shaping import overlong_penalty
from toolgym.config import Config, component
from toolgym.errors import ConfigError, nearest
from toolgym.trainer.presets import PRESETS, check_combination

# What the trainer can hand to a function of each family, by parameter name.
STREAMS: dict[str, frozenset[str]] = {
    "advantage": frozenset({"rewards", "group", "mask", "keep"}),
    "policy_loss": frozenset({"logprobs", "old_logprobs", "advantages", "mask"}),
    "correction": frozenset({"old_logprobs", "sampler_logprobs", "mask", "advantages"}),
}


class Part(Config):
    """A function of `toolgym.algorithms` with parameters; subclasses are made from the functions' signatures."""

    type: str

    def __call__(self, **streams: Tensor) -> Any:
        """Call the function with those of the streams that it takes, and with its parameters."""
        function = registry.get(self.type).function
        wanted = inspect.signature(function).parameters
        given = {name: value for name, value in streams.items() if name in wanted}
        return function(**given, **self.model_dump(exclude={"type"}))

    @property
    def takes(self) -> frozenset[str]:
        """The names of the streams that the function reads."""
        card = registry.get(self.type)
        return frozenset(inspect.signature(card.function).parameters) & STREAMS[card.family]


def parts(family: str) -> list[type[Part]]:
    """A config class for every function of a family that needs nothing but what the trainer has."""
    found = [_part(card, STREAMS[family]) for card in registry.cards(cast(registry.Family, family))]
    return [cls for cls in found if cls is not None]


def _part(card: registry.Card, streams: frozenset[str]) -> type[Part] | None:
    hints = typing.get_type_hints(card.function)
    fields: dict[str, Any] = {"type": (Literal[card.name], card.name)}
    required: set[str] = set()
    for name, parameter in inspect.signature(card.function).parameters.items():
        if name in streams:
            required |= {name} if parameter.default is parameter.empty else set()
        elif parameter.default is parameter.empty:
            return None  # needs something that the trainer does not have
        elif _plain(hints[name]):
            fields[name] = (hints[name], parameter.default)
        elif parameter.default is not None:
            return None
    if card.family != "policy_loss" and not required & {"rewards", "old_logprobs"}:
        return None  # a helper of the family, not an estimator on its own
    if card.family == "policy_loss" and not {"logprobs", "advantages", "mask"} <= required:
        return None
    if card.family == "advantage" and "rewards" not in required:
        return None
    doc = f"{card.summary}"
    return cast(type[Part], create_model(f"{card.name}_part", __base__=Part, __doc__=doc, **fields))


def _plain(hint: Any) -> bool:
    """Whether a parameter of that annotation can stand in a recipe."""
    if hint in (bool, int, float, str, type(None)) or typing.get_origin(hint) is Literal:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return all(_plain(a) for a in typing.get_args(hint))
    return False


class KLTerm(Config):
    """Keep the policy near a reference: ``coef × KL`` added to the loss, the reference being the policy RL starts
    from.
    """

    coef: float = Field(default=0.001, ge=0)
    kind: KLKind = "k3+"


class Aggregation(Config):
    """How per-token losses become one number."""

    mode: Mode = "token-mean"
    l_max: float | None = None
    """tokens; the generation budget, for seq-mean-token-sum-norm"""


class Overlong(Config):
    """DAPO's soft punishment of long episodes, added to the reward before advantages are taken."""

    l_max: int = Field(default=384, ge=1)
    """tokens sampled in an episode from which the penalty is 1"""
    l_cache: int = Field(default=96, ge=1)
    """tokens below that over which it grows from 0"""


Advantage = component(*parts("advantage"))
PolicyLoss = component(*parts("policy_loss"))
Correction = component(*parts("correction"))


class AlgorithmConfig(Config):
    """The parts of a method. Defaults come from ``preset``; keys given beside it win."""

    preset: str = "grpo"
    advantage: Advantage  # type: ignore[valid-type]
    loss: PolicyLoss  # type: ignore[valid-type]
    old_logprobs: Literal["sampler", "recomputed"] = "sampler"
    """what the ratio is taken against: the sampler's own log-probabilities, or the learner's before the update"""
    correction: Correction | None = None  # type: ignore[valid-type]
    """off-policy correction of old against sampler log-probabilities; needs old_logprobs = "recomputed" """
    kl: KLTerm | None = None
    aggregation: Aggregation = Aggregation()
    overlong: Overlong | None = None
    drop_uninformative: bool = True
    """rows without advantage leave the batch and its denominators (they would only shrink the step)"""

    @model_validator(mode="before")
    @classmethod
    def _lay_preset_under(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"preset": data}
        if not isinstance(data, Mapping):
            return data
        name = data.get("preset", "grpo")
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(nearest(str(name), PRESETS, what="algorithm preset"))
        preset = PRESETS[name]
        if preset.awaiting:
            raise ValueError(f"the preset {name!r} cannot run yet: it awaits {preset.awaiting}")
        return _merge(preset.parts, cast(Mapping[str, Any], data))

    @model_validator(mode="after")
    def _possible(self) -> AlgorithmConfig:
        if self.correction is not None and self.old_logprobs == "sampler":
            raise ValueError(
                'correction compares old with sampler log-probabilities: set algorithm.old_logprobs = "recomputed", '
                "or leave algorithm.correction out"
            )
        try:
            check_combination(self.model_dump())
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` wins; tables of the same ``type`` (or without one) merge, another ``type`` replaces the whole table."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            same = "type" not in value or value["type"] == below.get("type")
            result[key] = _merge(below, value) if same else dict(value)
        else:
            result[key] = value
    return result


def advantages(algorithm: AlgorithmConfig, *, rewards: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """Advantages [B] or [B, T] of whole groups. rewards float [B], group int [B], mask bool [B, T]."""
    if (overlong := algorithm.overlong) is not None:
        rewards = rewards + overlong_penalty(mask.sum(1), l_max=overlong.l_max, l_cache=overlong.l_cache)
    return algorithm.advantage(rewards=rewards, group=group, mask=mask)


def token_losses(
    algorithm: AlgorithmConfig,
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The per-token loss [B, T], the mask of tokens that count, and metrics.

    Only ``logprobs`` carries a gradient. ``ref_logprobs`` is needed with a KL term.
    """
    loss, metrics = algorithm.loss(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    if algorithm.correction is not None:
        weight, mask, extra = algorithm.correction(
            old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs, mask=mask, advantages=advantages
        )
        loss = loss * weight
        metrics = {**metrics, **extra}
    if algorithm.kl is not None and algorithm.kl.coef > 0:
        assert ref_logprobs is not None, "a KL term needs reference log-probabilities"
        estimate = registry.get("kl").function(logprobs, ref_logprobs, mask, kind=algorithm.kl.kind)
        loss = loss + algorithm.kl.coef * estimate
        with torch.no_grad():
            metrics["ref_kl"] = torch.where(mask, estimate, 0.0).sum() / mask.sum().clamp(min=1)
    return loss, mask, metrics
