"""The pages that are made from the package: the reference, by group, and one for each adapter.

Every name of ``fastconv.__all__`` and ``fastconv.nn.__all__`` is in exactly one group, those that no rule
knows in the last one, and a build fails that explains not all of them. Adapters are read, not imported: what
they are made for need not be installed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / ".docs")]

from docstrings import PLACES, markdown  # noqa: E402

import fastconv  # noqa: E402
from fastconv import nn  # noqa: E402

Rule = Callable[[str], bool]

ADAPTERS = ("autograd", "cs231n", "dask", "keras", "onnx", "sklearn")


def starts(*beginnings: str) -> Rule:
    return lambda name: name.startswith(beginnings)


def kind(*kinds: type) -> Rule:
    """Names in `fastconv.nn` of classes of these kinds."""
    return lambda name: isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), kinds)


#: The first rule that knows a name has it.
FUNCTIONS: dict[str, Rule] = {
    "Transposed convolution": starts("conv_transpose"),
    "Convolution": starts("conv", "ConvGrads"),
    "Adaptive pooling": starts("adaptive"),
    "Max pooling": starts("max_pool", "max_unpool"),
    "Average pooling": starts("avg_pool"),
    "Lp pooling": starts("lp_pool"),
    "im2col and col2im": starts("im2col", "col2im"),
    "Weights packed for inference": starts("prepack", "PackedWeight"),
    "Plans": starts("explain", "Plan", "ALGORITHMS", "POOL_ALGORITHMS"),
    "Settings": starts("set_", "get_", "num_threads", "warmup", "show_config", "__version__"),
    "More": lambda name: True,
}
NETWORKS: dict[str, Rule] = {
    "Losses": kind(nn.Loss),
    "Optimisers": kind(nn.Optimizer),
    "Schedules": kind(nn.Schedule),
    "Convolutions": starts("Conv"),
    "Pooling": lambda name: "Pool" in name,
    "Containers": lambda name: name in ("Layer", "Sequential"),
    "Layers": kind(nn.Layer),
    "Training": lambda name: True,
}


def grouped(names: Iterable[str], rules: dict[str, Rule]) -> dict[str, list[str]]:
    """Names by the title of their group; groups in the order of the rules, but convolution goes first."""
    groups: dict[str, list[str]] = {title: [] for title in rules}
    for name in names:
        groups[next(title for title, rule in rules.items() if rule(name))].append(name)
    return {title: found for title, found in groups.items() if found}


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def registry(name: str) -> str:
    """A registry of algorithms as a table of names and what they are."""
    rows = [
        f"| `{key}` | {getattr(algorithm, 'summary', type(algorithm).__doc__ or '').partition(chr(10))[0]} |"
        for key, algorithm in getattr(fastconv, name).items()
    ]
    head = [f"## `{name}` {{ #fastconv.{name} }}\n", "What `algorithm=` takes, and what it means.\n"]
    return "\n".join([*head, "| name | way |", "|---|---|", *rows, ""])


def reference(title: str, module: str, names: Iterable[str]) -> str:
    """A page: what each name is, from its docstring."""
    parts = [f"# {title}\n"]
    for name in names:
        if name in ("ALGORITHMS", "POOL_ALGORITHMS"):
            parts.append(registry(name))
        elif name == "__version__":
            anchor = f'<a id="fastconv.{name}"></a>'
            parts.append(f"{anchor}\n\n## `{name}`\n\nA str, `{fastconv.__version__}` here.\n")
        else:
            parts.append(entry(module, name))
    return "\n".join(parts)


def entry(module: str, name: str) -> str:
    """What has a name, from its docstring; with an anchor by the short name, if that is not its place."""
    where, short = PLACES[name], f"{module}.{name}"
    anchor = "" if where == short else f'<a id="{short}"></a>\n\n'
    return f"{anchor}::: {where}\n"


def public_names(file: Path) -> list[str]:
    """`__all__` of a module, or of those that it takes everything from, without running any."""
    body = ast.parse(file.read_text()).body
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    parts = [n for n in body if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    files = [ROOT / f"{str(part.module).replace('.', '/')}.py" for part in parts]
    return sorted(name for found in files for name in public_names(found))


@cache
def sources() -> griffe.Object:
    """The package as the reader of its sources sees it."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    package = loader.load("fastconv")
    loader.expand_wildcards(package)
    return package


def is_written(path: str) -> bool:
    """Whether something is a function or a class in the sources, and not made when they run."""
    try:
        return sources()[path.removeprefix("fastconv.")].final_target.kind.value in ("function", "class")
    except (KeyError, AttributeError, griffe.GriffeError):
        return False


def adapter_file(name: str) -> Path | None:
    """The module itself, or the first file of a package."""
    package = ROOT / "fastconv"
    found = [file for file in (package / f"{name}.py", package / name / "__init__.py") if file.exists()]
    return found[0] if found else None


def adapter(name: str, file: Path) -> str:
    """A page: what the module says of itself, and each of its public names.

    A function that is made of one of fastconv's, with the same name, refers to that.
    """
    module = f"fastconv.{name}"
    about = markdown(ast.get_docstring(ast.parse(file.read_text())) or "")
    names = public_names(file)
    written = [n for n in names if is_written(f"{module}.{n}")]
    parts = [f"# {module}\n", about, ""]
    made = [n for n in names if n not in written]
    if made:
        parts += ["| name | as |", "|---|---|"]
        for n in made:
            parts.append(
                f"| `{n}` | " + (f"[`fastconv.{n}`][{PLACES[n]}] |" if n in fastconv.__all__ else "|")
            )
        parts.append("")
    return "\n".join([*parts, *(f"::: {module}.{n}\n" for n in written)])


def pages() -> dict[str, dict[str, tuple[str, str]]]:
    """By section and title: the address of a page, and its text."""
    sections: dict[str, dict[str, tuple[str, str]]] = {"Functions": {}, "Networks": {}, "Adapters": {}}
    for section, module, names, rules in (
        ("Functions", "fastconv", fastconv.__all__, FUNCTIONS),
        ("Networks", "fastconv.nn", nn.__all__, NETWORKS),
    ):
        for title, found in grouped(names, rules).items():
            address = f"{section.lower()}/{slug(title)}.md"
            sections[section][title] = (address, reference(title, module, found))
    for name in ADAPTERS:
        file = adapter_file(name)
        if file is not None:
            sections["Adapters"][f"fastconv.{name}"] = (f"adapters/{name}.md", adapter(name, file))
    return {section: found for section, found in sections.items() if found}


def on_config(config: Any) -> Any:
    """Put the pages into the navigation."""
    for section, found in pages().items():
        config.nav.append({section: [{title: address} for title, (address, _) in found.items()]})
    return config


def home() -> str:
    """The README, whose images lie elsewhere from here."""
    return (ROOT / "README.md").read_text().replace("(.docs/pages/", "(")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    files.append(File.generated(config, "index.md", content=home()))
    for found in pages().values():
        for address, text in found.values():
            files.append(File.generated(config, address, content=text))
    return files


def missing(site: Path) -> list[str]:
    """Public names that no page of the built site has a heading for."""
    text = "".join(page.read_text() for page in site.rglob("*.html"))
    names = [f"fastconv.{n}" for n in fastconv.__all__] + [f"fastconv.nn.{n}" for n in nn.__all__]
    return [name for name in names if f'id="{name}"' not in text]


def on_post_build(config: Any) -> None:
    """Fail where a public name is not explained."""
    absent = missing(Path(config.site_dir))
    if absent:
        raise SystemExit(f"not in the documentation: {', '.join(absent)}")
