"""The rules of docs/design.md that a program can check."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "widelimit"
SOURCE = ROOT / "src" / PACKAGE

# A module is named by its first component below the package: "layers" stands for all of layers/.
FOUNDATION = {
    "_cache",
    "_pytree",
    "_samples",
    "_text",
    "activations",
    "covariance",
    "kernel",
    "tracing",
    "typing",
}
# Each may import the foundation and what stands before it.
TOWER = ["layers", "engines", "network", "stax", "models"]
# These see networks only as callables: they may import the foundation and each other.
PROTOCOL = {"diagnostics", "finite", "gram", "plot", "predict"}
PACKAGE_ITSELF = "__init__"
# These hold names alone, of all others.
NAMES = {PACKAGE_ITSELF, "extend"}

# These stand above all others, for optional libraries: they may import everything.
SUMMIT = {"estimators", "scale"}
# `wl.gram` hands over what is to go to a store.
LATE = {("gram.assemble", "scale.store")}

KNOWN = FOUNDATION | set(TOWER) | PROTOCOL | NAMES | SUMMIT

NOT_ON_IMPORT = [
    "dask",
    "diffrax",
    "distributed",
    "equinox",
    "gpjax",
    "gpytorch",
    "matplotlib",
    "numba",
    "optax",
    "pandas",
    "sklearn",
    "tensorflow",
    "torch",
    "tqdm",
    "zarr",
]


# Modules without a test file of their own: the tests of their room reach them through others. A new
# module has one; this list may only shrink.
WITHOUT_OWN_TESTS = {
    "activations": "base kinked polynomial smooth",
    "covariance": "branches covariances linear_maps pair_matrices signal verbs",
    "engines": "choose cost plan reference request",
    "engines/fused": """
        activate callbacks compiled_formulas compiling constants ends flat flat_machine
        instructions kernels loops machine places polynomial_loops pools rectified_loops
        series_loops spatial_kernels stages stencils
    """,
    "engines/fused/activations": """
        base erf exp_normalized exponentials gabor gaussian gelu normalisation polynomials
        rectified relu series sign sin
    """,
    "engines/fused/adjoints": "cotangents flat_machine image_machine pools sums windows",
    "estimators": """
        evidence family gradient_descent infinite_network kernel_matrices leave_one_out
        network_search resolvents weighted
    """,
    "": "extend stax",
    "finite/empirical": """
        block_plan compiled dependence implementations jacobian_rows loops sampled_output
        slot_factors within_memory
    """,
    "finite/empirical/structured": "analysis derivatives links pairs patches",
    "gram": "callables fields kernels liveness progress tiler",
    "kernel": "conversion",
    "layers": """
        base dimension_numbers elementwise functions options piecewise positions shapes step
        transposed_convolution windows
    """,
    "predict": "dynamics equation moments",
    "scale": "events maker optional plan rate task",
    "tracing": "derivative_rules",
}


class Arrow(NamedTuple):
    """One import, late ones included: dotted names relative to the package."""

    importer: str
    function: str | None
    imported: str


def module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def read_modules(source: Path) -> dict[str, ast.Module]:
    return {
        module_name(path, source): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted(source.rglob("*.py"))
    }


def walk_imports(
    node: ast.AST, function: str | None = None
) -> Iterator[tuple[str | None, ast.Import | ast.ImportFrom]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield function, child
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk_imports(child, child.name)
        else:
            yield from walk_imports(child, function)


def imported_names(node: ast.Import | ast.ImportFrom, package: list[str]) -> list[str]:
    """Absolute dotted names: of `from a import b`, both `a.b` and, if b is no module, `a`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package[: len(package) - node.level + 1] if node.level else []
    base = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def arrows(modules: dict[str, ast.Module], source: Path) -> list[Arrow]:
    found = []
    for importer, tree in modules.items():
        is_package = importer == PACKAGE_ITSELF or (source / importer.replace(".", "/")).is_dir()
        package = [PACKAGE, *([] if importer == PACKAGE_ITSELF else importer.split("."))]
        if not is_package:
            package.pop()
        for function, node in walk_imports(tree):
            for name in imported_names(node, package):
                target = resolve(name, modules)
                if target is not None:
                    found.append(Arrow(importer, function, target))
    return found


