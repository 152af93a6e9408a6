"""Rules for all code that lint, format and type checks do not cover."""

import ast

import pytest
from quick_run import REPOSITORY

ROOMS = ("common", "datasets", "scripts", "trainers")
MODULES = sorted(
    [*(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")), *REPOSITORY.glob("[a-z]*.py")]
)


def public_definitions(body, within=""):
    """(dotted name, node) of functions, methods and classes that others may use, special methods among them."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            special = node.name.startswith("__") and node.name.endswith("__")
            if special or not node.name.startswith("_"):
                yield within + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from public_definitions(node.body, f"{within}{node.name}.")


def decorators(node):
    """Names of a definition's decorators, without arguments."""
    called = (decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list)
    return {ast.unparse(decorator).rpartition(".")[2] for decorator in called}


def without_types(name, node):
    """Missing annotations of a public definition: parameters, "return", fields of a dataclass."""
    if isinstance(node, ast.ClassDef):
        if "dataclass" in decorators(node):
            for statement in node.body:
                if isinstance(statement, ast.Assign):
                    yield from (ast.unparse(target) for target in statement.targets)
        return
    given = node.args
    parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    is_method = "." in name and "staticmethod" not in decorators(node)
    for parameter in parameters[is_method:]:
        if parameter is not None and parameter.annotation is None:
            yield parameter.arg
    if node.returns is None and node.name != "__init__":
        yield "return"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_public_definitions_have_annotations(path):
    definitions = public_definitions(ast.parse(path.read_text(encoding="utf-8")).body)
    found = {name: list(without_types(name, node)) for name, node in definitions}
    assert {name: parts for name, parts in found.items() if parts} == {}


@pytest.mark.parametrize(
    "code, missing",
    [
        ("def f(a, b: int, *c, d=1, **e) -> None: ...", ["a", "d", "c", "e"]),
        ("def f(): ...", ["return"]),
        ("class A:\n def f(self, a) -> int: ...", ["a"]),
        ("class A:\n def __init__(self, a: int): ...", []),
        ("class A:\n @staticmethod\n def f(a) -> int: ...", ["a"]),
        ("class _A:\n def f(self, a): ...", []),
        ("def _f(a): ...", []),
        ("@dataclasses.dataclass(frozen=True)\nclass A:\n a = 1\n b: int = 2", ["a"]),
        ("class A:\n a = 1", []),
    ],
)
def test_missing_annotations_are_found(code, missing):
    assert [part for pair in public_definitions(ast.parse(code).body) for part in without_types(*pair)] == missing


def test_type_ignore_names_error_and_reason():
    for path in MODULES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "# type: ignore" in line:
                reason = line.partition("# type: ignore[")[2].partition("]")[2]
                assert reason.strip(" #"), f"{path}: {line.strip()}"
