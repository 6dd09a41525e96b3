"""How the package is built: what may import what, what is public, what importing it costs."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import operator
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from processes import python

import fastconv
from fastconv import nn

PACKAGE = Path(fastconv.__file__).parent

#: The floors of the house, the ground floor first: imports point down. A folder is one room.
FLOORS = [
    {"arguments", "datasets", "version"},
    {"cache", "precision", "shapes"},
    {"jit"},
    {"kernels", "reference", "threads"},
    {"algorithms"},
    {"plan"},
    {"functional"},
    {"warmup"},
    {"nn", "onnx", "autograd", "cs231n", "keras"},
    {"dask", "bench", "figures"},  # dask also trains networks
    {"mnist", "sklearn"},
    {"__init__", "__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}

#: What lies on these floors is the core: it needs NumPy and Numba (and llvmlite, which is Numba's), alone.
CORE = set().union(*FLOORS[: FLOORS.index({"warmup"}) + 1]) - {"datasets"} | {"__init__"}
RUNTIME = {"numpy", "numba", "llvmlite", "fastconv"}


class Import(NamedTuple):
    file: Path
    line: int
    module: str  # with dots
    at_import_time: bool  # not inside a function


def files() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 20
    return found


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file; for `from fastconv import x` the module x, if there is one, else fastconv."""
    tree = ast.parse(file.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    typing_only = {
        id(n)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for n in ast.walk(branch)
    }
    for node in ast.walk(tree):
        now = id(node) not in inside | typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, now)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                path = PACKAGE.parent / name.replace(".", "/")
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                yield Import(file, node.lineno, name if is_module else str(node.module), now)


every_file = pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))


@every_file
def test_imports_point_down(file: Path) -> None:
    here = room(file)
    assert here in FLOOR, f"{here} has no place among the floors above"
    for item in imports(file):
        top, *rest = item.module.split(".")
        if top != "fastconv":
            continue
        there = rest[0] if rest else "__init__"
        where = f"{file}:{item.line} imports {item.module}"
        if there == here:
            assert here != "__init__", where
        elif here == "__init__" and file.name == "__init__.py" and there in FLOOR:
            assert FLOOR[there] <= FLOOR["warmup"], where
        else:
            assert FLOOR[there] < FLOOR[here], where


def test_datasets_stand_alone() -> None:
    """They know nothing of the rest, nor does any floor below the demo know of them."""
    file = PACKAGE / "datasets.py"
    if file.exists():
        assert not [item for item in imports(file) if item.module.startswith("fastconv")]
    for file in files():
        if room(file) not in ("datasets", "mnist"):
            assert not [item for item in imports(file) if item.module.startswith("fastconv.datasets")]


@every_file
def test_the_core_needs_numpy_and_numba_alone(file: Path) -> None:
    """Elsewhere, what users may not have is imported by the function that needs it, not with the module."""
    adapters = {"onnx", "autograd", "dask", "sklearn"}  # each made for one other library
    for item in imports(file):
        top = item.module.split(".")[0]
        if top in RUNTIME or top in sys.stdlib_module_names:
            continue
        assert room(file) not in CORE, f"{file}:{item.line} imports {item.module}"
        if item.at_import_time:
            assert room(file) in adapters, f"{file}:{item.line} imports {item.module} with the module"


