"""Docstrings, messages and pages: sections of public objects, examples, plain English."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import inspect
import itertools
import pathlib
import re
import types
from collections.abc import Iterator
from typing import Any

import pytest

import widelimit as wl
from widelimit import diagnostics, extend, models, predict, stax
from widelimit import typing as wl_typing

SOURCE = pathlib.Path(wl.__file__).parent
ROOMS: dict[str, types.ModuleType] = {
    "widelimit": wl,
    "stax": stax,
    "predict": predict,
    "extend": extend,
    "models": models,
    "diagnostics": diagnostics,
    "typing": wl_typing,
}
# Rooms of other owners, whose text is checked once it is mended.
ELSEWHERE = ("engines/fused/", "engines/choose.py", "scale/", "plot/")
ELSEWHERE_NAMES = ("choose_engine", "FusedActivation")
MESSAGES_ELSEWHERE = ("predict/infinite.py",)

EXAMPLES = (
    "stax.Dense",
    "stax.Conv",
    "stax.Relu",
    "stax.Erf",
    "stax.serial",
    "stax.parallel",
    "stax.repeat",
    "stax.FanOut",
    "stax.FanInSum",
    "stax.Flatten",
    "stax.GlobalAvgPool",
    "stax.AvgPool",
    "stax.GlobalSelfAttention",
    "stax.LayerNorm",
    "stax.Dropout",
    "stax.Elementwise",
    "stax.ElementwiseNumerical",
    "stax.Identity",
    "stax.layer",
    "KernelFn",
    "Kernel",
    "gram",
    "plan",
    "batch",
    "InfiniteEnsemble",
    "predict.gradient_descent_mse",
    "predict.gradient_descent_mse_ensemble",
    "predict.gp_inference",
    "predict.max_learning_rate",
    "empirical_kernel_fn",
    "empirical_nngp_fn",
    "empirical_ntk_fn",
    "empirical_ntk_vp_fn",
    "NTKOperator",
    "projected_gradients",
    "linearize",
    "taylor_expand",
    "monte_carlo_kernel_fn",
    "to_json",
    "from_json",
)

HABITS = {
    "is no": r"\b(?:is|are|was|were) no (?!longer)[a-z]+",
    "so many": r"\bso many\b",
    "stands for": r"\bstands?\b",
    "likewise": r"\blikewise\b",
    "alike": r"\balike\b",
    "by itself": r"\bby (?:itself|themselves)\b",
    "are there": r"\b(?:is|are) there\b",
    "would do": r"\bwould do\b",
    "seen": r"\bseen\b",
    "told": r"\btold\b",
    "what it says": r"\bwhat (?:\w+ ){1,4}(?:says?|tells?|makes? of|knows?|gives?)\b",
    "American": r"\b(?:initiali|factori|optimi|normali|summari|recogni|vectori)z(?:e|es|ed|ing)\b"
    r"|\bcolors?\b|\bbehaviors?\b|\bcentered\b",
}
CHECKOUT = pathlib.Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md")
MEASURED_PAGES = ("benchmarks.md", "finite_benchmarks.md", "estimators_benchmark.md")
PARTICIPLES = ("found", "kept", "given", "wanted", "told", "seen")


def of_this_package(value: object) -> bool:
    return getattr(value, "__module__", "").startswith("widelimit")


def public_objects() -> Iterator[tuple[str, Any]]:
    """Yields name and value of every public class and function, without those of other owners."""
    for room, module in ROOMS.items():
        for name, value in vars(module).items():
            if name.startswith("_") or name in ELSEWHERE_NAMES or not of_this_package(value):
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                yield (name if room == "widelimit" else f"{room}.{name}"), value


def public_methods(kind: type) -> Iterator[tuple[str, Any]]:
    for name in dir(kind):
        value = inspect.getattr_static(kind, name)
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if not inspect.isfunction(function) or not of_this_package(function):
            continue
        if name == "__call__" or not (name.startswith("_") or function.__name__.startswith("_")):
            yield name, function


OBJECTS = dict(public_objects())


def docstring(value: Any) -> str:
    return inspect.getdoc(value) or ""


def is_plain_tuple(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, tuple) and hasattr(value, "_fields")


def parameters(value: Any) -> list[str]:
    """Returns the names of the arguments that a docstring has to describe."""
    signature = inspect.signature(value)
    return [n for n in signature.parameters if n not in ("self", "cls") and n[0] != "_"]


def described(value: Any, name: str) -> bool:
    return (
        re.search(
            rf"(?m)^  +(?:\*+)?{re.escape(name)}(?:, \w+)*(?: \([^)]*\))?: ", docstring(value)
        )
        is not None
    )


def test_first_lines_are_sentences() -> None:
    firsts = {name: docstring(value).split("\n")[:2] for name, value in OBJECTS.items()}
    wrong = [n for n, (first, *rest) in firsts.items() if first[-1:] not in ".:" or any(rest)]
    assert not wrong, wrong


@pytest.mark.parametrize("name", [n for n, v in OBJECTS.items() if inspect.isfunction(v)])
def test_functions_describe_their_arguments(name: str) -> None:
    value = OBJECTS[name]
    assert docstring(value).startswith(("Returns", "Yields", "Never returns")), docstring(value)
    missing = [n for n in parameters(value) if not described(value, n)]
    assert not missing or docstring(value).startswith("Never"), missing


@pytest.mark.parametrize("name", [n for n, v in OBJECTS.items() if inspect.isclass(v)])
def test_classes_describe_their_fields(name: str) -> None:
    value = OBJECTS[name]
    if issubclass(value, enum.Enum) or getattr(value, "_is_protocol", False):
        return
    if is_plain_tuple(value):
        names = list(value._fields)
    elif dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if f.init]
    else:
        names = []
    missing = [n for n in names if not described(value, n)]
    assert not missing, missing


def test_methods_describe_their_arguments() -> None:
    lacking = {
        function.__qualname__: missing
        for kind in filter(inspect.isclass, OBJECTS.values())
        if not getattr(kind, "_is_protocol", False)
        for method, function in public_methods(kind)
        if (missing := [n for n in parameters(function) if not described(function, n)])
        and not in_a_base(kind, method, missing)
    }
    assert not lacking, "\n".join(f"{name}: {missing}" for name, missing in lacking.items())


def in_a_base(kind: type, method: str, names: list[str]) -> bool:
    """Returns whether a method of this name describes these arguments in some base class."""
    versions = [vars(b)[method] for b in kind.__mro__ if method in vars(b)]
    return any(all(described(version, n) for n in names) for version in versions)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_most_used_have_an_example(name: str) -> None:
    value = OBJECTS[name]
    assert re.search(r"(?m)^Example:$", docstring(value)), name
    assert ">>> " in docstring(value)


def source_files() -> list[str]:
    names = [str(p.relative_to(SOURCE)) for p in sorted(SOURCE.rglob("*.py"))]
    return [n for n in names if not n.startswith(ELSEWHERE)]


@functools.cache
def sentences(name: str) -> list[tuple[int, str]]:
    return [*texts(name), *comments(name)]


def texts(name: str) -> Iterator[tuple[int, str]]:
    """Yields line and text of every docstring and message of a file."""
    tree = ast.parse((SOURCE / name).read_text(encoding="utf8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), " ".join(text.split())
        elif (
            isinstance(node, ast.Raise | ast.Assign | ast.Return) and name not in MESSAGES_ELSEWHERE
        ):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value
                elif isinstance(part, ast.JoinedStr):
                    yield (
                        part.lineno,
                        "".join(
                            v.value if isinstance(v, ast.Constant) else "X" for v in part.values
                        ),
                    )


def comments(name: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate((SOURCE / name).read_text(encoding="utf8").split("\n"), 1):
        if line.strip().startswith("# "):
            yield number, line.strip()


@pytest.mark.parametrize("habit", HABITS)
def test_plain_english(habit: str) -> None:
    pattern = re.compile(HABITS[habit])
    hits = [
        f"{name}:{line}: {match.group()}"
        for name in source_files()
        for line, text in sentences(name)
        for match in pattern.finditer(text)
    ]
    assert not hits, "\n".join(hits)


def pages() -> list[pathlib.Path]:
    paths = itertools.chain.from_iterable(CHECKOUT.glob(pattern) for pattern in PAGES)
    return sorted(p for p in paths if "_build" not in p.parts)


def paragraphs(text: str, *, tables: bool) -> Iterator[tuple[int, str]]:
    """Yields first line and text of every paragraph, without blocks of code."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", lambda m: "\n" * m.group().count("\n"), text)
    if not tables:
        text = re.sub(r"(?m)^\|.*", "", text)
    for match in re.finditer(r"(?:.*\S.*(?:\n|$))+", text):
        yield text.count("\n", 0, match.start()) + 1, " ".join(match.group().split())


