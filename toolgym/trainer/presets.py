"""Presets: a paper's method as parts of `toolgym.trainer.algorithm.AlgorithmConfig`, laid under the user's keys.

Those that need only what the trainer has (advantage, loss, correction, KL, aggregation) run at once:
``algorithm = "ctpo"``. The others name what they await.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from toolgym.algorithms import registry
from toolgym.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One method. ``parts`` are keys of an ``[algorithm]`` table; ``awaiting`` says what the trainer lacks for it.

    ``cards`` names the functions of `toolgym.algorithms` that it is made of (those in ``parts`` are found there).
    ``advice`` are other keys of a recipe that belong to the paper's setting; the user sets them.
    """

    parts: Mapping[str, Any]
    source: str
    awaiting: str = ""
    advice: Mapping[str, Any] = field(default_factory=dict[str, Any])
    cards: tuple[str, ...] = ()


GROUP = {"type": "group_advantage"}
CLIP = {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2}
CLIP_HIGHER = {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28}
TOKEN_MEAN = {"mode": "token-mean"}
ROW_MEAN = {"mode": "seq-mean-token-mean"}
TEACHER = "a teacher whose log-probabilities come with the batch"
SECOND = "critiques and second attempts as samples"
MIXED = "demonstrations mixed into rollouts"


def _parts(advantage: Mapping[str, Any], loss: Mapping[str, Any], aggregation: Mapping[str, Any], **more: Any) -> Any:
    """The keys of a method without KL; the ratio is against the sampler unless ``more`` says otherwise."""
    return {"advantage": advantage, "loss": loss, "old_logprobs": "sampler", "aggregation": aggregation} | more


def _corrected(
    loss: Mapping[str, Any], correction: Mapping[str, Any], aggregation: Mapping[str, Any] = TOKEN_MEAN
) -> Any:
    """Trust region around the learner's own policy, the sampler's difference corrected apart."""
    return _parts(GROUP, loss, aggregation, old_logprobs="recomputed", correction=correction)


RUNNABLE: Mapping[str, Preset] = {
    "grpo": Preset(
        parts=_parts(GROUP, CLIP_HIGHER, TOKEN_MEAN),
        source="DeepSeekMath (arXiv:2402.03300), with DAPO's clip-higher and token-level loss (arXiv:2503.14476)",
    ),
    "grpo_original": Preset(
        parts=_parts(GROUP, CLIP, ROW_MEAN, kl={"coef": 0.04, "kind": "k3"}),
        source="DeepSeekMath (arXiv:2402.03300)",
    ),
    "dapo": Preset(
        # The lengths are rollout.max_tokens' default and a quarter of it; the paper has 20,480 and 4,096.
        parts=_parts(GROUP, CLIP_HIGHER, TOKEN_MEAN, overlong={"l_max": 384, "l_cache": 96}),
        source="DAPO (arXiv:2503.14476)",
        advice={"curriculum": "dynamic_sampling"},
        cards=("has_signal",),
    ),
    "dr_grpo": Preset(
        # Any constant gives the same direction; this one is rollout.max_tokens' default.
        parts=_parts(
            {"type": "group_advantage", "scale": "none"}, CLIP, {"mode": "seq-mean-token-sum-norm", "l_max": 384.0}
        ),
        source="Dr.GRPO (arXiv:2503.20783)",
    ),
    "gspo": Preset(
        parts=_parts(GROUP, {"type": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}, ROW_MEAN, old_logprobs="recomputed"),
        source="GSPO (arXiv:2507.18071)",
    ),
    "cispo": Preset(
        parts=_parts(GROUP, {"type": "cispo", "max_ratio": 5.0}, TOKEN_MEAN),
        source="MiniMax-M1 (arXiv:2506.13585)",
    ),
    "scalerl": Preset(
        parts=_parts(
            {"type": "group_advantage", "scale": "batch"}, {"type": "cispo", "max_ratio": 5.0}, {"mode": "prompt-mean"}
        ),
        source="ScaleRL (arXiv:2510.13786), without its forced interruption and 32-bit head",
        advice={"rollout.max_staleness": 8},
    ),
    "rloo": Preset(
        parts=_parts({"type": "rloo"}, CLIP, ROW_MEAN),
        source="Back to Basics (arXiv:2402.14740), with PPO's clip for data of an earlier version",
    ),
    "reinforce_plus_plus": Preset(
        parts=_parts({"type": "reinforce_plus_plus"}, CLIP, TOKEN_MEAN, drop_uninformative=False),
        source="REINFORCE++ (arXiv:2501.03262)",
    ),
    "reinforce_plus_plus_baseline": Preset(
        parts=_parts({"type": "reinforce_plus_plus_baseline"}, CLIP, TOKEN_MEAN),
        source="REINFORCE++ (arXiv:2501.03262), baseline form",
    ),
    "ctpo": Preset(
        parts=_corrected({"type": "ctpo"}, {"type": "truncated_is", "level": "sequence", "cap": 5.0}, ROW_MEAN),
        source="CTPO (arXiv:2605.07331)",
    ),
    "f_tis": Preset(parts=_parts(GROUP, {"type": "f_tis"}, ROW_MEAN), source="F-TIS (arXiv:2605.22537)"),
    "decoupled_ppo": Preset(
        parts=_corrected(CLIP, {"type": "masked_is", "low": 0.0, "high": 5.0}),
        source="decoupled PPO (arXiv:2110.00641), AReaL (arXiv:2505.24298); advantages of a group, not of a critic",
        cards=("decoupled_ppo",),
    ),
    "tis": Preset(
        parts=_corrected(CLIP_HIGHER, {"type": "truncated_is", "cap": 2.0}),
        source="Yao et al., Your efficient RL framework secretly brings you off-policy (2025)",
    ),
    "icepop": Preset(
        parts=_corrected(CLIP_HIGHER, {"type": "masked_is", "low": 0.5, "high": 2.0}),
        source="IcePop (Ring, arXiv:2510.18855)",
    ),
    "opsm": Preset(
        parts=_corrected(CLIP_HIGHER, {"type": "off_policy_sequence_mask", "threshold": 0.1}),
        source="DeepSeek-V3.2 (arXiv:2512.02556): its mask of sequences; its unbiased KL is not a term of the trainer",
    ),
    "mirror_pop": Preset(
        parts=_corrected(CLIP_HIGHER, {"type": "mirror_pop"}),
        source="MusaCoder (arXiv:2606.04847): its filter alone",
    ),
}

