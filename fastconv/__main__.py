"""The command line: ``fastconv``, or ``python -m fastconv``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

from fastconv.version import __version__
from fastconv.warmup import show_config, warmup


class Command(Protocol):
    """What a command's module, or class, has."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add its options, and a description."""

    def run(self, arguments: argparse.Namespace, prog: str) -> int:
        """Do it; the result is the exit code, `prog` what errors begin with."""


class Info:
    """``fastconv info``."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.description = "Print versions, CPU, threads and the cache folder in use."

    def run(self, arguments: argparse.Namespace, prog: str) -> int:
        show_config()
        return 0


class Warmup:
    """``fastconv warmup``."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.description = (
            "Compile the kernels now, so that no later process has to: machine code is kept on disk."
        )
        parser.add_argument(
            "--dtypes",
            nargs="+",
            default=["float32"],
            choices=["float32", "float64"],
            help="element types to compile for (default: float32)",
        )

    def run(self, arguments: argparse.Namespace, prog: str) -> int:
        warmup(dtypes=arguments.dtypes)
        show_config()
        return 0


def _module(name: str) -> Callable[[], Command]:
    """A module that is imported when its command is called for."""
    return lambda: import_module(name)


class Entry(NamedTuple):
    """A command: one line of help, what it is, and the packages that it cannot do without."""

    help: str
    load: Callable[[], Command]
    needs: tuple[str, ...] = ()
    #: the extra that brings them
    extra: str = ""


COMMANDS = {
    "info": Entry("versions, CPU, threads and the cache folder in use", Info),
    "warmup": Entry("compile the kernels ahead of the first call", Warmup),
    "bench": Entry("time a few layers against what else is installed", _module("fastconv.bench")),
    "mnist": Entry("train a network on handwritten digits", _module("fastconv.mnist")),
    "onnx": Entry("run ONNX models by fastconv", _module("fastconv.onnx.command"), ("onnx",), "onnx"),
}


def _offered() -> dict[str, Entry]:
    """Without the command for ONNX models where this version of the package does not have it."""
    return {name: entry for name, entry in COMMANDS.items() if name != "onnx" or find_spec("fastconv.onnx")}


def _program() -> str:
    """What the user typed: the script, or Python with the module."""
    return "python -m fastconv" if Path(sys.argv[0]).name == "__main__.py" else "fastconv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 for what cannot be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog=_program(),
        description="Convolution and pooling for NumPy arrays, as fast as the CPU allows.",
        epilog=f"""examples:
  {_program()} mnist --plot             what a net learns in a minute, in mnist.png
  {_program()} bench --seconds 1        is it faster on this machine, and than what?
  {_program()} COMMAND --help           more about a command""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    entries = _offered()
    # only what was asked for is imported: an adapter may need packages that are not there
    chosen = next((word for word in given if not word.startswith("-")), None)
    command = None
    for name, entry in entries.items():
        sub = choices.add_parser(name, help=entry.help)
        if name == chosen:
            missing = [package for package in entry.needs if find_spec(package) is None]
            if missing:
                sub.error(f'it needs {", ".join(missing)}: pip install "fastconv[{entry.extra}]"')
            command, prog = entry.load(), sub.prog
            command.configure(sub)
    parsed = parser.parse_args(given)
    assert command is not None, "argparse refuses all others"
    return command.run(parsed, prog)


if __name__ == "__main__":
    sys.exit(main())
