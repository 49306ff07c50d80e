"""What continuous batching with a kept cache is worth: uneven multi-turn episodes against pad-and-wait.

Both sides play the same seeded episodes with the same model, attention and sampler; every completion has a forced
length. The engine keeps 128 episodes in flight in its own process, messages included. Pad-and-wait takes 128 episodes
at a time: at every turn it prefills the padded contexts from the start, and decodes all rows until the longest is done.
``generate`` of transformers does the same with its own cache, on a part of the episodes.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from toolgym.engines.base import Request, Sampling
from toolgym.engines.sampling import SamplingTable, draw, uniforms
from toolgym.engines.slots import ATTENTION, PackedBatch, SlotCache, Span, Stretch
from toolgym.engines.transformers_engine import TransformersEngine

MAX_CONTEXT = 512


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt, and for each turn the forced length of the completion and the tokens that come after it."""

    prompt: list[int]
    lengths: list[int]
    results: list[list[int]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run sampled, and its price: CPU seconds of all processes, and seconds."""

    tokens: int
    cpu_s: float
    wall_s: float

    @property
    def rate(self) -> float:
        """Sampled tokens per CPU second."""
        return self.tokens / self.cpu_s


def run(
    *,
    episodes: int = 512,
    slots: int = 128,
    hidden: int = 64,
    layers: int = 2,
    seed: int = 0,
    repeats: int = 2,
    generate_share: float = 0.25,
) -> dict[str, Any]:
    """Sampled tokens per CPU second of the engine and of pad-and-wait; the best of ``repeats`` runs in turn."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    transformers_logging.disable_progress_bar()
    model = make_model(hidden, layers)
    work = make_episodes(episodes, seed=seed)
    ours, baseline = list[Cost](), list[Cost]()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for _ in range(repeats):
            costs, stats = anyio.run(play_on_engine, folder, work, slots)
            ours.append(costs)
            baseline.append(measure(lambda: pad_and_wait(model, work, slots)))
    part = work[: max(1, int(len(work) * generate_share))]
    stock = measure(lambda: transformers_generate(model, part, slots))
    best, rival = max(ours, key=lambda c: c.rate), max(baseline, key=lambda c: c.rate)
    assert best.tokens == rival.tokens, "both sides play the same episodes"
    return {
        "name": "generate",
        "ours": best.rate,
        "baseline": rival.rate,
        "ratio": best.rate / rival.rate,
        "unit": "sampled tokens per CPU second",
        "details": {
            "tokens": best.tokens,
            "cpu_s": {"ours": best.cpu_s, "baseline": rival.cpu_s},
            "tokens_per_wall_s": {"ours": best.tokens / best.wall_s, "baseline": rival.tokens / rival.wall_s},
            "wall_ratio": rival.wall_s / best.wall_s,
            "transformers_generate": stock.rate,
            "ratio_to_transformers_generate": best.rate / stock.rate,
            "episodes": episodes,
            "slots": slots,
            "parameters": sum(p.numel() for p in model.parameters()),
            "engine": {name: round(value, 3) for name, value in stats.items()},
        },
    }


def make_model(hidden: int, layers: int) -> PreTrainedModel:
    """A random Qwen2 model of the tiny policy's shape."""
    config = Qwen2Config(
        vocab_size=690,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 16,
        head_dim=32,
        intermediate_size=3 * hidden,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        initializer_range=0.05,
    )
    return Qwen2ForCausalLM(config).eval()


def make_episodes(count: int, *, seed: int) -> list[Episode]:
    """Uneven episodes: prompts of 20 to 59 tokens, 1 to 6 turns, completions of 4 to 63, results of 5 to 29."""
    rng = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(0, 690, int(rng.integers(low, high))).tolist()

    episodes: list[Episode] = []
    for _ in range(count):
        turns = int(rng.integers(1, 7))
        lengths = rng.integers(4, 64, turns).tolist()
        episodes.append(Episode(tokens(20, 60), lengths, [tokens(5, 30) for _ in range(turns)]))
    return episodes


def cpu_s() -> float:
    """CPU seconds of this process and of its ended children."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def measure(play: Callable[[], int]) -> Cost:
    """The cost of a function that returns how many tokens it sampled."""
    cpu, wall = cpu_s(), time.perf_counter()
    with torch.inference_mode():
        tokens = play()
    return Cost(tokens, cpu_s() - cpu, time.perf_counter() - wall)


async def play_on_engine(folder: str, episodes: list[Episode], slots: int) -> tuple[Cost, dict[str, float]]:
    """All episodes on the engine, ``slots`` at a time; starting the worker is not counted."""
    limiter, sampled = anyio.Semaphore(slots), [0]
    async with TransformersEngine(folder, slots=slots, max_context=MAX_CONTEXT) as engine:

        async def play(number: int, episode: Episode) -> None:
            async with limiter:
                context, session = list(episode.prompt), str(number)
                for turn, (length, result) in enumerate(zip(episode.lengths, episode.results, strict=True)):
                    request = Request(
                        id=f"{session}.{turn}",
                        tokens=context,
                        sampling=Sampling(max_new_tokens=length),
                        session=session,
                        seed=number,
                    )
                    completion = await engine.generate(request)
                    sampled[0] += len(completion.tokens)
                    context += completion.tokens.tolist() + result
                await engine.release(session)

        before = (await engine.stats())["cpu_s"]
        cpu, wall = time.process_time(), time.perf_counter()
        async with anyio.create_task_group() as group:
            for number, episode in enumerate(episodes):
                group.start_soon(play, number, episode)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        stats = await engine.stats()
    return Cost(sampled[0], cpu + stats["cpu_s"] - before, wall), stats


def pad_and_wait(model: PreTrainedModel, episodes: list[Episode], slots: int) -> int:
    """All episodes, ``slots`` at a time, each turn prefilled from the start; returns how many tokens were sampled."""
    model.set_attn_implementation(ATTENTION)
    cache = SlotCache(model.config, slots=slots, length=MAX_CONTEXT, dtype=torch.float32, device="cpu")
    sampled = 0
    for start in range(0, len(episodes), slots):
        live = [(start + i, episode, list(episode.prompt)) for i, episode in enumerate(episodes[start : start + slots])]
        for turn in range(max(len(episode.lengths) for _, episode, _ in live)):
            live = [row for row in live if turn < len(row[1].lengths)]
            wanted = [episode.lengths[turn] for _, episode, _ in live]
            made = decode_padded(model, cache, [c for _, _, c in live], max(wanted), [n for n, _, _ in live])
            for (_, episode, context), length, row in zip(live, wanted, made, strict=True):
                context += row[:length].tolist() + episode.results[turn]
                sampled += length
    return sampled


def decode_padded(
    model: PreTrainedModel, cache: SlotCache, contexts: list[list[int]], steps: int, seeds: list[int]
) -> np.ndarray:
    """Sample ``steps`` tokens for every context: one padded prefill, then all rows in every step. int [rows, steps]."""
    rows = len(contexts)
    lengths = np.array([len(context) for context in contexts])
    width = int(lengths.max())
    padded = np.zeros((rows, width), dtype=np.int64)
    for i, context in enumerate(contexts):
        padded[i, : len(context)] = context
    table = SamplingTable(rows)
    for i in range(rows):
        table.set(i, Sampling(max_new_tokens=steps))
    u = np.stack([uniforms(seed, 0, MAX_CONTEXT) for seed in seeds])
    slots, columns = np.repeat(np.arange(rows), width), np.tile(np.arange(width), rows)
    # Padding stands at the end: its keys are masked, then overwritten by the tokens that are sampled.
    batch = PackedBatch(
        cache, torch.from_numpy(slots), torch.from_numpy(columns), spans=[Span(i, 0, width) for i in range(rows)]
    )
    keep = np.arange(rows) * width + lengths - 1
    logits = forward(model, padded.reshape(-1), columns, batch, keep)
    made = np.zeros((rows, steps), dtype=np.int64)
    every = np.arange(rows)
    for step in range(steps):
        made[:, step], _ = draw(logits, u[every, lengths], table, every)
        if step == steps - 1:
            break
        keys = min((int(lengths.max()) // 32 + 1) * 32, MAX_CONTEXT)
        last = torch.from_numpy(lengths)
        batch = PackedBatch(
            cache, torch.from_numpy(every), last, rows, [Stretch(0, rows, keys)], cache.mask(last, keys)
        )
        logits = forward(model, made[:, step], lengths, batch, every)
        lengths = lengths + 1
    return made


def forward(
    model: PreTrainedModel, ids: np.ndarray, positions: np.ndarray, batch: PackedBatch, keep: np.ndarray
) -> torch.Tensor:
    """One packed forward pass: logits of the tokens in ``keep``."""
    out = model(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        use_cache=False,
        logits_to_keep=torch.from_numpy(keep),
        packed_batch=batch,
    )
    return out.logits[0]


def transformers_generate(model: PreTrainedModel, episodes: list[Episode], slots: int) -> int:
    """The same with ``generate``: left-padded contexts, all rows to the longest length; returns the tokens needed."""
    model.set_attn_implementation("sdpa")
    transformers_logging.set_verbosity_error()
    sampled = 0
    for start in range(0, len(episodes), slots):
        live = [(episode, list(episode.prompt)) for episode in episodes[start : start + slots]]
        for turn in range(max(len(episode.lengths) for episode, _ in live)):
            live = [(episode, context) for episode, context in live if turn < len(episode.lengths)]
            width, steps = max(len(c) for _, c in live), max(e.lengths[turn] for e, _ in live)
            ids = torch.tensor([[0] * (width - len(context)) + context for _, context in live])
            mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for _, context in live])
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=steps,
                min_new_tokens=steps,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
            )
            for (episode, context), row in zip(live, out[:, width:].tolist(), strict=True):
                context += row[: episode.lengths[turn]] + episode.results[turn]
                sampled += episode.lengths[turn]
    return sampled
