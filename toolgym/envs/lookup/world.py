"""A fictional world for each split: people live in cities, cities are in countries, countries are ruled by people.

No name of one split's world occurs in another's: which split a name belongs to is decided by its own hash.
"""

import hashlib
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

CONSONANTS, VOWELS = "bcdfghjklmnprstvwxyz", "aeiou"
FIRST = tuple(c.upper() + v for c in CONSONANTS for v in VOWELS)
# A consonant of the second syllable goes with three of the vowels only. So "ta" is more frequent in the names than the
# "et" in the middle of "Feta", and byte-pair encoding splits every name between its syllables: "Fe", "ta".
SECOND = tuple(c + VOWELS[(i + step) % 5] for i, c in enumerate(CONSONANTS) for step in (0, 1, 3))

# People, cities, countries. Many cities and countries, each seldom: a policy that sees a name often learns it by heart
# instead of learning to copy, and then fails on names that it has not seen.
SIZES = {"train": (3000, 1100, 600), "validation": (380, 140, 60), "test": (380, 140, 60)}


@dataclass(frozen=True, slots=True)
class World:
    """One split's encyclopaedia. ``pages["Zaka"]`` is ``"Zaka lives in Moru."``."""

    home: Mapping[str, str]  # person -> city
    country: Mapping[str, str]  # city -> country
    ruler: Mapping[str, str]  # country -> person
    pages: Mapping[str, str]  # name -> what the encyclopaedia says about it


def split_of(name: str) -> str:
    """The only split whose world may hold this name: 8 in 10 names go to training, 1 to validation, 1 to the test."""
    bucket = hashlib.sha256(name.encode()).digest()[0] % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


@lru_cache(maxsize=4)
def world(split: str) -> World:
    """The world of a split, always the same (about 20 ms the first time)."""
    rng = random.Random(f"lookup-v0 {split}")
    names = [name for a in FIRST for b in SECOND if split_of(name := a + b) == split]
    rng.shuffle(names)
    take = iter(names)
    people, cities, countries = (list(itertools.islice(take, n)) for n in SIZES[split])
    home = {person: rng.choice(cities) for person in people}
    country = {city: rng.choice(countries) for city in cities}
    ruler = dict(zip(countries, rng.sample(people, len(countries)), strict=True))
    pages = {person: f"{person} lives in {city}." for person, city in home.items()}
    pages |= {city: f"{city} is in {land}." for city, land in country.items()}
    pages |= {land: f"{land} is ruled by {who}." for land, who in ruler.items()}
    return World(home=home, country=country, ruler=ruler, pages=pages)


@dataclass(frozen=True, slots=True)
class Question:
    """One question; ``path`` are the names to look up, in order, and ``answer`` stands on the last one's page."""

    text: str
    path: tuple[str, ...]
    answer: str


@lru_cache(maxsize=4)
def questions(split: str) -> tuple[Question, ...]:
    """All questions of a split's world, shuffled: of one, two and three hops (``len(path)``)."""
    w = world(split)
    found: list[Question] = []
    for person, city in w.home.items():
        land = w.country[city]
        found.append(Question(f"Which country does {person} live in?", (person, city), land))
        if w.ruler[land] != person:
            found.append(Question(f"Who rules the country {person} lives in?", (person, city, land), w.ruler[land]))
    found += [Question(f"Which country is {city} in?", (city,), land) for city, land in w.country.items()]
    random.Random(f"lookup-v0 order {split}").shuffle(found)
    return tuple(found)
