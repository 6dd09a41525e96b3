"""``python -m fastconv info``, ``python -m fastconv warmup`` and ``python -m fastconv onnx``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from fastconv.warmup import show_config, warmup


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastconv", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, CPU, threads and the cache folder in use")
    warm = commands.add_parser("warmup", help="compile the kernels ahead of the first call")
    warm.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32"],
        choices=["float32", "float64"],
        help="element types to compile for (default: float32)",
    )
    run = commands.add_parser("onnx", help="run an ONNX model, and time its nodes")
    given = sys.argv[1:] if arguments is None else arguments
    if list(given[:1]) == ["onnx"]:
        command = import_module("fastconv.onnx.command")
        command.configure(run)
        return int(command.run(parser.parse_args(arguments), run.prog))
    chosen = parser.parse_args(arguments)
    if chosen.command == "warmup":
        warmup(dtypes=chosen.dtypes)
    show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
