"""JSON Schema 2020-12, and tables for people, from the TypedDicts of agent/core/messages.py."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def schema(name: str, message: Any) -> dict[str, Any]:
    """Return the schema of a message.

    Raises:
        TypeError: it uses a type that has no counterpart here.
    """
    return {"$schema": DIALECT, "title": name, **_schema(message)}


def rows(message: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield name, kind and meaning of each field, those inside an object after it, as `outer.inner`.

    Fields of an object that says what they mean itself are left out.
    """
    for field, hint in get_type_hints(message, include_extras=True).items():
        kind, meaning, optional = _stripped(hint)
        inner = _object_in(kind)
        if not meaning and inner is not None:
            meaning = _about(inner)
        yield prefix + field, _named(kind) + (", may be absent" if optional else ""), meaning
        if inner is not None and any(row[2] for row in rows(inner)):
            yield from rows(inner, f"{prefix}{field}{'[]' if get_origin(kind) is list else ''}.")


def _schema(kind: Any) -> dict[str, Any]:
    kind, meaning, _ = _stripped(kind)
    described = {"description": meaning} if meaning else {}
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        required = [name for name, hint in hints.items() if not _stripped(hint)[2]]
        described.setdefault("description", _about(kind))
        fields = {name: _schema(hint) for name, hint in hints.items()}
        return {**described, "type": "object", "properties": fields, "required": required}
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return described
    if kind in _PLAIN:
        return {**described, "type": _PLAIN[kind]}
    if origin is Literal:
        return {**described, **({"const": args[0]} if len(args) == 1 else {"enum": list(args)})}
    if origin is list:
        return {**described, "type": "array", "items": _schema(args[0])}
    if origin is dict and args[0] is str:
        return {**described, "type": "object", "additionalProperties": _schema(args[1])}
    if origin in (Union, UnionType):
        options = [_schema(arg) for arg in args]
        if all(option.keys() == {"type"} for option in options):
            return {**described, "type": [option["type"] for option in options]}
        return {**described, "anyOf": options}
    raise TypeError(f"no schema for {kind!r}")


def _stripped(hint: Any) -> tuple[Any, str, bool]:
    """Take NotRequired and Annotated off: the type, the innermost description that is not empty, whether optional."""
    meaning, optional = "", False
    while get_origin(hint) in (NotRequired, Annotated):
        optional |= get_origin(hint) is NotRequired
        if get_origin(hint) is Annotated:
            meaning = meaning or next((m for m in hint.__metadata__ if isinstance(m, str)), "")
        hint = get_args(hint)[0]
    return hint, meaning, optional


def _object_in(kind: Any) -> Any:
    """Return the TypedDict that `kind` is, or is a list of."""
    inner = _stripped(get_args(kind)[0])[0] if get_origin(kind) is list else kind
    return inner if is_typeddict(inner) else None


def _named(kind: Any) -> str:
    """Return what JSON calls a type, for people."""
    kind = _stripped(kind)[0]
    origin, args = get_origin(kind), get_args(kind)
    if is_typeddict(kind) or kind is Any:
        return "object" if is_typeddict(kind) else "anything"
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in args)
    if origin is list:
        return f"array of {_named(args[0])}"
    if origin is dict:
        return f"object of {_named(args[1])}"
    if origin in (Union, UnionType):
        return " or ".join(_named(arg) for arg in args)
    return _PLAIN[kind]


def _about(kind: Any) -> str:
    return " ".join((kind.__doc__ or "").split())
