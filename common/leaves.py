"""What is inside of dicts and lists, by name."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Leaf = TypeVar("Leaf")


def named_leaves(value: Any, kind: type[Leaf], name: str = "") -> Iterator[tuple[str, Leaf]]:
    """(name, leaf) of all of a kind in dicts and lists; a name is the keys on the way, with dots between: "a.b[2]".

    Args:
        value: a dict, a list or tuple, or a leaf; what is of another kind is passed over.
        kind: class of the leaves.
        name: of the value itself.
    """
    if isinstance(value, kind):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_leaves(item, kind, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from named_leaves(item, kind, f"{name}[{i}]")
