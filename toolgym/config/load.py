"""Data to validated config and back: defaults of components, schema versions, TOML."""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import tomli_w
from pydantic import ValidationError

from toolgym.config.base import TAG, Config, Shape, shape_of, tag_of
from toolgym.config.explain import explain
from toolgym.config.overrides import apply_overrides, merge
from toolgym.errors import ConfigError

C = TypeVar("C", bound=Config)
NONE = "none"  # TOML has no null: where a key may be empty this word says so
_SCHEMA_KEY = "schema"


def load(model: type[C], data: Mapping[str, Any], *, overrides: Sequence[str] = (), source: str = "a mapping") -> C:
    """Validate ``data`` with ``key.sub=value`` overrides laid on it.

    A component given by name alone (``advantage = "rloo"``) stands for ``{type = "rloo"}``; a table without ``type``
    keeps the type and the values of the field's default; ``"none"`` empties a key that may be empty.

    Args:
        model: the config to make.
        data: what a TOML file or a program gives; ``schema = n`` at the top names the version it was written for.
        overrides: laid on the data in order, see `toolgym.config.overrides.parse_override`.
        source: where the data came from, named in errors.

    Raises:
        ConfigError: anything wrong, in one line: key path, got, expected, nearest and valid keys, and where it is from.
    """
    given, origins = apply_overrides(data, overrides)
    given = _migrate(model, given, source)
    complete = _complete(Shape(models=(model,)), None, given)
    try:
        # JSON mode: a list may become a tuple and a string a path or an enum, and nothing else is converted.
        return model.model_validate_json(json.dumps(complete, default=_jsonable))
    except ValidationError as error:
        raise ConfigError(explain(model, error, source=source, origins=origins)) from None


def _migrate(model: type[Config], data: dict[str, Any], source: str) -> dict[str, Any]:
    version = data.pop(_SCHEMA_KEY, model.schema_version)
    if not isinstance(version, int) or not 1 <= version <= model.schema_version:
        raise ConfigError(
            f"{_SCHEMA_KEY}: got {version!r}, expected at most {model.schema_version}: "
            f"made for another version of toolgym? (from {source})"
        )
    if version == model.schema_version:
        return data
    try:
        return model.migrate(data, version)
    except ValueError as error:
        raise ConfigError(f"{_SCHEMA_KEY}: {error} (from {source})") from None


def _complete(shape: Shape, default: object, value: Any) -> Any:
    """Write out the short forms that `load` names, all the way down."""
    if shape.nullable and value == NONE:
        return None
    if isinstance(value, str) and shape.tags and not shape.text:
        value = {TAG: value}
    if isinstance(value, list) and shape.element is not None:
        element = shape_of(shape.element)
        return [_complete(element, None, v) for v in cast(list[Any], value)]
    if not isinstance(value, Mapping):
        return cast(Any, value)
    table = dict(cast(Mapping[str, Any], value))
    if isinstance(default, Config):
        table = _over_default(default, table)
    chosen = shape.model_for(table)
    if chosen is not None:
        for name, field in chosen.model_fields.items():
            if name in table:
                below = field.get_default(call_default_factory=True, validated_data={})
                table[name] = _complete(shape_of(field.annotation), below, table[name])
    elif shape.element is not None:
        element = shape_of(shape.element)
        table = {k: _complete(element, None, v) for k, v in table.items()}
    return table


def _over_default(default: Config, table: dict[str, Any]) -> dict[str, Any]:
    """Lay a table over what the field's default sets explicitly, unless it names another type.

    A config with a ``before`` validator fills in its own keys (from a preset, say), and those would look explicit.
    """
    name = tag_of(type(default))
    validators = type(default).__pydantic_decorators__.model_validators.values()
    if table.get(TAG, name) != name or any(v.info.mode == "before" for v in validators):
        return table
    base = default.model_dump(mode="json", exclude_unset=True)
    return merge(base if name is None else {TAG: name, **base}, table)


def _jsonable(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time | pathlib.PurePath):
        return str(value)
    raise TypeError(f"{value!r} has no place in a config")


def to_toml(config: Config) -> str:
    """The resolved config as TOML, every key written out; `load` of it gives an equal config."""
    plain = _without_null(config.model_dump(mode="json"))
    return tomli_w.dumps({_SCHEMA_KEY: type(config).schema_version, **plain})


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_null(v) for k, v in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_without_null(v) for v in cast(list[Any], value)]
    return NONE if value is None else value
