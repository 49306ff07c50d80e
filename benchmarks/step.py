"""One GRPO step of a 3.41M-parameter model: CPU seconds of generation and of training, beside TRL's best setting.

16 prompts × 8 completions of exactly 64 tokens, prompts of 16 tokens, a Qwen3 of random weights (hidden 256, 4 layers,
vocabulary 1024). TRL is run in turn, on the same shapes and one thread, where ``make bench-peers`` installed it;
without it its recorded figure stands in, and ``details.baseline_measured`` says which.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from toolgym.engines.base import Completion, Request, Sampling
from toolgym.engines.transformers_engine import TransformersEngine
from toolgym.trainer.algorithm import AlgorithmConfig
from toolgym.trainer.batch import Batch
from toolgym.trainer.learner import Learner, OptimizerConfig

RECORDED_TRL = {"generation": 1.65, "training": 3.19}  # CPU s a step; TRL 1.16, weights in bfloat16, micro-batch 128
PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS, VOCAB = 16, 8, 16, 64, 1024
PEERS = Path(__file__).resolve().parent.parent / ".venv-peers" / "bin" / "python"


def model_config() -> Qwen3Config:
    """3.41M parameters."""
    return Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def run(*, steps: int = 3, precision: str = "bfloat16", peer: bool = True) -> dict[str, Any]:
    """CPU seconds per step over all processes; the ratio is TRL's sum by ours.

    Args:
        steps: measured ones, after one that is not; the cheapest counts on either side.
        precision: "bfloat16" (engine weights and the learner's matrix products, as in TRL's best setting) or "float32".
        peer: run TRL in turn where it is installed.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(model_config())
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        model.to(dtype).save_pretrained(folder)
        measured = anyio.run(_measure, Path(folder), model.to(torch.float32), precision, steps)
        theirs = _run_trl(folder, steps) if peer and PEERS.exists() else None
    best = {phase: min(m[phase] for m in measured) for phase in ("generation", "training")}
    baseline = theirs or RECORDED_TRL
    ours = sum(best.values())
    return {
        "name": "step",
        "ours": round(ours, 3),
        "baseline": round(baseline["generation"] + baseline["training"], 3),
        "ratio": round((baseline["generation"] + baseline["training"]) / ours, 2),
        "unit": "CPU seconds per step",
        "details": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "precision": precision,
            "ours": {k: round(v, 3) for k, v in best.items()},
            "trl": baseline,
            "baseline_measured": theirs is not None,
            "trained_tokens": PROMPTS * GROUP * NEW_TOKENS,
            "all_steps": [{k: round(v, 3) for k, v in m.items()} for m in measured],
        },
    }


async def _measure(folder: Path, model: Any, precision: str, steps: int) -> list[dict[str, float]]:
    learner = Learner(
        model,
        AlgorithmConfig.model_validate("grpo"),
        OptimizerConfig(lr=1e-6, lr_final=1e-6),
        steps=steps + 1,
        autocast="bfloat16" if precision == "bfloat16" else "none",
    )
    rng = np.random.default_rng(0)
    results = []
    async with TransformersEngine(folder, slots=PROMPTS * GROUP, max_context=96, dtype=precision) as engine:
        for step in range(steps + 1):
            prompts = rng.integers(2, VOCAB, (PROMPTS, PROMPT_TOKENS)).repeat(GROUP, axis=0)
            before, own = await engine.stats(), time.process_time()
            completions = await _generate(engine, prompts, step)
            after = await engine.stats()
            generation = after["cpu_s"] - before["cpu_s"] + time.process_time() - own
            own = time.process_time()
            learner.step(_batch(prompts, completions, rng), version=0)
            results.append({"generation": generation, "training": time.process_time() - own})
    return results[1:]


async def _generate(engine: TransformersEngine, prompts: np.ndarray, step: int) -> list[Completion]:
    done: dict[int, Completion] = {}
    sampling = Sampling(max_new_tokens=NEW_TOKENS)

    async def one(row: int) -> None:
        session = f"{step}/{row}"
        done[row] = await engine.generate(
            Request(
                id=session, tokens=prompts[row].tolist(), sampling=sampling, session=session, seed=step * 1000 + row
            )
        )
        await engine.release(session)

    async with anyio.create_task_group() as group:
        for row in range(len(prompts)):
            group.start_soon(one, row)
    return [done[row] for row in range(len(prompts))]


def _batch(prompts: np.ndarray, completions: list[Completion], rng: np.random.Generator) -> Batch:
    sampled = np.stack([c.tokens for c in completions])
    assert sampled.shape == (PROMPTS * GROUP, NEW_TOKENS), sampled.shape
    before = np.zeros_like(prompts)
    tokens = torch.from_numpy(np.concatenate([prompts, sampled], axis=1).astype(np.int64))
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, PROMPT_TOKENS:] = True
    logprobs = np.concatenate([before, np.stack([c.logprobs for c in completions])], axis=1).astype(np.float32)
    return Batch(
        tokens=tokens,
        mask=mask,
        sampler_logprobs=torch.from_numpy(logprobs),
        versions=torch.where(mask, 0, -1),
        rewards=torch.from_numpy(rng.random(len(tokens)).astype(np.float32)),
        group=torch.arange(PROMPTS).repeat_interleave(GROUP),
        lengths=torch.full((len(tokens),), tokens.shape[1]),
    )


def _run_trl(folder: str, steps: int) -> dict[str, float]:
    """TRL on the same model and shapes, in its own environment and process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("peers") / "trl_step.py"
    shape = [str(n) for n in (PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS, steps)]
    command = [str(PEERS), str(script), folder, *shape]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise RuntimeError(f"TRL failed: {done.stderr[-1500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
