"""Nothing public is missing in docs/reference, and nothing there is not public."""

import ast
import importlib
import re
import types
from pathlib import Path

import pytest

import widelimit
from tests.pages import ROOT

REFERENCE = ROOT / "docs" / "reference"
ROOMS = [
    "widelimit",
    *(
        f"widelimit.{path.stem if path.is_file() else path.name}"
        for path in (ROOT / "src" / "widelimit").iterdir()
        if (REFERENCE / f"{path.stem}.rst").exists() and path.stem != "__init__"
    ),
]


def public_names(room: str) -> set[str]:
    """Returns the names that a room exports: `from a import b as b`, and what it defines."""
    module = importlib.import_module(room)
    if hasattr(module, "__all__"):
        return set(module.__all__)
    body = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8")).body
    flat = [x for n in body for x in ([*n.body, *n.orelse] if isinstance(n, ast.If) else [n])]
    names = {name for node in flat for name in exported(node) if not name.startswith("_")}
    return {n for n in names if not isinstance(value(f"{room}.{n}"), types.ModuleType)}


def exported(node: ast.AST) -> set[str]:
    """Returns the names that a statement of a room exports."""
    match node:
        case ast.ImportFrom():
            return {alias.name for alias in node.names if alias.asname == alias.name}
        case ast.FunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.AnnAssign():
            return {ast.unparse(node.target)}
        case ast.Assign():
            return {ast.unparse(target) for target in node.targets}
        case _:
            return set()


def documented() -> list[str]:
    """Returns the full names of all entries of the reference."""
    found = []
    for path in sorted(REFERENCE.glob("*.rst")):
        text = path.read_text(encoding="utf-8")
        room = re.search(r"currentmodule:: (\S+)", text)
        if room:
            for table in re.findall(
                r"autosummary::\n   :toctree: generated\n\n((?:   \w+\n)+)", text
            ):
                found += [f"{room[1]}.{name}" for name in table.split()]
            for names in re.findall(r"(?:aliases|autoclass):: (.*)", text):
                found += [f"{room[1]}.{name}" for name in names.split()]
    return found


def value(name: str) -> object:
    """Returns what a full name stands for; the name itself if its library is not installed."""
    room, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(room), last)
    except ModuleNotFoundError:
        return name


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_public_is_missing(room: str) -> None:
    names = documented()
    things = [value(name) for name in names]
    missing = {
        name
        for name in public_names(room)
        if f"{room}.{name}" not in names and not any(value(f"{room}.{name}") is t for t in things)
    }
    assert not missing, f"expected in docs/reference all of {room}, got none of {sorted(missing)}"


def test_every_room_has_a_page() -> None:
    modules = {
        name for name, thing in vars(widelimit).items() if isinstance(thing, types.ModuleType)
    }
    source = (ROOT / "src" / "widelimit" / "__init__.py").read_text(encoding="utf-8")
    public = {name for name in modules if f"import {name} as {name}" in source}
    pages = {path.stem for path in REFERENCE.glob("*.rst")}
    assert public - {"gram"} <= pages, f"expected a page in docs/reference for {public - pages}"


def test_every_entry_is_public_and_written_once() -> None:
    names = documented()
    assert len(names) == len({*names}) > 150
    private = [n for n in names if n.rpartition(".")[2] not in public_names(n.rpartition(".")[0])]
    assert not private, f"expected public names in docs/reference, got {private}"
