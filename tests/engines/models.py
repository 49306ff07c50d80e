"""Tiny random models of three families."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 97
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # large, so that wrong keys or positions change the log-probabilities plainly
}


def make_model(family="qwen2", *, seed=0, **changes) -> PreTrainedModel:
    torch.manual_seed(seed)
    if family == "qwen2":
        config = Qwen2Config(**(_SIZES | {"num_key_value_heads": 4, "tie_word_embeddings": True} | changes))
        return Qwen2ForCausalLM(config).eval()
    if family == "qwen3":
        config = Qwen3Config(**(_SIZES | {"num_key_value_heads": 2, "head_dim": 16} | changes))
        return Qwen3ForCausalLM(config).eval()
    config = LlamaConfig(**(_SIZES | {"num_key_value_heads": 1, "tie_word_embeddings": False} | changes))
    return LlamaForCausalLM(config).eval()