AWAITING: Mapping[str, Preset] = {
    name: Preset(parts={}, source=source, awaiting=awaiting, cards=cards)
    for name, (source, awaiting, cards) in {
        "ppo": ("PPO (arXiv:1707.06347)", "a critic", ("gae", "value_loss", "ppo_clip")),
        "turn_ppo": (
            "derived from PPO and GAE",
            "a critic and rewards per turn",
            ("turn_gae", "value_loss", "ppo_clip"),
        ),
        "vcpo": (
            "VCPO (arXiv:2602.17616)",
            "row log-weights and gradient norms as streams, and a learning rate scaled per step",
            ("vcpo_advantage", "ess_lr_scale", "score_norm", "reinforce"),
        ),
        "riskpo": ("RiskPO (arXiv:2510.00911)", "bundles of groups", ("bundle_advantage", "mixed_var_weight", "gspo")),
        "vpo": ("VPO (arXiv:2605.22817)", "a vector of rewards per candidate", ("vpo_scores", "group_advantage")),
        "prime_echo": ("MusaCoder (arXiv:2606.04847)", "scores per turn", ("prime_echo", "first_turn")),
        "ttrl": ("TTRL (arXiv:2504.16084)", "the episodes' answers beside their rewards", ("vote_rewards",)),
        "mm_upt": ("MM-UPT", "the episodes' answers beside their rewards", ("vote_rewards",)),
        "progress_advantage": ("Progress Advantage (arXiv:2606.26080)", "a second trained model", ("progress_steps",)),
        "kdrl": ("KDRL (arXiv:2506.02208)", TEACHER, ("kdrl_loss", "reward_guided_mask")),
        "opd": ("on-policy distillation", TEACHER, ("opd_loss", "opd_advantage")),
        "gkd": ("GKD (arXiv:2306.13649)", "a teacher's logits", ("generalized_jsd",)),
        "lightning_opd": (
            "Lightning OPD (arXiv:2604.13010)",
            "a cache of teacher scores as a data source",
            ("offline_opd_loss",),
        ),
        "async_opd": ("AsyncOPD (arXiv:2606.24143)", TEACHER, ("multi_sample_opd_loss", "sparse_kl")),
        "rltf_sd": ("RLTF (arXiv:2602.02482)", SECOND, ("rltf_sd_loss", "sd_advantages")),
        "rltf_fm": ("RLTF (arXiv:2602.02482)", SECOND, ("feedback_model_loss",)),
        "prefix_rft": ("Prefix-RFT (arXiv:2507.01679)", MIXED, ("prefix_rft_advantages", "prefix_entropy_mask")),
        "dypo": ("DYPO (arXiv:2604.08926)", MIXED, ("dypo_loss", "dypo_states")),
    }.items()
}

PRESETS: Mapping[str, Preset] = {**RUNNABLE, **AWAITING}


PLAIN_PARTS = {"kl": "kl", "aggregation": "row_weights", "overlong": "overlong_penalty"}  # parts that name no function


