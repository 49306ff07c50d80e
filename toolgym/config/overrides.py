"""``key.sub=value`` from a command line: parsed as TOML, laid over a recipe."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from toolgym.config.base import TAG
from toolgym.errors import ConfigError

Path = tuple[str, ...]


def parse_override(text: str) -> tuple[Path, Any]:
    """Split ``key.sub=value``; the value is TOML, a bare word is a string.

    Examples: ``lr=1e-4`` a float, ``sandbox=docker`` and ``sandbox="docker"`` a string, ``betas=[0.9, 0.99]`` a list,
    ``advantage={type="rloo"}`` a table, ``note=""`` the empty string.

    Raises:
        ConfigError: no ``=``, no key, no value, or a value that starts like TOML and is not.
    """
    key, equals, value = text.partition("=")
    value = value.strip()
    if not equals or not key.strip() or not value:
        raise ConfigError(f"got {text!r} on the command line, expected key=value (the empty string is key='\"\"')")
    return _parse_key(key.strip(), text), _parse_value(value, text)


def _parse_key(key: str, text: str) -> Path:
    try:
        node: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"got {text!r} on the command line: {key!r} is no key like learner.lr") from None
    path: list[str] = []
    while isinstance(node, dict):
        ((name, node),) = cast(dict[str, Any], node).items()
        path.append(name)
    return tuple(path)


def _parse_value(value: str, text: str) -> Any:
    try:
        # In an inline table a comment sign cannot hide the rest: 'a#1' stays the whole word.
        table = tomllib.loads(f"x = {{v = {value}}}")["x"]
    except tomllib.TOMLDecodeError as e:
        if value[0] in "[{\"'":
            raise ConfigError(f"got {text!r} on the command line: {value!r} is not TOML ({e})") from None
        return value
    return table["v"] if set(table) == {"v"} else value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``, tables key by key; a table that names another ``type`` replaces the old one whole.

    (The keys beside a ``type`` belong to it: those of the old component would be unknown to the new one.)
    """
    result: dict[str, Any] = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            lower, upper = cast(Mapping[str, Any], below), cast(Mapping[str, Any], value)
            replaced = TAG in upper and upper[TAG] != lower.get(TAG, upper[TAG])
            result[key] = dict(upper) if replaced else merge(lower, upper)
        else:
            result[key] = value
    return result


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], dict[Path, str]]:
    """Lay overrides on ``data`` in order, choices of ``type`` first.

    Returns:
        The new data, and for each overridden key path the text that set it (for error messages).

    Raises:
        ConfigError: see `parse_override`; a path through a plain value; a list index that is not there.
    """
    parsed = [(*parse_override(text), text) for text in overrides]
    parsed.sort(key=lambda p: p[0][-1] != TAG)  # stable: otherwise in the order given
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for path, value, text in parsed:
        result = _set(result, path, value, text)
    return result, {path: text for path, _, text in parsed}


def _set(node: Any, path: Path, value: Any, text: str) -> Any:
    """``node`` with the value at ``path``; lists are entered by index."""
    key, rest = path[0], path[1:]
    if isinstance(node, list):
        items = cast(list[Any], node)
        if not key.isdigit() or int(key) >= len(items):
            raise ConfigError(f"got {text!r} on the command line: {key!r} is no index of a list of {len(items)}")
        new = _set(items[int(key)], rest, value, text) if rest else value
        return [*items[: int(key)], new, *items[int(key) + 1 :]]
    if isinstance(node, str):  # the short form of a component: "grpo" is {type = "grpo"}
        node = {TAG: node}
    if not isinstance(node, Mapping):
        raise ConfigError(f"got {text!r} on the command line: {key!r} is below {node!r}, which is no table")
    table = cast(Mapping[str, Any], node)
    new = _set(table.get(key, {}), rest, value, text) if rest else value
    if key == TAG and not rest and table.get(TAG, value) != value:
        return {TAG: value}
    below = table.get(key)
    if not rest and isinstance(value, Mapping) and isinstance(below, Mapping):
        return merge(table, {key: value})
    return {**table, key: new}
