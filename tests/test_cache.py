"""Machine code kept on disk: found again, never stale, and missed without harm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import pytest
from processes import HOME, environment, python

from fastconv import cache, jit
from fastconv.cache import CheckedFiles

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: nothing is compiled")

#: Prints a result, and how often machine code was found on disk, and how often it was not. Of 16 windows
#: of 2x2 on 3x3 ones with padding 1: 4 see 1 cell, 8 see 2 and 4 see 4, of which zeros are the rest.
CONVOLVE = """
import numpy as np
import fastconv
from fastconv import threads
from fastconv.kernels import lowering

y = fastconv.conv2d(np.ones((1, 1, 3, 3), "f4"), np.ones((1, 1, 2, 2), "f4"), padding=1, algorithm="im2col")
task = lowering.im2col.task(np.dtype("f4"))._compiled
stats = threads._run_serially.stats
print(y.sum(), task.cache_hits, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
RIGHT = "36.0"


def contents(folder: Path) -> dict[Path, int]:
    """Every file, and when it was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_next_process_finds_the_code(tmp_path: Path) -> None:
    """Eight processes that start together compile, and write without harm to each other; not the ninth."""
    together = [
        subprocess.Popen(
            [sys.executable, "-c", CONVOLVE],
            env=environment(FASTCONV_CACHE_DIR=str(tmp_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in together:
        out, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, "")
        assert out.split()[0] == RIGHT
    written = contents(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"kernels-{jit.source_stamp()}"
    assert {".nbi", ".nbc"} <= {path.suffix for path in written}
    assert python(CONVOLVE, FASTCONV_CACHE_DIR=str(tmp_path)).split() == [RIGHT, "1", "1", "0"]
    assert contents(tmp_path) == written


def test_an_edit_is_seen(tmp_path: Path) -> None:
    """In a copy of the package: padding reads as 1, then as 0 again; in the end the first code is found."""
    home, cache = tmp_path / "home", tmp_path / "cache"
    shutil.copytree(HOME / "fastconv", home / "fastconv", ignore=shutil.ignore_patterns("__pycache__"))
    source = home / "fastconv" / "kernels" / "lowering.py"
    original, modified = source.read_text(), os.stat(source)
    # in a function that is compiled into the kernel, which itself stays as it is
    edited = original.replace("columns[column + i] = padding", "columns[column + i] = padding + 1.0")
    assert edited != original

    def run() -> list[str]:
        return python(CONVOLVE, home=home, FASTCONV_CACHE_DIR=str(cache)).split()

    assert run() == [RIGHT, "0", "0", "1"]
    source.write_text(edited)
    assert run()[:2] == [str(4.0 * 16), "0"]
    assert len(list(cache.iterdir())) == 2
    source.write_text(original)
    os.utime(source, ns=(modified.st_atime_ns, modified.st_mtime_ns))
    assert run()[:2] == [RIGHT, "1"]


def test_every_compiled_source_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba looks at the file of a kernel alone; the stamp looks at all that it may call."""
    package = tmp_path / "fastconv"
    shutil.copytree(HOME / "fastconv", package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(jit, "__file__", str(package / "jit.py"))
    original = jit.source_stamp()
    monkeypatch.setattr(numba, "__version__", "0.0.1")
    stamps = [original, jit.source_stamp()]
    sources = [package / f"{name}.py" for name in ("cache", "jit", "reference", "threads")]
    sources += sorted((package / "kernels").glob("*.py"))
    assert len(sources) > 5
    for source in sources:
        source.write_text(source.read_text() + "# edited\n")
        stamps.append(jit.source_stamp())
    (package / "kernels" / "new.py").write_text("")
    stamps.append(jit.source_stamp())
    assert len(set(stamps)) == len(stamps)
    # whoever compiles something elsewhere must be among them
    for file in package.rglob("*.py"):
        decorators = ("@compiled", "@inlined", "@kernel(", "@intrinsic")
        if any(line.lstrip().startswith(decorators) for line in file.read_text().splitlines()):
            assert file in sources, f"{file} is compiled, but the stamp does not see it"


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "one bit": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "something else": lambda data: b"\x80\x04K\x01." * 1000,  # a pickle of 1
}


def test_damaged_files(tmp_path: Path) -> None:
    """Compiled again and written again, without a word: never a wrong result, and no crash."""
    python(CONVOLVE, FASTCONV_CACHE_DIR=str(tmp_path))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 4
    whole = {path: path.read_bytes() for path in files}
    for number, damage in enumerate(DAMAGE.values()):
        for path in files:
            path.write_bytes(
                damage(whole[path]) if path.suffix != (".nbi", ".nbc")[number % 2] else whole[path]
            )
            path.chmod(0o400)  # a file may be read-only, for what is new replaces it
        assert python(
            "import warnings; warnings.simplefilter('error')" + CONVOLVE, FASTCONV_CACHE_DIR=str(tmp_path)
        ).split() == [RIGHT, "0", "0", "1"]
    assert python(CONVOLVE, FASTCONV_CACHE_DIR=str(tmp_path)).split() == [RIGHT, "1", "1", "0"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed(damage: str, tmp_path: Path) -> None:
    """Each file by itself, whatever was damaged."""
    files = CheckedFiles(str(tmp_path), "code", "stamp")
    for broken in ("code.nbi", "code.1.nbc"):
        files.save("key", {"machine": b"code" * 100})
        assert files.load("key") == {"machine": b"code" * 100}
        path = tmp_path / broken
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
        assert files.load("key") is None
    files.save("key", "new")
    assert files.load("key") == "new"
    assert CheckedFiles(str(tmp_path), "code", "another stamp").load("key") is None


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Or a folder that was taken away: one warning, and right results."""
    out = python(
        f"""
        import shutil, warnings
        import fastconv
        from fastconv import jit
        from fastconv.cache import CheckedFiles

        def full(self, path):
            raise OSError(28, "No space left on device")

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            CheckedFiles._open_for_write = full
            {CONVOLVE.strip().replace(chr(10), chr(10) + " " * 12)}
            shutil.rmtree(jit.CACHE_FOLDER)
            jit.CACHE_FOLDER.write_text("no folder")
            fastconv.max_pool2d(np.ones((1, 1, 4, 4)), 2)
        print(*[f"{{w.category.__name__}}: {{w.message}}" for w in caught], sep="\\n")
        """,
        FASTCONV_CACHE_DIR=str(tmp_path),
    ).splitlines()
    assert out[0].split()[0] == RIGHT
    assert len(out) == 2
    assert out[1].startswith("RuntimeWarning: fastconv: compiled code cannot be kept in ")
    assert "No space left on device" in out[1]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners as POSIX has them")
def test_the_folder_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's files are pickles: who can write them can have code run."""
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "cache"))
    folder = jit._open_cache()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert jit._open_cache() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_warned", False)
        facts = os.stat_result((0o40700, 1, 1, 1, real + 2, 0, 0, 0, 0, 0))
        patch.setattr(Path, "stat", lambda self, **options: facts)
        with pytest.warns(RuntimeWarning, match="belongs to another user, whose code would run"):
            assert jit._open_cache() is None
        jit._open_cache()  # a second time without a warning, which would be an error here


