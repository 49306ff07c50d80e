"""The strict base of every configuration, and what its annotations say about tables and components."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

TAG = "type"  # the key that chooses a component


class Config(BaseModel):
    """Base of every configuration: unknown keys refused, nothing coerced, floats finite, immutable.

    ``"3"`` is not a number, ``1`` is not a bool and ``nan`` is nothing; an integer is accepted where a float is meant.
    A component's config has a ``type`` field of one literal with itself as default, and stands in the union that
    `component` makes. Example::

        class Grpo(Config):
            type: Literal["grpo"] = "grpo"
            eps: float = Field(1e-6, gt=0)
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    schema_version: ClassVar[int] = 1

    @classmethod
    def migrate(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        """Turn the data of an older ``version`` into those of ``cls.schema_version``; overridden when that grows."""
        raise ValueError(f"schema {version} cannot be read any more; this version reads {cls.schema_version}")


def component(*classes: type[Config]) -> Any:
    """The annotation of a field that holds one of several configs, chosen by its ``type`` key.

    Example: ``advantage: component(Grpo, Rloo) = Grpo()``; in a recipe ``advantage = {type = "rloo"}``, or, with all
    defaults, ``advantage = "rloo"``.

    Raises:
        TypeError: a class without a literal ``type`` default, or two with the same.
    """
    seen: dict[str, type[Config]] = {}
    for cls in classes:
        name = tag_of(cls)
        if name is None:
            raise TypeError(f'{cls.__name__} needs a field `type: Literal["name"] = "name"` to be a component')
        if name in seen:
            raise TypeError(f"{cls.__name__} and {seen[name].__name__} both have type {name!r}")
        seen[name] = cls
    if len(classes) == 1:
        return classes[0]  # pydantic takes no discriminator over a single class
    return Annotated[Union[classes], Field(discriminator=TAG)]  # noqa: UP007 - a union of a tuple has no | form


def tag_of(cls: type[Config]) -> str | None:
    """The name under which a component's config is chosen; None for a config that is no component."""
    field = cls.model_fields.get(TAG)
    if field is None or get_origin(field.annotation) is not Literal or not isinstance(field.default, str):
        return None
    return field.default


@dataclass(frozen=True, slots=True)
class Shape:
    """What an annotation allows: configs (tables), elements of a list or mapping, None, and plain text."""

    models: tuple[type[Config], ...] = ()
    element: Any = None
    nullable: bool = False
    text: bool = False

    def model_for(self, value: object) -> type[Config] | None:
        """The config that a table is meant for: by its ``type`` where there are several; None when that is open."""
        if len(self.models) == 1:
            return self.models[0]
        name = cast(Mapping[str, object], value).get(TAG) if isinstance(value, Mapping) else value
        return self.tags.get(name) if isinstance(name, str) else None

    @property
    def tags(self) -> dict[str, type[Config]]:
        """The components by name; empty when the tables are not components."""
        return {name: m for m in self.models if (name := tag_of(m)) is not None}


def shape_of(annotation: Any) -> Shape:
    """Look through Annotated, unions and containers for what `Shape` names."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return shape_of(args[0])
    if isinstance(annotation, TypeVar):  # pragma: no cover - generic configs are not used
        return Shape()
    if origin is Union or origin is types.UnionType:
        parts = [shape_of(a) for a in args if a is not type(None)]
        return Shape(
            models=tuple(m for p in parts for m in p.models),
            element=next((p.element for p in parts if p.element is not None), None),
            nullable=type(None) in args,
            text=any(p.text for p in parts),
        )
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return Shape(models=(annotation,))
    if origin in (list, tuple, set, frozenset):
        return Shape(element=args[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Shape(element=args[1])
    text = annotation is str or (origin is Literal and any(isinstance(a, str) for a in args))
    return Shape(text=text)
