"""`parse_override`: TOML values, bare words, keys."""

from typing import Any

import pytest

from toolgym.config import parse_override
from toolgym.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("lr=1e-4", ("lr",), 1e-4),
        ("a.b=3", ("a", "b"), 3),
        ("a.b = true", ("a", "b"), True),
        ("env=toolgym/python-v0", ("env",), "toolgym/python-v0"),
        ("note=a=b", ("note",), "a=b"),
        ("note=two words", ("note",), "two words"),
        ("note=a#1", ("note",), "a#1"),
        ("note=1#2", ("note",), "1#2"),
        ("note=1, w = 2", ("note",), "1, w = 2"),
        ('note=""', ("note",), ""),
        ("betas=[0.9, 0.99]", ("betas",), [0.9, 0.99]),
        ('a={type="x", k=1}', ("a",), {"type": "x", "k": 1}),
        ('env."toolgym/python-v0".n=1', ("env", "toolgym/python-v0", "n"), 1),
        ("envs.0.n=1", ("envs", "0", "n"), 1),
    ],
)
def test_parse_override_reads_toml_and_bare_words(text: str, path: tuple[str, ...], value: Any):
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["lr", "=3", "lr=", "a b=1", "a..b=1", "x=[1", "x={a=1", 'x="a', "x='a"])
def test_parse_override_refuses_what_is_neither(text: str):
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert repr(text) in str(caught.value)
