"""One run, from a recipe to a trained and evaluated policy; or the rest of one that was interrupted."""

from __future__ import annotations

import copy
import gc
import resource
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import torch

from toolgym.agents.rollout import Budget
from toolgym.engines import open_engine
from toolgym.engines.base import Engine, Sampling
from toolgym.engines.weights import WeightsWriter
from toolgym.envs.factory import EnvFactory, open_envs
from toolgym.envs.registry import make
from toolgym.errors import ToolgymError
from toolgym.store import Checkpoint, RunStore
from toolgym.trainer import checkpoint, report
from toolgym.trainer.config import RunConfig
from toolgym.trainer.evaluate import Evaluator, Score, score_of
from toolgym.trainer.failures import FailureGuard
from toolgym.trainer.folder import new_folder, versions
from toolgym.trainer.learner import Learner
from toolgym.trainer.loop import Loop
from toolgym.trainer.policy import check_folder, load
from toolgym.trainer.prepare import Prepared, encode_all, prepare_policy, warm_up
from toolgym.trainer.publish import Publisher, canary
from toolgym.trainer.reporter import Reporter, SilentReporter
from toolgym.trainer.rollouts import Rollouts
from toolgym.trainer.sft import warm_start
from toolgym.trainer.staleness import Staleness
from toolgym.types import Group, PolicyVersion, Task, Trajectory


async def train(
    config: RunConfig, *, resume: Path | None = None, reporter: Reporter | None = None, runs_dir: Path = Path("runs")
) -> dict[str, Any]:
    """Run a recipe, or go on with the run in the folder ``resume`` (``config`` is then that run's own).

    Returns: the summary, which is also written to ``summary.json`` in the run's folder.
    Raises:  ConfigError: the recipe cannot work here. TrainingError, EngineError, SandboxError: it cannot go on; what
             was finished is recorded and the run can be resumed.
    """
    if resume is None:
        _check(config)
    folder = resume or new_folder(config, runs_dir)
    database = folder / "run.db"
    with RunStore.open(database) if resume else RunStore.create(database) as store, _settings(config), _one_error():
        run = Run(config, folder, store, reporter or SilentReporter())
        async with anyio.create_task_group() as group:
            group.start_soon(_stop_on_sigterm, run, group.cancel_scope)
            await run.main()
            group.cancel_scope.cancel()
        if run.told_to_stop:
            raise KeyboardInterrupt("SIGTERM")
        return run.summary()


