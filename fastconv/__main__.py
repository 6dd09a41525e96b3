"""``python -m fastconv info`` and ``python -m fastconv warmup``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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
    chosen = parser.parse_args(arguments)
    if chosen.command == "warmup":
        warmup(dtypes=chosen.dtypes)
    show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