def resolve(name: str, modules: dict[str, ast.Module]) -> str | None:
    """The module of the package that holds an absolute name, None outside the package."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    for length in range(len(rest), 0, -1):
        if ".".join(rest[:length]) in modules:
            return ".".join(rest[:length])
    return rest[0] if rest and rest[0] in KNOWN else PACKAGE_ITSELF


def allowed(importer: str, imported: str) -> bool:
    a, b = importer.split(".")[0], imported.split(".")[0]
    if a == b or a in NAMES:
        return True
    if a in SUMMIT or (importer, imported) in LATE:
        return b not in NAMES
    if a in FOUNDATION or b in FOUNDATION:
        return b in FOUNDATION
    if a in PROTOCOL or b in PROTOCOL:
        return a in PROTOCOL and b in PROTOCOL
    return a in TOWER and b in TOWER and TOWER.index(b) < TOWER.index(a)


def wrong_arrows(found: list[Arrow]) -> list[Arrow]:
    return [arrow for arrow in found if not allowed(arrow.importer, arrow.imported)]


def find_cycle(found: list[Arrow]) -> list[str]:
    """The modules of one cycle of imports, an empty list if there is none."""
    graph: dict[str, set[str]] = {}
    for arrow in found:
        if arrow.importer != arrow.imported:
            graph.setdefault(arrow.importer, set()).add(arrow.imported)
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for follower in sorted(graph.get(node, ())):
            cycle = visit(follower, [*path, node])
            if cycle:
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


def test_every_module_has_its_place():
    unknown = {name.split(".")[0] for name in read_modules(SOURCE)} - KNOWN
    assert not unknown, f"expected a place in tests/test_architecture.py for {sorted(unknown)}"


def test_modules_have_a_test_file_at_the_mirrored_path():
    missing = {
        (path.parent.relative_to(SOURCE).as_posix().removeprefix("."), path.stem)
        for path in SOURCE.rglob("*.py")
        if path.stem != "__init__"
        and not (
            ROOT / "tests" / path.parent.relative_to(SOURCE) / f"test_{path.stem.lstrip('_')}.py"
        ).exists()
    }
    known = {(room, name) for room, names in WITHOUT_OWN_TESTS.items() for name in names.split()}
    assert missing == known, (
        f"expected a test file for {missing - known}, or {known - missing} gone"
    )


def test_imports_point_one_way():
    wrong = wrong_arrows(arrows(read_modules(SOURCE), SOURCE))
    assert not wrong, "expected imports to follow docs/design.md, got\n" + "\n".join(
        f"  {importer} imports {imported}" + (f", inside {function}" if function else "")
        for importer, function, imported in wrong
    )


def test_imports_have_no_cycle():
    cycle = find_cycle(arrows(read_modules(SOURCE), SOURCE))
    assert not cycle, " imports ".join(cycle)


@pytest.mark.parametrize(
    ("path", "text", "is_wrong"),
    [
        ("layers/base.py", "from widelimit.network import KernelFn", True),
        ("layers/base.py", "def kernel_fn(self):\n  from widelimit.network import KernelFn", True),
        ("layers/affine.py", "def kernel_fn(self):\n  import widelimit.network", True),
        ("layers/affine.py", "from .base import Layer", False),
        ("layers/affine.py", "from ..plan_table import plan", True),
        ("layers/affine.py", "if TYPE_CHECKING:\n  from widelimit import plan", True),
        ("layers/affine.py", "from widelimit.covariance import Covariances", False),
        ("layers/affine.py", "import widelimit", True),
        ("predict/gp.py", "from widelimit import stax", True),
        ("predict/gp.py", "def f():\n  from widelimit.layers.base import Layer", True),
        ("covariance.py", "from widelimit.predict import gp", True),
        ("engines.py", "from widelimit.layers.base import Layer", False),
        ("__init__.py", "from widelimit.predict import gp as gp", False),
    ],
)
def test_the_walk_finds_wrong_imports(tmp_path, path, text, is_wrong):
    for name in ["__init__", "covariance", "engines"]:
        (tmp_path / f"{name}.py").touch()
    for name in ["layers/__init__", "layers/base", "layers/affine", "predict/__init__"]:
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "predict" / "gp.py").touch()
    (tmp_path / path).write_text(text)
    found = arrows(read_modules(tmp_path), tmp_path)
    assert found, "the import was not seen"
    assert bool(wrong_arrows(found)) == is_wrong


def test_the_walk_finds_cycles():
    chain = [Arrow("offsets", None, "covariance"), Arrow("covariance", None, "nt_kernel")]
    assert find_cycle(chain) == []
    cycle = find_cycle([*chain, Arrow("nt_kernel", "late", "offsets")])
    assert set(cycle) == {"offsets", "covariance", "nt_kernel"}


def private_uses(tree: ast.AST) -> list[str]:
    """Dotted names of JAX used in a module that are no public API."""
    aliases, used = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                used.add(alias.name)
                bound = alias.asname or alias.name.split(".")[0]
                aliases[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                used.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in aliases:
            used.add(".".join([aliases[node.id], *reversed(parts)]))
    return sorted(name for name in used if is_private(name))


def is_private(name: str) -> bool:
    first, *rest = name.split(".")
    if first == "jaxlib":
        return True
    if first != "jax" or not rest:
        return False
    return rest[0] in ("core", "interpreters") or any(
        part.startswith("_") and not part.startswith("__") for part in rest
    )


# Public names of neural-tangents: a nonlinearity of stax, and a distribution of predict. And kernel
# matrices as arrays, and in a store.
TWO_THINGS = {"Gaussian", "gram"}


def names_of_two_things(modules: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Classes, however private, and public functions that are defined in several modules."""
    found: dict[str, list[str]] = {}
    for module, tree in modules.items():
        for node in tree.body:
            is_class = isinstance(node, ast.ClassDef)
            is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if is_class or is_public:
                found.setdefault(node.name.lstrip("_"), []).append(module)
    return {name: where for name, where in found.items() if len({*where}) > 1}


