"""Equations of reinforcement learning, distillation and their kin: tensors and masks in, tensors out.

One topic a module, one equation a function; nothing here knows a model, a trajectory or a configuration. Use the
modules (``from toolgym.algorithms.advantages import group_advantage``) or look a method up with `get` and `cards`.

Shapes: B rows (sequences), T tokens, G rows of a group, V vocabulary. ``mask`` is bool [B, T], true on the tokens that
the policy sampled; what stands under a false entry is never read, be it NaN. Arithmetic is in float32 at least;
float64 stays float64.
"""

from toolgym.algorithms.registry import Card, card, cards, get

__all__ = ["Card", "card", "cards", "get"]