@pytest.mark.parametrize("habit", HABITS)
def test_plain_english_of_pages(habit: str) -> None:
    hits = [
        f"{page.relative_to(CHECKOUT)}:{line}: {match.group()}"
        for page in pages()
        for line, text in paragraphs(
            page.read_text(encoding="utf8"), tables=page.name not in MEASURED_PAGES
        )
        for match in re.finditer(HABITS[habit], text)
    ]
    assert not hits, "\n".join(hits)


def test_paragraphs_leave_out_code_and_tables() -> None:
    text = "One\ntwo.\n\n```python\nstands\n```\n\n| alike |\n\n- Three.\n"
    assert list(paragraphs(text, tables=False)) == [(1, "One two."), (10, "- Three.")]
    assert (8, "| alike |") in paragraphs(text, tables=True)


def assigned_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    fields = {id(n.target) for c in classes for n in c.body if isinstance(n, ast.AnnAssign)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Store)
            and id(node) not in fields
        ):
            yield node.lineno, node.id


def test_no_participles_as_names_of_variables() -> None:
    hits = [
        f"{name}:{line}: {variable}"
        for name in source_files()
        if name not in MESSAGES_ELSEWHERE
        for line, variable in assigned_names(ast.parse((SOURCE / name).read_text(encoding="utf8")))
        if variable in PARTICIPLES
    ]
    assert not hits, "\n".join(hits)


def test_types_have_a_description() -> None:
    tree = ast.parse((SOURCE / "typing.py").read_text(encoding="utf8"))
    body = tree.body
    for before, after in itertools.pairwise(body):
        if isinstance(before, ast.AnnAssign):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert is_text, ast.unparse(before)
