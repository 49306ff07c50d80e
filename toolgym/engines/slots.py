"""The slot key-value cache, and attention over it for packed batches.

A forward pass sees one packed sequence of N tokens: first one token for each of the slots 0 .. n - 1 (decoding), then
the spans of slots that are being prefilled. The cache is written in place and never copied; a model reaches it through
the attention interface of transformers, so any causal model that uses this interface works unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import AttentionInterface

from toolgym.errors import EngineError

ATTENTION = "toolgym_slots"  # the name under which transformers finds `_attention`


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) of one sequence. slot None: nothing is cached, start is 0 (scoring)."""

    slot: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Decoding slots [low, high) that attend to the keys [0, keys) together."""

    low: int
    high: int
    keys: int


class SlotCache:
    """Keys and values of ``slots`` sequences of up to ``length`` tokens: [layers, 2, slots, length, kv_heads,
    head_dim].

    Token-major, so that what a step writes for a slot lies together. The last position of each slot is a dump for
    tokens that must not be kept: it is never attended to.
    """

    def __init__(self, config: Any, *, slots: int, length: int, dtype: torch.dtype, device: str) -> None:
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        shape = (config.num_hidden_layers, 2, slots, length + 1, kv_heads, head_dim)
        self.kv = torch.zeros(shape, dtype=dtype, device=device)
        self.dump = length
        self.range = torch.arange(length + 1, device=device)
        self._zero = torch.zeros((), dtype=dtype, device=device)
        self._never = torch.full((), -torch.inf, dtype=dtype, device=device)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of one slot to another."""
        self.kv[:, :, target, :tokens].copy_(self.kv[:, :, source, :tokens])

    def swap(self, a: int, b: int, tokens_a: int, tokens_b: int) -> None:
        """Exchange the first tokens of slot a with those of slot b."""
        kept = self.kv[:, :, a, :tokens_a].clone()
        self.copy(b, a, tokens_b)
        self.kv[:, :, b, :tokens_a].copy_(kept)

    def mask(self, last: torch.Tensor, keys: int) -> torch.Tensor:
        """Additive mask [n, keys] that lets row i see the keys up to and including last[i]."""
        return torch.where(self.range[:keys] <= last[:, None], self._zero, self._never)


@dataclass(slots=True)
class PackedBatch:
    """What attention must know of a packed batch: where each token is cached and what it may attend to.

    slots, columns: int64 [N], where the token's key and value go (None: not cached). mask: [n, keys] of the decoding
    slots. Offsets follow from the order: decoding slots 0 .. n - 1, then the spans one after the other.
    """

    cache: SlotCache
    slots: torch.Tensor | None
    columns: torch.Tensor | None
    decoding: int = 0
    stretches: Sequence[Stretch] = ()
    mask: torch.Tensor | None = None
    spans: Sequence[Span] = ()
    _masks: list[torch.Tensor | None] = field(default_factory=list[torch.Tensor | None])

    def __post_init__(self) -> None:
        for span in self.spans:
            # A span from 0 is plainly causal. Later ones see their slot's earlier keys too: they need a mask.
            seen = self.cache.range[span.start : span.end]
            self._masks.append(self.cache.mask(seen, span.end) if span.start else None)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """Cache the new keys and values, then attend. q [1, H, N, D], k and v [1, Hkv, N, D]; returns [1, N, H, D]."""
        q_NHD, heads, kv_heads = q[0].transpose(0, 1), q.shape[1], k.shape[1]
        keys, values = self.cache.kv[layer, 0], self.cache.kv[layer, 1]
        if self.slots is not None:
            keys[self.slots, self.columns] = k[0].transpose(0, 1)
            values[self.slots, self.columns] = v[0].transpose(0, 1)
        out_NHD = q.new_empty(q_NHD.shape)
        for stretch in self.stretches:
            low, high = stretch.low, stretch.high
            assert self.mask is not None
            # The heads that share a key head stand as its queries: grouped attention without repeating keys.
            grouped = q_NHD[low:high].reshape(high - low, kv_heads, heads // kv_heads, -1)
            seen = F.scaled_dot_product_attention(
                grouped,
                keys[low:high, : stretch.keys].transpose(1, 2),
                values[low:high, : stretch.keys].transpose(1, 2),
                attn_mask=self.mask[low:high, None, None, : stretch.keys],
                scale=scale,
            )
            out_NHD[low:high] = seen.reshape(high - low, heads, -1)
        offset = self.decoding
        for span, mask in zip(self.spans, self._masks, strict=True):
            until = offset + span.end - span.start
            if span.slot is None:
                key, value = k[:, :, offset:until], v[:, :, offset:until]
            else:
                key = keys[span.slot, : span.end].transpose(0, 1)[None]
                value = values[span.slot, : span.end].transpose(0, 1)[None]
            seen = F.scaled_dot_product_attention(
                q[:, :, offset:until],
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=heads != kv_heads,
            )
            out_NHD[offset:until] = seen[0].transpose(0, 1)
            offset = until
        return out_NHD[None]


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    batch = kwargs.get("packed_batch")
    if not isinstance(batch, PackedBatch):
        raise EngineError(f"{type(module).__name__} does not hand keyword arguments down to its attention")
    window = kwargs.get("sliding_window")
    if window is not None and window < batch.cache.dump:
        raise EngineError(
            f"the model attends over a sliding window of {window} tokens, shorter than max_context "
            f"{batch.cache.dump}: lower max_context to at most {window}"
        )
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise EngineError(f"the model's attention uses {name!r}, which this engine does not support")
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return batch.attend(module.layer_idx, query, key, value, scale), None


AttentionInterface.register(ATTENTION, _attention)