def describe(name: str) -> dict[str, Any]:
    """What a preset is, as JSON values: its keys in a recipe, or what it awaits, and the functions it is made of.

    Raises:  ConfigError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(nearest(name, PRESETS, what="preset"))
    preset = PRESETS[name]
    made_of = [part["type"] for part in preset.parts.values() if isinstance(part, Mapping) and "type" in part]
    made_of += [card for key, card in PLAIN_PARTS.items() if key in preset.parts]
    return {
        "preset": name,
        "recipe": f'algorithm = "{name}"' if not preset.awaiting else None,
        "awaits": preset.awaiting or None,
        "keys": dict(preset.parts),
        "advice": dict(preset.advice),
        "made_of": list(dict.fromkeys([*made_of, *preset.cards])),
        "source": preset.source,
    }


BASELINE_OF_THE_GROUP = ("group_advantage", "rloo", "reinforce_plus_plus_baseline")


def check_combination(
    algorithm: Mapping[str, Any], *, group_size: int | None = None, max_staleness: int | None = None
) -> None:
    """Refuse parts that cannot work together, and parameters that their functions refuse.

    Args:    algorithm: the resolved ``[algorithm]`` table: advantage, loss, old_logprobs, correction, kl, aggregation.
             group_size, max_staleness: of the ``[rollout]`` table, where they are known.
    Raises:  ConfigError: which part, why, and what to write instead.
    """
    loss, correction, overlong = algorithm["loss"], algorithm.get("correction"), algorithm.get("overlong")
    aggregation, kl = algorithm["aggregation"], algorithm.get("kl")
    if group_size == 1 and algorithm["advantage"]["type"] in BASELINE_OF_THE_GROUP:
        raise ConfigError(
            f"rollout.group_size = 1 with algorithm.advantage = {algorithm['advantage']['type']!r}: an episode alone "
            "has no baseline, so every advantage is 0; use 2 or more, or reinforce_plus_plus"
        )
    if max_staleness and loss["type"] == "reinforce" and correction is None:
        raise ConfigError(
            f'algorithm.loss = "reinforce" with rollout.max_staleness = {max_staleness}: it has no ratio, so '
            "stale data bias it; set max_staleness = 0, a correction, or another loss"
        )
    if kl is not None and kl["kind"] == "k1" and kl["coef"] > 0:
        raise ConfigError(
            'algorithm.kl.kind = "k1" as a loss has zero expected gradient: it adds noise only. Use "k2" or "k3+"'
        )
    if aggregation["mode"] == "seq-mean-token-sum-norm" and not (aggregation.get("l_max") or 0) > 0:
        raise ConfigError(
            f"algorithm.aggregation.l_max = {aggregation.get('l_max')}: seq-mean-token-sum-norm divides by it; "
            "set the generation budget in tokens"
        )
    if overlong is not None and not 0 < overlong["l_cache"] <= overlong["l_max"]:
        raise ConfigError(
            f"algorithm.overlong: got l_cache = {overlong['l_cache']} and l_max = {overlong['l_max']} tokens, expected "
            "0 < l_cache <= l_max"
        )
    if loss["type"] == "f_tis" and (correction is not None or algorithm["old_logprobs"] != "sampler"):
        raise ConfigError(
            'algorithm.loss = "f_tis" corrects for the sampler itself: leave algorithm.correction out and set '
            'algorithm.old_logprobs = "sampler"'
        )
    if loss["type"] == "ctpo" and (loss["power"] < 0) != loss["average"]:
        raise ConfigError(
            f"algorithm.loss.power = {loss['power']} with average = {loss['average']}: a sum varies more along the "
            "row, a mean's falls; use power >= 0 with average = false, or power < 0 with average = true"
        )
    for low, high in (("low", "high"), ("min_ratio", "max_ratio")):
        for name, part in (("correction", correction), ("loss", loss)):
            if part is not None and low in part and high in part and part[low] > part[high]:
                raise ConfigError(f"algorithm.{name}: {low} = {part[low]} is above {high} = {part[high]}")
    for name, bound in (("cap", correction), ("threshold", correction), ("cap", loss), ("max_ratio", loss)):
        if bound is not None and name in bound and bound[name] <= 0:
            raise ConfigError(f"{bound['type']}: {name} = {bound[name]} rejects everything; expected > 0")
    _dry_run(algorithm)


def _dry_run(algorithm: Mapping[str, Any]) -> None:
    """Let every part refuse its own parameters, on two rows of two tokens."""
    rows = torch.tensor([[-1.0, -0.5], [-0.2, -2.0]])
    streams = {
        "rewards": torch.tensor([0.0, 1.0]),
        "group": torch.zeros(2, dtype=torch.int64),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "keep": torch.ones(2, dtype=torch.bool),
        "logprobs": rows,
        "old_logprobs": rows,
        "sampler_logprobs": rows,
    }
    for key in ("advantage", "loss", "correction"):
        part = algorithm.get(key)
        if part is None:
            continue
        function = registry.get(part["type"]).function
        names = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
        parameters = {name: value for name, value in part.items() if name != "type"}
        try:
            result = function(**{n: streams[n] for n in names if n in streams}, **parameters)
        except ValueError as error:
            raise ConfigError(f"algorithm.{key} = {part['type']}: {error}") from None
        if key == "advantage":
            streams["advantages"] = result
