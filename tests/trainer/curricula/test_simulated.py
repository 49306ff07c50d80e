"""Every curriculum does, on a simulated learner, what its paper says; and each goes on from its state."""

import json
import random

import pytest

from toolgym.errors import ConfigError, TrainingError
from toolgym.trainer.curricula.base import TaskResult
from toolgym.trainer.curricula.dynamic_sampling import DynamicSampling
from toolgym.trainer.curricula.evolving import Evolving
from toolgym.trainer.curricula.ladder import VariantLadder, check_choices, check_cloze
from toolgym.trainer.curricula.mastered import NoPositiveResampling
from toolgym.trainer.curricula.prompt import PromptCurriculum, ValueModel, hashed_words
from toolgym.trainer.curricula.retry import BufferedRetry
from toolgym.trainer.curricula.shuffled import Shuffled
from toolgym.trainer.curricula.sources import SourceBandit
from toolgym.types import Task

from .simulated import Learner, tasks

LEVELS = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def level_of(task):
    return task.data["level"]


def harder(task: Task, rng: random.Random) -> Task:
    level = float(task.data["level"]) + 1
    name = f"{task.id}+{rng.randrange(10**9)}"
    return Task(id=name, env_id="simulated", split="train", seed=0, content_hash=name, data={"level": level})


def by_id(found):
    return {t.id: t for t in found}.__getitem__


def make_ladders():
    found = {}
    for i in range(12):
        forms = tasks([-2.0, -1.0, 0.0, 1.0], per_level=1)
        found[f"p{i}"] = [
            Task(id=f"p{i}-{k}", env_id="s", split="train", seed=0, content_hash=f"{i}{k}", data=t.data)
            for k, t in enumerate(forms)
        ]
    return found