def test_no_folder_is_writable(tmp_path: Path) -> None:
    """A folder below a file can be made by nobody, root included: one warning, and right results."""
    (tmp_path / "file").write_text("")
    out = python(
        f"""
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            {CONVOLVE.strip().replace(chr(10), chr(10) + " " * 12)}
        print(*[f"{{w.category.__name__}}: {{w.message}}" for w in caught], sep="\\n")
        """,
        FASTCONV_CACHE_DIR=str(tmp_path / "file" / "below"),
    ).splitlines()
    assert out[0].split()[0] == RIGHT
    assert len(out) == 2
    assert out[1].startswith("RuntimeWarning: fastconv: no cache folder is writable (")
    assert "Set FASTCONV_CACHE_DIR to a writable folder" in out[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_old_folders_are_removed(tmp_path: Path) -> None:
    """Those of other versions, unused for a month; nothing else."""
    names = ["kernels-old", "kernels-kept", "kernels-recent", "something-else"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.nbc").write_text("")
    long_ago = time.time() - 31 * 86400
    for name in ("kernels-old", "kernels-kept", "something-else"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    jit._remove_old(tmp_path, keep=tmp_path / "kernels-kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    jit._remove_old(tmp_path / "missing", keep=tmp_path)  # no error


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FASTCONV_CACHE_DIR, else below Numba's, else the user's cache folder; never the package itself."""
    monkeypatch.delenv("FASTCONV_CACHE_DIR", raising=False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert jit._cache_root() == tmp_path / "xdg" / "fastconv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jit._cache_root() == tmp_path / ".cache" / "fastconv"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    assert jit._cache_root() == tmp_path / "numba" / "fastconv"
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "mine"))
    assert jit._cache_root() == tmp_path / "mine"


def test_the_users_own_cache_stays_where_it_is(tmp_path: Path) -> None:
    """Numba has one setting for all; it is put back."""
    out = python(
        """
        import numba
        before = numba.config.CACHE_DIR
        import fastconv
        print(before == numba.config.CACHE_DIR)
        """
    )
    assert out.strip() == "True"
