"""``toolgym/lookup-v0``: answers that searching finds, and splits that share no entity."""

import itertools
import re
from collections import Counter

import pytest

from tests.envs.small import call, say
from toolgym.envs import check_env, make, open_envs
from toolgym.envs.lookup.world import SIZES, World, questions, split_of, world
from toolgym.errors import ConfigError
from toolgym.types import Scored

SPLITS = ("train", "validation", "test")
NAME = re.compile(r"\b[A-Z][a-z]{3}\b")


def names_of(w: World) -> set[str]:
    return {name for page in (*w.pages, *w.pages.values()) for name in NAME.findall(page)}


def names_of_tasks(split: str, **kwargs) -> set[str]:
    tasks = make("toolgym/lookup-v0", **kwargs).tasks(split)
    return {
        name
        for t in tasks
        for text in (t.data["question"], t.data["answer"], *t.data["path"])
        for name in NAME.findall(text)
    } - {"Does"}


def test_lookup_tasks_are_many_and_of_different_content():
    env = make("toolgym/lookup-v0")
    assert [len(env.tasks(split)) for split in SPLITS] == [4100, 520, 520]
    hashes = [t.content_hash for split in SPLITS for t in env.tasks(split)]
    assert len(set(hashes)) == len(hashes)
    assert len({t.id for split in SPLITS for t in env.tasks(split)}) == len(hashes)


def test_lookup_splits_share_no_entity():
    for a, b in itertools.combinations(SPLITS, 2):
        assert not names_of(world(a)) & names_of(world(b))
        assert not names_of_tasks(a, hops=(1, 2, 3)) & names_of_tasks(b, hops=(1, 2, 3))
    for split in SPLITS:
        names = names_of_tasks(split)
        assert len(names) > 300
        assert names <= names_of(world(split))
        assert {split_of(name) for name in names} == {split}


def test_lookup_worlds_are_whole_and_always_the_same():
    for split, (people, cities, countries) in SIZES.items():
        w = world(split)
        assert (len(w.home), len(w.country), len(w.ruler)) == (people, cities, countries)
        assert len(w.pages) == people + cities + countries  # so no two entities have one name
    # Written down once: another Python or another seed of the hash function must not change the tasks.
    assert questions("test")[0].path == ("Ragu", "Wiso", "Musu")
    assert questions("train")[0].path == ("June",)


@pytest.mark.parametrize("split", SPLITS)
def test_lookup_answers_stand_on_the_last_page_of_the_path(split: str):
    pages = world(split).pages
    for q in questions(split):
        assert q.path[0] in q.text
        for name, following in itertools.pairwise((*q.path, q.answer)):
            assert following in NAME.findall(pages[name])
        # and on none before: no answer without all the hops
        assert all(q.answer not in NAME.findall(pages[name]) for name in q.path[:-1])
        assert q.answer not in q.text


def test_lookup_hops_choose_the_questions():
    for hops in ((1,), (2,), (3,), (1, 3)):
        tasks = make("toolgym/lookup-v0", hops=hops).tasks("validation")
        assert {len(t.data["path"]) for t in tasks} == set(hops)
    assert len(make("toolgym/lookup-v0", hops=[2]).tasks("train")) == 3000
    for wrong in ((), (0,), (4,)):
        with pytest.raises(ConfigError, match="hops must be some of 1, 2 and 3"):
            make("toolgym/lookup-v0", hops=wrong)


async def test_lookup_plays():
    async with open_envs("toolgym/lookup-v0") as envs:
        env = envs.make()
        await env.areset(options={"task_id": "test-1"})
        assert env.messages[0].content == "Which country does Foju live in?"
        assert (await env.astep(call("search", entity="Foju"))).messages[0].content == "Foju lives in Wepe."
        assert (await env.astep(call("search", entity="Wepe"))).messages[0].content == "Wepe is in Musu."
        assert (await env.astep(call("search", entity="Atlantis"))).messages[0].content == "nothing found"
        assert (await env.astep(say("Musu"))).outcome == Scored(value=1.0)


async def test_lookup_search_sees_only_the_world_of_its_split():
    env = make("toolgym/lookup-v0")
    await env.areset(options={"task_id": "train-2"})
    assert (await env.astep(call("search", entity="Foju"))).messages[0].content == "nothing found"


@pytest.mark.slow
async def test_lookup_conforms():
    await check_env("toolgym/lookup-v0")


def test_lookup_names_are_built_for_byte_pair_encoding():
    """The seam of two syllables is never as frequent as the syllables, so that no merge straddles it."""
    names = sorted(names_of(world("train")))
    pairs = Counter(name[i : i + 2] for name in names for i in range(3))
    seams = {name[1:3] for name in names}
    assert max(pairs[seam] for seam in seams) < min(pairs[name[2:]] for name in names)
