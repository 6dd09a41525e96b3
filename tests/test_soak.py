"""A short soak, in a process of its own; `python tests/soak.py --seconds 3600` is a long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment

from fastconv import jit

SOAK = Path(__file__).parent / "soak.py"


@pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: a round takes minutes")
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for memory and threads")
def test_nothing_grows_or_changes() -> None:
    command = [sys.executable, str(SOAK), "--seconds", "15"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rounds in" in done.stdout