FACTORIES = {
    "shuffled": lambda: Shuffled(tasks(LEVELS), seed=3),
    "dynamic_sampling": lambda: DynamicSampling(tasks(LEVELS), seed=3, target=4, max_batches=50),
    "pcl": lambda: PromptCurriculum(tasks(LEVELS), seed=3),
    "dump": lambda: SourceBandit(tasks(LEVELS), source=lambda t: str(t.data["level"]), seed=3),
    "retry": lambda: BufferedRetry(Shuffled(tasks(LEVELS), seed=3), by_id(tasks(LEVELS)), seed=3, p=0.5),
    "mastered": lambda: NoPositiveResampling(tasks(LEVELS), seed=3),
    "evolving": lambda: Evolving(tasks(LEVELS), evolve=harder, seed=3, generation=16),
    "ladder": lambda: VariantLadder(make_ladders(), seed=3),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_curriculum_goes_on_from_its_state_and_is_seeded(name):
    def advance(curriculum, learner, steps):
        return [[t.id for t in learner.step(curriculum, 11)] for _ in range(steps)]

    first, learner = FACTORIES[name](), Learner(seed=5)
    advance(first, learner, 9)
    state = json.loads(json.dumps(first.state_dict()))
    second = FACTORIES[name]()
    second.load_state_dict(state)
    twin = Learner(seed=5)
    advance(FACTORIES[name](), twin, 9)  # an equal history
    assert twin.skill == learner.skill
    assert advance(second, twin, 9) == advance(first, learner, 9)
    assert second.state_dict() == first.state_dict()


# --- DAPO dynamic sampling


def test_dynamic_sampling_keeps_groups_that_have_signal():
    curriculum = DynamicSampling(tasks(LEVELS), target=3)
    rewards = [(1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 0.5), (), (0.0,)]
    kept = [curriculum.keeps(TaskResult(task_id="x", rewards=r)) for r in rewards]
    assert kept == [True, False, False, True, False, False]
    assert curriculum.stats == {"discarded": 1 - 2 / 6, "cost": 3.0}


def test_dynamic_sampling_gives_up_on_tasks_without_signal():
    curriculum = DynamicSampling(tasks([9.0]), target=2, max_batches=3)
    dead, alive = TaskResult(task_id="x", rewards=(0.0, 0.0)), TaskResult(task_id="x", rewards=(0.0, 1.0))
    for _ in range(4):  # a batch that fills at its last chance counts anew
        curriculum.keeps(dead)
    assert curriculum.keeps(alive)
    assert curriculum.keeps(alive)
    for _ in range(5):
        assert not curriculum.keeps(dead)
    with pytest.raises(TrainingError, match="6 groups gave 0 with different rewards, 2 are wanted"):
        curriculum.keeps(dead)
    with pytest.raises(ConfigError, match="expected both >= 1"):
        DynamicSampling(tasks([1.0]), target=0)


def test_dynamic_sampling_batch_is_more_informative_than_the_stream():
    learner, curriculum = Learner(rate=0.0), DynamicSampling(tasks(LEVELS), target=16)
    results = [learner.play(t) for t in curriculum.next_tasks(64)]
    kept = [r for r in results if curriculum.keeps(r)]
    assert all(0 < mean(r.rewards) < 1 for r in kept)
    assert curriculum.stats["cost"] == 64 / len(kept) > 1.2


# --- PCL


def test_pcl_selects_pass_rates_near_tau_and_harder_tasks_as_skill_grows():
    found = tasks([*LEVELS, 4.0, 5.0, 6.0], per_level=40)
    learner, curriculum = Learner(rate=0.02), PromptCurriculum(found, seed=1)
    for _ in range(10):
        learner.step(curriculum)  # learn to predict
    levels, rates, random_variance = [], [], []
    for _ in range(50):
        batch = curriculum.next_tasks(16)
        levels.append(mean(level_of(t) for t in batch))
        rates.append([learner.success(t) for t in batch])
        random_variance.append(mean(p * (1 - p) for p in map(learner.success, found)))
        curriculum.update([learner.play(t) for t in batch])
    for part in (rates[:10], rates[-10:]):
        assert abs(mean(mean(r) for r in part) - 0.5) < 0.15
    assert mean(p * (1 - p) for r in rates for p in r) > 2 * mean(random_variance)
    assert mean(levels[-5:]) > mean(levels[:5]) + 1


def test_pcl_costs_fewer_rollouts_than_filtering_for_the_same_signal():
    """Rollouts until 64 groups with pass rate in [1/4, 3/4] were trained on: predicted, against rolled out and
    thrown.
    """

    def rollouts(curriculum):
        learner, found = Learner(rate=0.0, seed=2), 0
        for _ in range(10):
            learner.step(curriculum)  # the same warm-up for both
        learner.rollouts = 0
        while found < 64:
            batch = curriculum.next_tasks(16)
            results = [learner.play(t) for t in batch]
            curriculum.update(results)
            found += sum(0.25 <= mean(r.rewards) <= 0.75 for r in results)
        return learner.rollouts

    found = tasks([x * 0.5 for x in range(-12, 13)], per_level=20)
    predicted, filtered = rollouts(PromptCurriculum(found, seed=4)), rollouts(Shuffled(found, seed=4))
    assert filtered / predicted > 2


def test_pcl_constant_prediction_takes_the_shuffled_order_and_no_oversampling_takes_all():
    found = tasks(LEVELS)
    assert [t.id for t in PromptCurriculum(found, seed=7, batch=4).next_tasks(4)] == [
        t.id for t in Shuffled(found, seed=7).next_tasks(4)
    ]
    everything = PromptCurriculum(found, seed=7, batch=len(found), oversample=1).next_tasks(len(found))
    assert {t.id for t in everything} == {t.id for t in found}


def test_hashed_words_leave_out_the_answer():
    task = tasks([1.0], answer="42")[0]
    other = tasks([1.0], answer="elephant")[0]
    assert (hashed_words(task) == hashed_words(other)).all()
    assert (hashed_words(task) != hashed_words(tasks([2.0])[0])).any()


def test_value_model_learns_two_kinds_of_tasks():
    import numpy as np

    model, x = ValueModel(2), np.eye(2)
    for _ in range(200):
        model.fit(x, np.array([0.9, 0.2]))
    assert model.predict(x) == pytest.approx([0.9, 0.2], abs=0.03)


# --- DUMP


def test_dump_moves_from_easy_to_hard_sources():
    levels = [-1.0, 1.0, 3.0]
    curriculum = SourceBandit(tasks(levels), source=lambda t: str(t.data["level"]), seed=0, window=64)
    learner = Learner(skill=-1.0, rate=0.05, seed=1)
    seen = []
    for _ in range(150):
        seen.append([level_of(t) for t in learner.step(curriculum)])
    share = {level: [sum(x == level for x in batch) / 16 for batch in seen] for level in levels}

    def peak(level):
        windows = [mean(share[level][i : i + 10]) for i in range(140)]
        return windows.index(max(windows))

    assert peak(-1.0) < peak(1.0) < peak(3.0)
    assert mean(share[-1.0][:15]) > 0.5
    at = peak(3.0)
    assert mean(share[-1.0][at : at + 10]) < 0.2  # solved: its |advantage| is gone once the window turned over


def test_dump_unsampled_source_is_tried_and_windows_are_bounded():
    curriculum = SourceBandit(tasks([0.0, 1.0]), source=lambda t: str(t.data["level"]), window=10, scaled=False)
    assert curriculum.probabilities == {"0.0": 0.5, "1.0": 0.5}
    for _ in range(20):
        curriculum.update([TaskResult(task_id="0.0-1", rewards=(1.0, 0.0, 0.0, 0.0))])
    curriculum.update([TaskResult(task_id="unknown", rewards=(1.0,)), TaskResult(task_id="1.0-0", rewards=())])
    assert curriculum.probabilities["1.0"] > 0.99
    values = curriculum.state_dict()["values"]["0.0"]
    assert len(values) == 10
    assert set(values) == {0.75, 0.25}
    assert curriculum.state_dict()["counts"] == {"0.0": 80, "1.0": 0}


# --- BDR


def result(task_id, *rewards):
    return TaskResult(task_id=task_id, rewards=rewards)


def test_retry_returns_failures_first_in_first_out_until_solved_or_given_up():
    found = tasks([0.0], per_level=6)
    curriculum = BufferedRetry(Shuffled(found), by_id(found), p=1.0, max_retries=2, capacity=2)
    order = [t.id for t in Shuffled(found).next_tasks(2)]
    assert [t.id for t in curriculum.next_tasks(1)] == order[:1]  # empty: the inner curriculum
    curriculum.update(
        [result("0.0-1", 0.0, 0.0), result("0.0-1", 0.0), result("0.0-2", 0.0, 1.0), result("0.0-3", 0.5)]
    )
    assert len(curriculum) == 2  # once each; solved in part stays out
    curriculum.update([result("0.0-4", 0.0)])
    assert len(curriculum) == 2  # 0.0-1, the oldest, fell out
    assert [t.id for t in curriculum.next_tasks(3)] == ["0.0-3", "0.0-4", order[1]]
    curriculum.update([result("0.0-3", 0.0), result("0.0-4", 1.0)])
    assert [t.id for t in curriculum.next_tasks(1)] == ["0.0-3"]
    curriculum.update([result("0.0-3", 0.0)])
    assert len(curriculum) == 0  # retried twice: given up


def test_retry_solved_elsewhere_leaves_the_buffer_and_repair_makes_the_prompt():
    found = tasks([0.0], per_level=3)
    curriculum = BufferedRetry(Shuffled(found), by_id(found), p=1.0, repair=lambda t: harder(t, random.Random(0)))
    curriculum.update([result("0.0-1", 0.0), result("0.0-2", 0.0)])
    curriculum.update([result("0.0-1", 1.0)])
    assert curriculum.next_tasks(1)[0].id.startswith("0.0-2+")
    with pytest.raises(ConfigError, match="p=2"):
        BufferedRetry(Shuffled(found), by_id(found), p=2)


def test_retry_gives_hard_tasks_more_chances():
    found = tasks([-3.0, 2.0], per_level=20)
    plays = {}
    for p in (0.0, 0.5):
        learner = Learner(rate=0.0, group=2, seed=0)
        curriculum = BufferedRetry(Shuffled(found, seed=1), by_id(found), seed=1, p=p, max_retries=20)
        plays[p] = mean(level_of(t) == 2.0 for _ in range(40) for t in learner.step(curriculum))
    assert plays[0.0] == pytest.approx(0.5, abs=0.05)
    assert plays[0.5] > 0.6


# --- no positive resampling


def test_mastered_tasks_leave_the_next_epoch_and_all_come_back_when_none_is_left():
    found = tasks([0.0], per_level=4)
    curriculum = NoPositiveResampling(found, seed=2)
    first = curriculum.next_tasks(4)
    assert {t.id for t in first} == {t.id for t in found}
    curriculum.update([result("0.0-0", *[1.0] * 9, 0.0), result("0.0-1", *[1.0] * 8, 0.0, 0.0)])
    assert curriculum.retired == ["0.0-0"]
    assert {t.id for t in curriculum.next_tasks(3)} == {"0.0-1", "0.0-2", "0.0-3"}
    curriculum.update([result(f"0.0-{i}", *[1.0] * 100) for i in (1, 2, 3)])
    assert {t.id for t in curriculum.next_tasks(4)} == {t.id for t in found}


def test_mastered_spends_its_rollouts_on_what_is_not_mastered():
    found = tasks([-4.0, 0.5], per_level=16)
    learner = Learner(rate=0.0, seed=0)
    curriculum = NoPositiveResampling(found)
    shares = [mean(level_of(t) == 0.5 for t in learner.step(curriculum, 32)) for _ in range(6)]
    assert shares[0] == 0.5
    assert mean(shares[2:]) > 0.85


# --- eva


def test_evolving_plays_what_teaches_most_and_keeps_its_verifiers():
    curriculum = Evolving(tasks([-3.0, 0.0, 4.0], per_level=8), evolve=harder, seed=0, generation=24)
    learner = Learner(rate=0.0, group=16, seed=0)
    for _ in range(3):
        learner.step(curriculum, 24)
    batch = curriculum.next_tasks(400)
    evolved = [t for t in batch if "+" in t.id]
    assert len(evolved) / 400 == pytest.approx(0.8, abs=0.06)
    parents = {t.id.split("-")[0] if t.id[0] != "-" else "-3.0" for t in evolved}
    assert "4.0" not in parents  # never solved: nothing to gain
    assert all(curriculum.find(t.id) is t for t in evolved)
    with pytest.raises(KeyError):
        curriculum.find("nobody")


def test_evolving_difficulty_rises_with_the_learner():
    curriculum = Evolving(tasks([-1.0, 0.0], per_level=16), evolve=harder, seed=0, generation=24)
    learner = Learner(skill=0.0, rate=0.1, seed=0)
    levels = [mean(level_of(t) for t in learner.step(curriculum)) for _ in range(60)]
    assert mean(levels[-5:]) > mean(levels[:5]) + 1
    with pytest.raises(ConfigError, match="see Evolving"):
        Evolving(tasks([0.0]), evolve=harder, fraction=0.0)


# --- Cog-DRIFT


def test_ladder_climbs_strictly_above_the_threshold_and_never_down():
    curriculum = VariantLadder({"p": make_ladders()["p0"][1:], "q": make_ladders()["p1"][:1]})
    curriculum.update([result("p0-1", 1.0, 0.0)])
    assert curriculum.rungs["p"] == 0  # one half is not enough
    curriculum.update([result("p0-1", 1.0, 1.0, 0.0), result("p0-1", 1.0)])  # the second is of a rung already left
    assert curriculum.current("p").id == "p0-2"
    curriculum.update([result("p0-2", 0.0), result("p1-0", 1.0), result("elsewhere", 1.0), result("p0-2")])
    assert curriculum.rungs == {"p": 1, "q": 0}
    curriculum.update([result("p0-2", 1.0)])
    curriculum.update([result("p0-3", 1.0)])
    assert curriculum.current("p").id == "p0-3"  # stays at the open form
    assert {t.id for t in curriculum.next_tasks(2)} == {"p0-3", "p1-0"}


def test_ladder_upgrades_a_learner_to_the_open_form_that_it_could_not_solve_at_first():
    curriculum, learner = VariantLadder(make_ladders(), seed=0), Learner(skill=-2.0, rate=0.1, seed=0)
    alone = Learner(skill=-2.0, rate=0.1, seed=0)
    direct = Shuffled([forms[-1] for forms in make_ladders().values()])
    rungs = []
    for _ in range(40):
        learner.step(curriculum, 12)
        alone.step(direct, 12)
        rungs.append(sum(curriculum.rungs.values()))
    assert rungs == sorted(rungs)
    assert set(curriculum.rungs.values()) == {3}
    assert learner.skill > alone.skill + 1


def test_ladder_wider_window_needs_luck_more_often():
    def lucky(window):
        ladders = {"p0": make_ladders()["p0"][:2]}
        rng, climbed = random.Random(0), 0
        for _ in range(300):
            curriculum = VariantLadder(ladders, window=window)
            for _ in range(window):
                curriculum.update([result("p0-0", *(float(rng.random() < 0.25) for _ in range(4)))])
            climbed += curriculum.rungs["p0"]
        return climbed / 300

    assert lucky(1) == pytest.approx(0.05, abs=0.03)  # P(at least 3 of 4 at 1/4) = 0.051
    assert lucky(4) < lucky(1)


def test_ladder_refuses_unsound_variants():
    check_choices(["a", "b", "c", "d"], label=2, gold="c", n=4)
    check_cloze("4_", gold="42")
    for options, label, message in (
        (["a", "b", "c"], 0, "3 different options of 3, expected 4"),
        (["c", "b", "c", "d"], 0, "3 different options of 4"),
        (["a", "b", "c", "d"], 0, "option 0 is not"),
        (["a", "b", "c", "d"], 7, "option 7 is not"),
    ):
        with pytest.raises(ValueError, match=message):
            check_choices(options, label=label, gold="c", n=4)
    for cloze, message in (("42", "hides nothing"), ("5_", "does not agree"), ("4__", "does not agree")):
        with pytest.raises(ValueError, match=message):
            check_cloze(cloze, gold="42")
    with pytest.raises(ConfigError, match="every problem needs a variant"):
        VariantLadder({"p": []})
