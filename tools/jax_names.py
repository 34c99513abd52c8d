"""The names of JAX that the package uses, and whether a release of JAX still has them.

    python tools/jax_names.py                 the names, one a line
    python tools/jax_names.py WHEEL.whl       what that wheel lacks; exit status 1 if anything

The wheel is read, not imported, so that it may be one for another Python:
`pip download --no-deps --python-version 3.12 --only-binary=:all: jax`.
"""

import ast
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
# Looked up by `hasattr`, since releases have the one or the other.
EITHER = {"jax.lax.pcast", "jax.lax.pvary"}
# What a wheel does not say: these are made as the module runs, or are attributes of values.
DYNAMIC = ("jax.config.", "jax.numpy.finfo", "jax.numpy.iinfo")


def used_names(trees: Iterable[ast.Module]) -> set[str]:
    """Returns the dotted names of JAX in modules, as far as imports tell."""
    found: set[str] = set()
    for tree in trees:
        aliases = dict(_imports(tree))
        found |= {name for name in aliases.values() if name.startswith("jax.")}
        for node in ast.walk(tree):
            parts: list[str] = []
            while isinstance(node, ast.Attribute):
                parts.append(node.attr)
                node = node.value
            if parts and isinstance(node, ast.Name) and node.id in aliases:
                found.add(".".join([aliases[node.id], *reversed(parts)]))
    return {name for name in found if name.startswith("jax.")}


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                yield alias.asname or first, alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


class Wheel:
    """The public names of a wheel, read off its sources."""

    def __init__(self, path: Path) -> None:
        self._files = zipfile.ZipFile(path)
        self._names = set(self._files.namelist())

    def lacks(self, name: str) -> bool:
        """Returns whether neither a module nor a name of a module is called so."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            file = self._module("/".join(parts[:length]))
            if file is not None:
                rest = parts[length:]
                return bool(rest) and not self._defines(file, rest[0])
        return True

    def _module(self, path: str) -> str | None:
        found = [f for f in (f"{path}/__init__.py", f"{path}.py") if f in self._names]
        return found[0] if found else None

    def _defines(self, file: str, name: str) -> bool:
        tree = ast.parse(self._files.read(file).decode())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                if any(name in (a.asname, a.name.split(".")[0]) for a in node.names):
                    return True
            elif (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name) or (
                isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
            ):
                return True
            elif isinstance(node, ast.Constant) and node.value == name:
                return True  # names that `__getattr__` serves stand in tables of text
        return False


def main(arguments: list[str]) -> int:
    trees = (ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py")))
    names = sorted(name for name in used_names(trees) if not name.startswith(DYNAMIC))
    if not arguments:
        print("\n".join(names))
        return 0
    wheel = Wheel(Path(arguments[0]))
    missing = [name for name in names if wheel.lacks(name)]
    if set(missing) >= EITHER:
        print(f"missing: one of {', '.join(sorted(EITHER))}")
        return 1
    missing = [name for name in missing if name not in EITHER]
    print("\n".join(f"missing: {name}" for name in missing) or f"all {len(names)} names are there")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