def test_one_thing_per_name():
    found = names_of_two_things(read_modules(SOURCE))
    assert found.keys() == TWO_THINGS, f"expected one thing per name, got {found}"


@pytest.mark.parametrize(
    ("texts", "is_wrong"),
    [
        (["class A: pass", "class A: pass"], True),
        (["class A: pass", "class _A: pass"], True),
        (["def f(): pass", "def f(): pass"], True),
        (["def f(): pass", "def _f(): pass"], False),
        (["def _f(): pass", "def _f(): pass"], False),
        (["class A:\n  def f(self): pass", "def f(): pass"], False),
        (["from b import f", "def f(): pass"], False),
        (["if x:\n  def f(): pass\nelse:\n  def f(): pass", "f = 1"], False),
    ],
)
def test_names_of_two_things_are_found(texts, is_wrong):
    modules = {str(i): ast.parse(text) for i, text in enumerate(texts)}
    assert bool(names_of_two_things(modules)) == is_wrong


def test_only_public_jax():
    uses = {name: private_uses(tree) for name, tree in read_modules(SOURCE).items()}
    uses = {name: names for name, names in uses.items() if names}
    assert not uses, f"expected public JAX only, got {uses}"
    pattern = re.compile(r"\bjax\.(_\w+|core|interpreters)\b")
    for path in SOURCE.rglob("*.py"):
        hit = pattern.search(path.read_text(encoding="utf-8"))
        assert hit is None, f"expected no word of {hit and hit[0]} in {path.relative_to(ROOT)}"


def test_equations_of_jax_are_read_in_one_place():
    pattern = re.compile(r"\.(eqns|invars|outvars|constvars|primitive)\b|\bmake_jaxpr\b")
    for path in SOURCE.rglob("*.py"):
        hit = pattern.search(path.read_text(encoding="utf-8"))
        is_reader = path.parent == SOURCE / "tracing"
        assert is_reader or hit is None, f"expected no {hit and hit[0]} in {path.relative_to(ROOT)}"


def test_jax_extend_in_one_file_at_most():
    users = [
        path.relative_to(ROOT)
        for path in SOURCE.rglob("*.py")
        if re.search(r"\bjax\.extend\b|from jax import .*\bextend\b", path.read_text("utf-8"))
    ]
    assert len(users) <= 1, f"expected one file with jax.extend, got {users}"


@pytest.mark.parametrize(
    ("text", "is_wrong"),
    [
        ("import jax._src.core", True),
        ("from jax._src import core", True),
        ("from jax import core", True),
        ("from jax.interpreters import ad", True),
        ("import jaxlib", True),
        ("import jax\njax.core.Tracer", True),
        ("import jax.numpy as jnp\njnp._private(1)", True),
        ("import jax.numpy as jnp\njnp.core", False),
        ("import jax\njax.__version__\njax.lax.scan", False),
        ("from core import x", False),
    ],
)
def test_private_uses_are_found(text, is_wrong):
    assert bool(private_uses(ast.parse(text))) == is_wrong


def test_import_is_light_and_starts_nothing():
    # With a platform that does not exist, anything that starts a backend raises.
    code = f"import sys, {PACKAGE}; print(*sorted(sys.modules.keys() & set({NOT_ON_IMPORT!r})))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "no_such_platform"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def project_files() -> list[Path]:
    """What belongs to the project: tracked files and those git would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_machine():
    folders = "|".join(["tmp", "work", "root", "home"])
    hosts = [r"pypi\." + "org", "python" + "hosted", "registry\\.npm" + "js", "deb\\.deb" + "ian"]
    pattern = re.compile("|".join([rf"(?<![\w.])/({folders})/", *hosts]))
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    assert not found, "expected no path or host of one machine, got\n" + "\n".join(found)


def test_contributing_is_short():
    path = ROOT / "CONTRIBUTING.md"
    if not path.exists():
        pytest.skip("not a source checkout")
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count <= 50, f"expected at most 50 lines, got {count}"
