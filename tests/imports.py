"""Read the imports of the repository's modules from their text."""

import ast


def tree_of(path):
    """The syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """Full names of all imports in a module, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