class Run:
    """The phases of a run, in order; `main` plays those that the record does not hold yet."""

    def __init__(self, config: RunConfig, folder: Path, store: RunStore, reporter: Reporter) -> None:
        self.config, self.folder, self.store, self.reporter = config, folder, store, reporter
        self.lineage = store.begin_lineage()
        self.started = time.monotonic()
        self.told_to_stop = False
        self.spent_before = {"wall_s": 0.0, "cpu_s": 0.0}
        self.sandbox = ""
        self.scores: dict[str, dict[str, Score]] = {}
        self.numbers: dict[str, float] = {}
        store.set_meta("versions", versions())
        store.set_meta("recipe", config.name)
        store.set_meta("seed", config.seed)
        store.set_meta("env", config.env.id)

    async def main(self) -> None:
        """Play the whole run."""
        recorded = self.store.latest_checkpoint()
        if recorded is None:
            prepared = await prepare_policy(self.config, self.folder, self.reporter)
        else:
            prepared = await self._prepared_before()
        warmed = anyio.Event()
        async with anyio.create_task_group() as group:
            if recorded is None:
                group.start_soon(self._warm_up, prepared, warmed)
            else:
                warmed.set()
            await self._open(prepared, recorded, warmed)

    async def _prepared_before(self) -> Prepared:
        """The policy of a resumed run: its tokenizer and shape; the weights come from the checkpoint."""
        tiny = self.folder / "policy"
        folder = tiny if tiny.is_dir() else Path(self.config.policy.path)
        dtype = getattr(self.config.policy, "dtype", "float32")
        policy = await anyio.to_thread.run_sync(lambda: load(folder, dtype=dtype))
        return Prepared(policy=policy, folder=folder, demonstrations=())

    async def _warm_up(self, prepared: Prepared, warmed: anyio.Event) -> None:
        loss = await warm_up(self.config, prepared.policy)
        if loss is not None:
            self.store.log_metrics(0, {"copy_loss": loss}, phase="warmup")
        warmed.set()

    async def _open(self, prepared: Prepared, recorded: Checkpoint | None, warmed: anyio.Event) -> None:
        """Open environments, engine and weight files, and train in them."""
        c = self.config
        self.reporter.phase("start engine and sandboxes, copy warm-up")
        # A resumed engine starts one version back: the first publication brings the recorded weights and their number.
        first = PolicyVersion(lineage=self.lineage, n=0 if recorded is None else _version_of(recorded) - 1)
        async with (
            open_envs(c.env.id, **c.env.options) as envs,
            open_engine(
                c.engine.type,
                model_path=prepared.folder,
                version=first,
                **c.engine.model_dump(exclude={"type", "deterministic"}),
                deterministic=c.deterministic or c.engine.deterministic,
            ) as engine,
        ):
            self.sandbox = envs.describe()
            self.store.set_meta("sandbox", self.sandbox)
            self.reporter.note(self.sandbox)
            prompt = prepared.policy.chat.initial((await _first_messages(envs)), [tool.schema for tool in envs.tools])
            tolerance = 1e-3 if c.engine.dtype == "float32" else 0.25  # rounding of half precision, measured 0.03
            with WeightsWriter(canary_tokens=canary(prompt), canary_tolerance=tolerance) as writer:
                await warmed.wait()
                publisher = Publisher(engine, writer, prepared.policy.model, lineage=first.lineage, n=first.n)
                await self._train(prepared, recorded, envs, engine, publisher)

    async def _train(
        self,
        prepared: Prepared,
        recorded: Checkpoint | None,
        envs: EnvFactory,
        engine: Engine,
        publisher: Publisher,
    ) -> None:
        c, policy = self.config, prepared.policy
        budget = Budget(max_turns=c.rollout.max_turns, max_tokens=c.rollout.max_tokens, max_time_s=c.rollout.max_time_s)
        evaluator = Evaluator(
            envs=envs,
            chat=policy.chat,
            engine=engine,
            budget=budget,
            max_new_tokens=c.rollout.max_new_tokens,
            seed=c.seed,
            concurrency=c.engine.slots,
        )
        if recorded is None and c.sft is not None:
            await self._warm_start(prepared, envs, publisher, evaluator)
        reference = copy.deepcopy(policy.model).requires_grad_(False) if c.algorithm.kl is not None else None
        learner = Learner(
            policy.model,
            c.algorithm,
            c.train.optimizer,
            steps=c.train.steps,
            temperature=c.rollout.temperature,
            micro_batch_tokens=c.train.micro_batch_tokens,
            minibatches=c.train.minibatches,
            autocast=c.train.autocast,
            reference=reference,
        )
        if recorded is not None:
            await anyio.to_thread.run_sync(checkpoint.read, recorded.path, learner)
            if reference is not None:
                checkpoint.load_model(reference, self.store.checkpoints()[0].path / "model.safetensors")
        version = await publisher.publish()
        loop = self._loop(policy_parts=(policy, envs, engine), learner=learner, publisher=publisher, budget=budget)
        loop.each_step = lambda step: self._maybe_evaluate(step, evaluator, envs)
        if recorded is None:
            loop.rollouts.staleness.version = loop.rollouts.staleness.first = version.n
            await loop.save()
        else:
            self._restore(loop, recorded, version)
        await self._evaluate("before", evaluator, envs, wanted=learner.step_count == 0)
        self.reporter.phase("train", total=c.train.steps)
        if learner.step_count:
            self.reporter.advance(learner.step_count)
        await loop.run()
        await anyio.to_thread.run_sync(policy.save, self.folder / "model")
        await self._evaluate("after", evaluator, envs, wanted=True)
        self.numbers = {
            "max_staleness_seen": loop.max_staleness,
            "publishes_verified": publisher.verified,
            "logprob_max_abs_diff": loop.max_logprob_diff,
        }

    def _restore(self, loop: Loop, recorded: Checkpoint, version: PolicyVersion) -> None:
        state = recorded.state
        loop.rollouts.load_state_dict(state["rollouts"], recorded=self.store.groups("finished"))
        assert loop.rollouts.staleness.version == version.n, "the recorded weights keep their number"
        self.spent_before = state["spent"]
        loop.max_staleness = state["max_staleness"]
        loop.max_logprob_diff = state["max_logprob_diff"]
        loop.publisher.verified += state["verified"]

    def _loop(
        self, *, policy_parts: tuple[Any, EnvFactory, Engine], learner: Learner, publisher: Publisher, budget: Budget
    ) -> Loop:
        policy, envs, engine = policy_parts
        c = self.config
        tasks = list(envs.tasks("train"))
        by_id = {task.id: task for task in tasks}
        rollouts = Rollouts(
            envs=envs,
            chat=policy.chat,
            engine=engine,
            store=self.store,
            curriculum=c.curriculum.build(tasks, seed=c.seed),
            staleness=Staleness(limit=c.rollout.max_staleness, per_step=c.rollout.groups_per_step),
            guard=FailureGuard(c.failures),
            sampling=Sampling(
                max_new_tokens=c.rollout.max_new_tokens,
                temperature=c.rollout.temperature,
                stop_tokens=policy.chat.stop_tokens,
            ),
            budget=budget,
            group_size=c.rollout.group_size,
            seed=c.seed,
            run_id=self.folder.name,
            lineage=self.lineage,
            find_task=by_id.__getitem__,
        )
        return Loop(
            learner=learner,
            rollouts=rollouts,
            publisher=publisher,
            engine=engine,
            store=self.store,
            reporter=self.reporter,
            folder=self.folder,
            steps=c.train.steps,
            checkpoint_every=c.train.checkpoint_every,
            pad=policy.pad,
            each_step=_nothing,
            spent=self.spent,
        )

    async def _warm_start(
        self, prepared: Prepared, envs: EnvFactory, publisher: Publisher, evaluator: Evaluator
    ) -> None:
        config, policy = self.config.sft, prepared.policy
        assert config is not None
        self.reporter.phase("supervised warm start", total=None)
        examples = encode_all(policy, prepared.demonstrations, [tool.schema for tool in envs.tools])
        tasks = envs.tasks("train")[-config.check_tasks :]

        async def check() -> float:
            await publisher.publish()
            played = await evaluator.run(tasks, temperature=1.0, label=f"warm-start-{publisher.version.n}")
            return score_of(played).mean

        def on_steps(step: int, loss: float, success: float | None) -> None:
            numbers = {"loss": loss} | ({} if success is None else {"success": success})
            self.store.log_metrics(step, numbers, phase="sft")
            self.reporter.advance(config.check_every, **numbers)

        result = await warm_start(
            policy.model, examples, config, pad=policy.pad, seed=self.config.seed, check=check, on_steps=on_steps
        )
        self.store.add_event("warm_start", result)

    async def _maybe_evaluate(self, step: int, evaluator: Evaluator, envs: EnvFactory) -> None:
        """On validation tasks, every so many steps. No publication happens meanwhile: the version is pinned."""
        config = self.config.evaluate
        if not config.every or step % config.every:
            return
        tasks = envs.tasks("validation")[: config.every_tasks]
        for mode, temperature in self._modes():
            score = score_of(await evaluator.run(tasks, temperature=temperature, label=f"validation-{mode}-{step}"))
            self.store.log_metrics(step, {f"success_{mode}": score.mean}, phase="validation")

    def _modes(self) -> tuple[tuple[str, float], ...]:
        return ("sampled", self.config.rollout.temperature), ("greedy", 0.0)

    async def _evaluate(self, when: str, evaluator: Evaluator, envs: EnvFactory, *, wanted: bool) -> None:
        """Held-out scores, sampled and greedy; read from the record where an earlier lineage made them."""
        for event in self.store.events("evaluation"):
            if event.data["when"] == when:
                self.scores[when] = {
                    m: Score(mean=s["mean"], ci95=tuple(s["ci95"]), n=s["n"], failed=s["failed"])
                    for m, s in event.data["scores"].items()
                }
                return
        if not wanted:
            return
        config = self.config.evaluate
        tasks = list(envs.tasks(config.split))[: config.tasks]
        self.reporter.phase(f"evaluate {when} training", total=2 * len(tasks))
        scores: dict[str, Score] = {}
        for mode, temperature in self._modes():
            played = await evaluator.run(
                tasks,
                temperature=temperature,
                label=f"{when}-{mode}-{self.lineage}",
                on_episode=lambda t: self.reporter.advance(1),
            )
            self._record(played, tasks, config.split)
            scores[mode] = score_of(played)
        self.scores[when] = scores
        data = {"when": when, "scores": {m: s.to_dict() for m, s in scores.items()}, "env": self.config.env.id}
        self.store.add_event("evaluation", data)
        self.reporter.note(f"held out, {when}: " + ", ".join(f"{m} {s.mean:.3f}" for m, s in scores.items()))

    def _record(self, played: list[Trajectory], tasks: list[Task], split: str) -> None:
        by_id = {task.id: task for task in tasks}
        for number, t in enumerate(played):
            group = Group(id=t.group_id, task=by_id[t.task_id], trajectories=(t,), lineage=self.lineage)
            self.store.add_group(group, split=split, number=number)

    def summary(self) -> dict[str, Any]:
        """Everything that a program may want of the finished run; written to ``summary.json`` with curve and
        transcripts.
        """
        c = self.config
        scores = {
            when: {c.env.id: {m: s.to_dict() for m, s in by_mode.items()}} for when, by_mode in self.scores.items()
        }
        calls = self.store.metrics("tool_calls_per_episode", phase="train")
        summary = {
            "recipe": c.name,
            "seed": c.seed,
            "run": self.folder.name,
            "sandbox": self.sandbox,
            "heldout_before": scores["before"],
            "heldout_after": scores["after"],
            **self.spent(),
            "tool_calls_per_episode": calls[-1].value if calls else 0.0,
            **self.numbers,
            "steps": c.train.steps,
            "lineages": self.lineage + 1,
            "versions": versions(),
        }
        held_out = {when: by_env[c.env.id] for when, by_env in scores.items()}
        report.plot_learning_curve(
            self.store, self.folder / "learning_curve.png", title=f"{c.name}, seed {c.seed}", held_out=held_out
        )
        before, after = (self._examples(when) for when in ("before", "after"))
        (self.folder / "transcripts.txt").write_text(report.transcripts_text(before, after), encoding="utf-8")
        for text in report.transcripts_text(before, after).rstrip().split("\n\n"):
            self.reporter.note(text)
        report.write_json(self.folder / "summary.json", summary)
        self.store.set_meta("summary", summary)
        return summary

    def spent(self) -> dict[str, float]:
        """Wall and CPU seconds of the run, those of earlier lineages up to their last checkpoint included."""
        return {
            "wall_s": self.spent_before["wall_s"] + time.monotonic() - self.started,
            "cpu_s": self.spent_before["cpu_s"] + cpu_seconds(),
        }

    def _examples(self, when: str) -> list[Trajectory]:
        n = self.config.evaluate.transcripts
        episodes = self.store.episodes(split=self.config.evaluate.split, limit=8 * n)
        return [e.trajectory for e in episodes if e.trajectory.group_id.startswith(f"{when}-sampled")][:n]


