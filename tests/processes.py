"""Running Python code in a process of its own, that sees the same fastconv as this one."""

from __future__ import annotations

import os
import signal
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


def python(code: str, *options: str, home: Path = HOME, seconds: float = 120, **variables: str) -> str:
    """What the code prints; it must end well, and in time."""
    process = subprocess.Popen(
        [sys.executable, *options, "-c", dedent(code)],
        env=environment(home, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its forked children, too, which may be what hangs
        out, errors = process.communicate()
        raise AssertionError(f"not done after {seconds} s\n{out}\n{errors}") from None
    assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{errors}"
    return out
