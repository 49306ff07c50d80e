"""One clear line for a recipe that does not validate."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import ValidationError

from toolgym.config.base import Config, Shape, shape_of, tag_of

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "a string that matches {pattern}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "missing": "a value",
}
_TOML_NAMES: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def explain(model: type[Config], error: ValidationError, *, source: str, origins: Mapping[tuple[str, ...], str]) -> str:
    """The first problem in full (key, got, expected, nearest and valid keys, where it came from); the others by key.

    Args:
        model: what was validated.
        error: what pydantic said.
        source: where the data came from, e.g. the recipe's path.
        origins: the key paths set on the command line, with the text that set each.
    """
    problems = error.errors(include_url=False)
    # Unknown keys first: a misspelt key also shows as a missing one, and the misspelling is the cause.
    problems.sort(key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    place = locate(model, first["loc"])
    text = f"{place.name}: {_problem(model, first, place)} (from {_origin(place.path, source, origins)})"
    others = dict.fromkeys(locate(model, p["loc"]).name for p in problems[1:])
    others.pop(place.name, None)
    return text + (f"; also wrong: {', '.join(others)}" if others else "")


class Place:
    """Where in the tree a problem is: its key path, the config that holds it, and what may stand there."""

    def __init__(self, path: tuple[str, ...], parent: type[Config] | None, shape: Shape) -> None:
        self.path = path
        self.parent = parent
        self.shape = shape

    @property
    def name(self) -> str:
        """The key path as a user writes it; the whole recipe has none."""
        return ".".join(self.path) or "the recipe"


def locate(model: type[Config], loc: tuple[int | str, ...]) -> Place:
    """Translate pydantic's location, which holds union tags, into a key path."""
    path: list[str] = []
    shape, parent = Shape(models=(model,)), None
    for item in loc:
        if len(shape.models) > 1 and item in shape.tags:
            shape = Shape(models=(shape.tags[str(item)],), nullable=shape.nullable)
        elif len(shape.models) == 1 and isinstance(item, str):
            parent = shape.models[0]
            path.append(item)
            field = parent.model_fields.get(item)
            shape = shape_of(field.annotation) if field else Shape()
        elif shape.element is not None:
            parent = None
            path.append(str(item))
            shape = shape_of(shape.element)
        # Anything else is the name of a branch of a plain union such as `int | str`: no key.
    return Place(tuple(path), parent, shape)


def _problem(model: type[Config], problem: Any, place: Place) -> str:
    kind: str = problem["type"]
    context: dict[str, Any] = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(model, place)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        got = context.get("tag")
        return f"type is missing; {_choice(None, place)}" if got is None else f"got type {got!r}; {_choice(got, place)}"
    if kind in ("value_error", "assertion_error"):
        return f"{context.get('error', problem['msg'])}"
    if kind == "missing":
        return f"missing; expected {_wanted(place.shape)}{_siblings(place)}"
    got = _describe(problem["input"])
    if kind in ("literal_error", "enum"):
        names = [n.strip("'") for n in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return f"got {got}, expected one of {', '.join(names)}{_near(problem['input'], names)}"
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else _lower(problem["msg"])
    if kind in ("model_type", "model_attributes_type") and len(place.shape.models) == 1:
        expected += f" with the keys {', '.join(f'{place.name}.{key}' for key in place.shape.models[0].model_fields)}"
    return f"got {got}, expected {expected}"


def _unknown_key(model: type[Config], place: Place) -> str:
    key, prefix = place.path[-1], place.path[:-1]
    valid = sorted(place.parent.model_fields) if place.parent else []
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    elsewhere = [p for p in key_paths(model) if p[-1] == key]
    if place.path in elsewhere and place.parent and tag_of(place.parent):  # another type at the same place has it
        hint = f" of type {tag_of(place.parent)!r};"
    elif close:
        hint = f"; did you mean {'.'.join((*prefix, close[0]))!r}?"
    elif elsewhere:
        hint = f"; did you mean {'.'.join(elsewhere[0])!r}?"
    else:
        hint = ";"
    return f"unknown key{hint} valid keys here: {', '.join(valid) or '(none)'}"


def key_paths(model: type[Config], *, seen: tuple[type[Config], ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key path that a config knows, through all its components, nearest to the root first."""
    below: list[tuple[str, type[Config]]] = []
    for name, field in model.model_fields.items():
        yield (name,)
        below += [(name, m) for m in shape_of(field.annotation).models if m not in seen]
    for name, inner in below:
        for path in key_paths(inner, seen=(*seen, model)):
            yield (name, *path)


def _choice(got: object, place: Place) -> str:
    names = sorted(place.shape.tags)
    return f"expected one of {', '.join(names)}{_near(got, names)}"


def _near(got: object, names: list[str]) -> str:
    close = difflib.get_close_matches(got, names, n=1, cutoff=0.5) if isinstance(got, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _wanted(shape: Shape) -> str:
    return "a table" if shape.models else "a list" if shape.element is not None else "a value"


def _siblings(place: Place) -> str:
    keys = sorted(place.parent.model_fields) if place.parent else []
    return f"; valid keys here: {', '.join(keys)}" if keys else ""


def _describe(value: object) -> str:
    name = next((n for t, n in _TOML_NAMES.items() if isinstance(value, t)), None)
    if isinstance(value, dict | list):
        return f"{name} of {len(cast(Any, value))}"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({name})" if name else text


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _origin(path: tuple[str, ...], source: str, origins: Mapping[tuple[str, ...], str]) -> str:
    """The override that set this key, one above it or one below it; else the source of the data."""
    for set_path, text in reversed(tuple(origins.items())):
        n = min(len(path), len(set_path))
        if n and path[:n] == set_path[:n]:
            return f"the command line, {text!r}"
    return source