def _check(config: RunConfig) -> None:
    """Refuse what cannot work before anything is made. Raises ConfigError."""
    make(config.env.id, **config.env.options)
    if config.policy.type == "pretrained":
        check_folder(Path(config.policy.path))


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended (the engine has)."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


async def _first_messages(envs: EnvFactory) -> Any:
    env = envs.make()
    try:
        messages, _ = await env.areset(options={"task": envs.tasks("train")[0]})
        return messages
    finally:
        await env.aclose()


async def _nothing(step: int) -> None:
    del step


def _version_of(recorded: Checkpoint) -> int:
    state: Mapping[str, Any] = recorded.state
    return int(state["rollouts"]["version"])


@contextmanager
def _settings(config: RunConfig) -> Iterator[None]:
    """Process-wide settings for this run, put back at the end."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    gc.collect()
    gc.freeze()  # a full collection would walk the loaded libraries again and again while episodes come and go
    torch.set_num_threads(config.train.threads)
    torch.use_deterministic_algorithms(config.deterministic)
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def _one_error() -> Iterator[None]:
    """Task groups raise groups; people get the first error of ours in it, or the first of all."""
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        ours = [e for e in leaves if isinstance(e, ToolgymError)]
        raise (ours or leaves)[0] from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _stop_on_sigterm(run: Run, scope: anyio.CancelScope) -> None:
    """``kill`` ends a run as Ctrl-C does: everything that it started is closed first."""
    if threading.current_thread() is not threading.main_thread():
        return  # Python hands signals to the main thread alone
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            run.told_to_stop = True
            scope.cancel()
