"""What is wrong with a recipe, told by the keys that stand in it: pydantic's problems without pydantic's own words."""

import difflib
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_TABLE = ("dict_type", "model_type", "model_attributes_type")


def explain(error: ValidationError, top: type[BaseModel]) -> list[str]:
    """A line for each problem of a document that should have been a `top`."""
    groups: dict[object, list[tuple[str, ErrorDetails]]] = {}
    for i, problem in enumerate(error.errors()):
        keys, union = _keys(top, problem["loc"])
        groups.setdefault(i if union is None else tuple(keys[:union]), []).append((".".join(keys), problem))
    return [_line(group, top) for group in groups.values()]


def _line(group: Sequence[tuple[str, ErrorDetails]], top: type[BaseModel]) -> str:
    """One problem, or what each member of a union of plain types has against the value: those that came farthest."""
    farthest = max(len(problem["loc"]) for _, problem in group)
    key, problem = next((key, problem) for key, problem in group if len(problem["loc"]) == farthest)
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; {_hint(str(problem['loc'][-1]), _known_keys(top, problem['loc'][:-1]))}"
        case "missing":
            return f"{key}: required key is missing"
        case "union_tag_not_found":
            return f"{key}.{context['discriminator'].strip(chr(39))}: required key is missing"
        case "union_tag_invalid":
            discriminator, tag = context["discriminator"].strip("'"), context["tag"]
            return f"{key}.{discriminator}: '{tag}' is none of {context['expected_tags']}"
    messages = [_message(problem) for _, problem in group if len(problem["loc"]) == farthest]
    message = " or ".join([messages[0], *(m.removeprefix("Input should be ") for m in messages[1:])])
    given = problem.get("input")
    shown = f" (got {_cut(repr(given))})" if isinstance(given, str | int | float | bool) else ""
    return f"{key}: {message}{shown}" if key else f"{message}{shown}"


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _message(problem: ErrorDetails) -> str:
    return "Input should be a table" if problem["type"] in _TABLE else problem["msg"].removeprefix("Value error, ")


def _hint(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"


def _keys(top: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], int | None]:
    """The parts of a location that are keys of the document, and how many of them lead to a union, if one does.

    The others are tags: pydantic tells by them which member of a union a problem is of.
    """
    keys: list[str] = []
    union: int | None = None
    annotation: Any = top
    for part in location:
        if union is None and _is_plain_union(annotation):
            union = len(keys)
        annotation, is_key = _below(annotation, part)
        if is_key:
            keys.append(str(part))
    return keys, union


def _below(annotation: Any, part: str | int) -> tuple[Any, bool]:
    """Annotation of what lies below a part of a location, None if it has none, and whether the part is a key."""
    members, discriminator = _members(annotation)
    if part == "[key]":  # the key before it is meant, not its value
        return None, False
    if len(members) > 1:
        tagged = [m for m in members if discriminator and part in get_args(m.model_fields[discriminator].annotation)]
        return (tagged[0] if tagged else None), False
    if not members:
        return None, isinstance(part, int)
    if _is_model(members[0]):
        field = members[0].model_fields.get(part)
        return (None if field is None else Annotated[field.annotation, field]), True
    return (get_args(members[0]) or (None,))[-1], True  # values of a table, elements of a list


def _members(annotation: Any) -> tuple[list[Any], str | None]:
    """Members of a union, or the annotation itself, None left out; and the key that tells the members apart."""
    discriminator = None
    while get_origin(annotation) is Annotated:
        for metadata in annotation.__metadata__:
            if isinstance(metadata, FieldInfo) and isinstance(metadata.discriminator, str):
                discriminator = metadata.discriminator
        annotation = annotation.__origin__
    if get_origin(annotation) not in (Union, UnionType):
        return ([] if annotation is None else [annotation]), discriminator
    members = [member for member in get_args(annotation) if member is not NoneType]
    return _members(members[0]) if len(members) == 1 else (members, discriminator)


def _is_plain_union(annotation: Any) -> bool:
    members, discriminator = _members(annotation)
    return len(members) > 1 and discriminator is None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _known_keys(top: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Keys that are valid at a place of the document."""
    annotation: Any = top
    for part in location:
        annotation, _ = _below(annotation, part)
    (model,), _ = _members(annotation)
    # a name below the top is the table's own key
    return [name for name in model.model_fields if name != "name" or model is top]
