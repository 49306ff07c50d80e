"""What an episode costs around the model: chat format, tokenizer, parser, environment, bookkeeping.

The engine is scripted and answers at once. An episode has 4 turns and 3 tool calls, every tool result is different (so
that no cache helps), and the whole of the process's CPU time is counted. Peers on the same work, measured on two shared
cores: verifiers 0.1.14 0.56 CPU ms a turn, the tool loop of TRL 1.0 to 1.2; a 20 ms tool in 128 episodes takes TRL 9 s,
since its calls run one after another.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Sequence
from typing import Any

import anyio
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from toolgym.agents.chat import ChatFormat
from toolgym.agents.rollout import Budget, EpisodeIds, rollout_group
from toolgym.agents.tiny import END, PAD, TINY_SPECIALS, tiny_template
from toolgym.engines.base import Request, Sampling
from toolgym.engines.scripted import ScriptedEngine
from toolgym.envs import ToolEnv, tool
from toolgym.types import EpisodeEnd, Message, Scored, Task, ToolCall, Trajectory

PEER_MS_PER_TURN = 0.56  # verifiers 0.1.14 ToolEnv, 4,096 episodes: the fastest peer
PEER_SLOW_TOOL_S = 9.0  # TRL 1.16, 128 rollouts × 4 turns, 20 ms tool
TURNS = 4
GROUP = 8
ENV_ID = "toolgym-bench/rollout-v0"


class BenchEnv(ToolEnv):
    """Questions whose tool gives a different answer to every call."""

    env_id = ENV_ID
    tool_s = 0.0
    answers = 0

    def tasks(self, split: str) -> Sequence[Task]:
        """None are listed: the benchmark makes its own."""
        return ()

    @tool
    async def search(self, query: str) -> str:
        """Search the encyclopaedia.

        Args:
            query: what to look for
        """
        if BenchEnv.tool_s:
            await anyio.sleep(BenchEnv.tool_s)
        BenchEnv.answers += 1
        return f"{query} has {BenchEnv.answers} inhabitants and lies on the river {BenchEnv.answers * 7919 % 10007}."


def run(*, episodes: int = 4096, in_flight: int = 512, repeats: int = 3) -> dict[str, Any]:
    """CPU milliseconds per turn over all processes, against the best peer's.

    Args:
        episodes: of 4 turns each.
        in_flight: of these at the same time.
        repeats: the whole is played so often, and the cheapest counts: CPU time grows on a machine that others use too.
    """
    chat = ChatFormat(bench_tokenizer())
    _measure(chat, 64, 64)  # load everything once
    gc.collect()
    gc.freeze()  # as a training run does
    runs = [_measure(chat, episodes, in_flight) for _ in range(repeats)]
    cpu_s, wall_s = min(runs)
    BenchEnv.tool_s = 0.02
    try:
        slow_cpu_s, slow_wall_s = min(_measure(chat, 128, 128) for _ in range(repeats))
    finally:
        BenchEnv.tool_s = 0.0
    turns = episodes * TURNS
    ours = 1e3 * cpu_s / turns
    return {
        "name": "rollout",
        "ours": round(ours, 4),
        "baseline": PEER_MS_PER_TURN,
        "ratio": round(PEER_MS_PER_TURN / ours, 2),
        "unit": "CPU ms per turn",
        "details": {
            "episodes": episodes,
            "turns": turns,
            "tool_calls": episodes * (TURNS - 1),
            "cpu_s": round(cpu_s, 3),
            "cpu_s_of_repeats": [round(cpu, 3) for cpu, _ in runs],
            "wall_s": round(wall_s, 3),
            "turns_per_s": round(turns / wall_s),
            "slow_tool": {
                "what": "128 episodes x 4 turns with a 20 ms tool; 0.06 s is the ideal",
                "wall_s": round(slow_wall_s, 3),
                "cpu_s": round(slow_cpu_s, 3),
                "baseline_s": PEER_SLOW_TOOL_S,
                "ratio": round(PEER_SLOW_TOOL_S / slow_wall_s, 1),
            },
            "baseline_is": "verifiers 0.1.14 ToolEnv with an instant stub for the model, the fastest peer measured",
        },
    }


def bench_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer with the tiny policy's format, as the default recipe trains one."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex("[A-Za-z]+|[0-9]{1,2}|[^A-Za-z0-9]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=690,
        special_tokens=list(TINY_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    line = 'How many inhabitants has Zaka? {"name": "search", "arguments": {"query": "Zaka"}} It lies on the river.'
    tokenizer.train_from_iterator([line], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=tiny_template()
    )


def _measure(chat: ChatFormat, episodes: int, in_flight: int) -> tuple[float, float]:
    cpu, wall = _cpu_s(), time.perf_counter()
    played = anyio.run(_play, chat, episodes, in_flight)
    cpu, wall = _cpu_s() - cpu, time.perf_counter() - wall
    assert played == episodes, f"{played} of {episodes} episodes were played as they should"
    return cpu, wall


async def _play(chat: ChatFormat, episodes: int, in_flight: int) -> int:
    script = _script(chat)
    played = 0
    limiter = anyio.CapacityLimiter(max(1, in_flight // GROUP))
    async with ScriptedEngine(script, record=False) as engine, anyio.create_task_group() as tasks:

        async def play(number: int) -> None:
            nonlocal played
            async with limiter:
                group = await rollout_group(
                    BenchEnv,
                    _task(number),
                    engine,
                    chat,
                    size=GROUP,
                    sampling=Sampling(max_new_tokens=64),
                    budget=Budget(max_turns=8, max_tokens=1024, max_time_s=60),
                    ids=EpisodeIds(run="bench", group=f"g{number}"),
                    seed=0,
                )
            played += sum(map(_is_whole, group.trajectories))

        for number in range(episodes // GROUP):
            tasks.start_soon(play, number)
    return played


def _is_whole(trajectory: Trajectory) -> bool:
    calls = sum(turn.tool_calls for turn in trajectory.turns)
    whole = (EpisodeEnd.TERMINATED, TURNS, TURNS - 1)
    return isinstance(trajectory.outcome, Scored) and (trajectory.end, len(trajectory.turns), calls) == whole


def _task(number: int) -> Task:
    data = {"question": f"How many inhabitants has the town of Zaka{number}?", "answer": "42"}
    return Task(id=f"train-{number}", env_id=ENV_ID, split="train", seed=number, content_hash=str(number), data=data)


def _script(chat: ChatFormat) -> Any:
    """Three calls with different arguments, then an answer; the turn is the last part of the request's id."""
    calls = [
        chat.encode_turn(Message(role="assistant", tool_calls=(ToolCall(name="search", arguments={"query": name}),)))
        for name in ("Zaka", "river Mol", "Tirana Nova")
    ]
    turns = [*calls, chat.encode_turn(Message(role="assistant", content="It has 42 inhabitants."))]

    def answer(request: Request) -> list[int]:
        return turns[int(request.id[-1])]

    return answer


def _cpu_s() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
