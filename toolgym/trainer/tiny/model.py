"""The tiny policy's model: a Qwen2-type transformers model whose initialisation makes induction easy to find.

Copying is what a tool user must learn first (a name from the question into the call, a value from the result into the
answer), and it is what a small transformer finds last: two attention layers have to cooperate. So half of the heads
start as an induction circuit, in the form that mechanistic studies describe (Olsson et al., "In-context Learning and
Induction Heads", arXiv:2209.11895):

* layer 0, previous-token heads: query and key are biases alone, their rotary phases set so that the score
  sum_i c² cos((p - 1 - s) ω_i) peaks at s = p - 1; value and output write R e_(p-1), R a random rotation, into the
  stream;
* layer 1, matching and copying heads: the query reads e_p, the key reads back R^T (R e_(s-1)), both on the slowly
  rotating dimensions, so position s whose predecessor equals the current token is attended to; value and output write
  e_s, which the tied embedding turns into a high logit of the token that followed last time.

Everything is ordinary parameters afterwards: training may keep, change or drop it.
"""

from __future__ import annotations

import math

import torch
from transformers import PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from toolgym.config import Config


class TinyModelConfig(Config):
    """Shape of the tiny policy. ``hidden_size`` must equal ``induction_heads × head_dim``."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 192
    max_context: int = 512
    init_std: float = 0.05
    rope_theta: float = 1e6
    induction: bool = True


def build(config: TinyModelConfig, *, vocab_size: int, seed: int, eos: int, pad: int) -> PreTrainedModel:
    """A fresh float32 model with that vocabulary, the same for the same seed (the global generator is left
    untouched).
    """
    hf = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.head_dim,  # pyright: ignore[reportCallIssue] - taken, but not in the signature
        max_position_embeddings=config.max_context,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        initializer_range=config.init_std,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(hf)
        if config.induction and config.layers >= 2:
            _set_induction_circuit(model, hf)
    return model


@torch.no_grad()
def _set_induction_circuit(model: PreTrainedModel, hf: PretrainedConfig) -> None:
    """Write the circuit of the module docstring into the first half of the heads of layers 0 and 1."""
    hidden, dim = hf.hidden_size, hf.head_dim
    heads = max(1, hf.num_attention_heads // 2)
    rotation = torch.linalg.qr(torch.randn(hidden, hidden))[0]
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    theta = hf.rope_parameters["rope_theta"]
    half = dim // 2
    omega = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    width = min(dim, hidden // heads)  # how much of the stream one head carries
    turning = half * 5 // 16  # the faster rotary pairs turn too far within a context to match by content
    slow = [*range(turning, half), *range(half + turning, dim)]
    sharpness = math.sqrt(8.0 * math.sqrt(dim))  # c: one place off the peak costs about 8 × 0.57 in the score
    for layer in model.model.layers:  # other heads and the MLPs start quiet: their output is noise to the match
        layer.self_attn.o_proj.weight *= 0.2
        layer.mlp.down_proj.weight *= 0.2
    for h in range(heads):
        rows = slice(h * dim, (h + 1) * dim)
        part = slice(h * width, (h + 1) * width)
        for proj in (first.q_proj, first.k_proj):
            proj.weight[rows] = 0.0
        first.q_proj.bias[rows] = sharpness * torch.cat([torch.cos(omega), -torch.sin(omega)])
        first.k_proj.bias[rows] = sharpness * torch.cat([torch.ones(half), torch.zeros(half)])
        basis = torch.eye(hidden)[part]  # [width, hidden]
        first.v_proj.weight[rows] = 0.0
        first.v_proj.weight[rows][:width] = basis
        first.o_proj.weight[:, rows] = 0.0
        # the normalised input has RMS 1 while embeddings have RMS init_std: scale back to the embeddings' size
        first.o_proj.weight[:, rows][:, :width] = rotation[:, part] * hf.initializer_range
        probe = torch.linalg.qr(torch.randn(hidden, hidden))[0][: len(slow)]
        second.q_proj.weight[rows] = 0.0
        second.k_proj.weight[rows] = 0.0
        gain = 1.5
        second.q_proj.weight[h * dim + torch.tensor(slow)] = gain * probe
        second.k_proj.weight[h * dim + torch.tensor(slow)] = gain * probe @ rotation.T
        second.v_proj.weight[rows] = 0.0
        second.v_proj.weight[rows][:width] = basis
        second.o_proj.weight[:, rows] = 0.0
        second.o_proj.weight[:, rows][:, :width] = basis.T * (16.0 * hf.initializer_range)