@every_file
def test_only_jit_sets_compiler_options(file: Path) -> None:
    """njit, cfunc and their like occur nowhere else, by whatever name."""
    compilers = {
        "njit",
        "jit",
        "cfunc",
        "vectorize",
        "guvectorize",
        "generated_jit",
        "jit_module",
        "jitclass",
    }
    tree = ast.parse(file.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "numba":
            found.add(node.attr)
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "numba":
            found.update(alias.name for alias in node.names)
    if file.name == "jit.py":
        assert found & compilers
    else:
        assert not found & compilers, f"{file} uses {found & compilers}"


@every_file
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


# --- what is public -----------------------------------------------------------------------------


def functions() -> list[str]:
    """What the modules of `fastconv.functional` offer."""
    names = []
    for file in sorted((PACKAGE / "functional").glob("*.py")):
        module = importlib.import_module(f"fastconv.functional.{file.stem}")
        names += getattr(module, "__all__", [])
    return sorted(names)


def test_all_names_each_thing_once() -> None:
    names = fastconv.__all__
    assert len(names) == len(set(names))
    assert len(functions()) == len(set(functions()))
    for name in names:
        assert getattr(fastconv, name) is not None
    others = {"ALGORITHMS", "POOL_ALGORITHMS", "Plan", "__version__"}
    others |= {"get_num_threads", "set_num_threads", "num_threads", "warmup", "show_config"}
    others |= {"get_float32_precision", "set_float32_precision"}
    assert set(names) - others == set(functions())


#: What `fastconv.functional` offers beside functions.
CLASSES = ("ConvGrads", "PackedIntegers", "PackedWeight")


@pytest.mark.parametrize("name", sorted(fastconv.__all__))
def test_public_names_are_explained(name: str) -> None:
    thing = getattr(fastconv, name)
    if inspect.isfunction(thing) or inspect.isclass(thing):
        assert len((inspect.getdoc(thing) or "").split()) >= 5


@pytest.mark.parametrize(
    "name",
    [n for n in functions() if "1d" not in n and "3d" not in n and n not in CLASSES],
)
def test_functions_are_explained_in_full(name: str) -> None:
    """Those of other ranks point to these."""
    text = inspect.getdoc(getattr(fastconv, name)) or ""
    for section in ("Parameters\n---", "Returns\n---", "Raises\n---", "Examples\n---", ">>> "):
        assert section in text, f"{name} has no {section.split()[0]}"


@pytest.mark.parametrize("name", [n for n in functions() if "1d" in n or "3d" in n])
def test_other_ranks_point_to_two_dimensions(name: str) -> None:
    two = name.replace("1d", "2d").replace("3d", "2d")
    assert f"`{two}`" in (inspect.getdoc(getattr(fastconv, name)) or "")


#: What no user makes, but a function whose parameters are documented.
MADE = (fastconv.PackedWeight, fastconv.PackedIntegers)


@pytest.mark.parametrize("name", sorted({*fastconv.__all__, *(f"nn.{n}" for n in nn.__all__)}))
def test_public_names_have_an_example_and_all_parameters(name: str) -> None:
    """Of functions and classes; what is the same for several is told once, and pointed to."""
    thing: Any = operator.attrgetter(name)(fastconv)
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        return
    text = inspect.getdoc(thing) or ""
    if re.search("1d|3d", name):
        assert f"`{re.sub('[13]d', '2d', name.removeprefix('nn.'))}`" in text
        return
    assert ">>> " in text
    parameters = list(inspect.signature(thing).parameters.values())
    if dataclasses.is_dataclass(thing) or not parameters or thing in MADE:
        return
    told = re.search(r"^(Parameters|Attributes)\n-+\n(.*?)(\n\n\w+\n--|\Z)", text, re.M | re.S)
    assert told, f"{name} has no parameters"
    names = set(re.findall(r"\w+", " ".join(line for line in told[2].splitlines() if line[:1] != " ")))
    assert {parameter.name for parameter in parameters} - names <= {"args", "kwargs"}


def test_options_are_keywords() -> None:
    """Everything that torch lacks is given by name."""
    mine = {"layout", "algorithm", "out", "padding_mode", "activation", "needs"}
    for name in functions():
        function: Any = getattr(fastconv, name)
        if not inspect.isfunction(function):
            continue
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in mine:
                assert parameter.kind is parameter.KEYWORD_ONLY, f"{name}: {parameter.name}"


# --- importing ----------------------------------------------------------------------------------


def test_import_is_quiet_and_light() -> None:
    """No warning; nothing but NumPy and Numba; nothing compiled; the nets wait until they are asked for."""
    loaded = python(
        """
        import sys
        import numba, numpy, llvmlite
        before = set(sys.modules)
        import fastconv
        print(*sorted(set(sys.modules) - before))
        """,
        "-W",
        "error",
    ).split()
    assert "fastconv.functional" in loaded
    unwanted = {
        "tqdm",
        "rich",
        "safetensors",
        "matplotlib",
        "scipy",
        "mlxtend",
        "pooch",
        "torch",
        "onnx",
        "dask",
        "autograd",
        "sklearn",
        "keras",
    }
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & unwanted
    assert tops <= RUNTIME | set(sys.stdlib_module_names)
    assert not [
        name for name in loaded if name.startswith(("fastconv.nn", "fastconv.mnist", "fastconv.datasets"))
    ]
