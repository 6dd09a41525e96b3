"""Running Python code in a process of its own, that sees the same fastconv as this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import fastconv

#: The folder that the tested package lies in.
HOME = Path(fastconv.__file__).parents[1]


def environment(home: Path = HOME, **changes: str) -> dict[str, str]:
    """The variables of this process, with fastconv taken from `home`."""
    return {**os.environ, "PYTHONPATH": str(home), "PYTHONSAFEPATH": "1", **changes}


def python(code: str, *options: str, home: Path = HOME, **variables: str) -> str:
    """What the code prints; it must end well, and within minutes."""
    done = subprocess.run(
        [sys.executable, *options, "-c", dedent(code)],
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
