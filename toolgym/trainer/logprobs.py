"""Log-probabilities of given tokens under a transformers model, without ever holding a [tokens, vocabulary] matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

CHUNK_TOKENS = 4096  # logits of this many tokens at once: 2.5 GB at a vocabulary of 152k in float32


def token_logprobs(model: PreTrainedModel, tokens: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The value log p(tokens[t] | tokens[:t]) where ``mask`` is true, 0 elsewhere.

    Rows are right-padded: with a causal model no padding mask is needed, since nothing real looks at what follows it.
    Logits are made only for the masked positions, in chunks that the backward pass makes again.

    Args:    tokens: int64 [B, T]. mask: bool [B, T]; column 0 must be false (nothing predicts the first token).
             temperature: > 0; that at which the tokens were sampled.
    Returns: float32 [B, T] (float64 for a float64 model), with gradient.
    Raises:  ValueError: the first column is masked in.
    """
    if bool(mask[:, 0].any()):
        raise ValueError("mask[:, 0] is true: the first token of a sequence has no log-probability")
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    rows, columns = mask.nonzero(as_tuple=True)
    picked, targets = hidden[rows, columns - 1], tokens[rows, columns]
    head = model.get_output_embeddings()
    assert head is not None, "a causal model has an output layer"
    pieces = []
    for start in range(0, len(targets), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        if torch.is_grad_enabled() and len(targets) > CHUNK_TOKENS:
            piece = checkpoint(_chunk, head, picked[part], targets[part], temperature, use_reentrant=False)
        else:
            piece = _chunk(head, picked[part], targets[part], temperature)
        pieces.append(piece)
    flat = torch.cat(pieces) if pieces else hidden.sum() * torch.zeros(0, dtype=hidden.dtype)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return torch.zeros(tokens.shape, dtype=flat.dtype, device=tokens.device).index_put((rows, columns), flat)


def _chunk(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    return -F.cross_entropy(logits, targets, reduction="none")
