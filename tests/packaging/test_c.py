"""The kernels as C alone: here, by other compilers, for aarch64 in an emulator, and under gcc's sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sanitize import library

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "tests" / "kernels_test.c", *(ROOT / "src").glob("*.c")]
SANITIZED = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = ["-std=c11", "-O2", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
BUILDS = {  # compiler, its options, what runs the program
    "here": (["cc"], []),
    "one element at a time, strict C11": (
        ["cc", "-DGC_SCALAR", "-pedantic", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"],
        [],
    ),
    "clang": (["clang"], []),
    "aarch64": (["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64"]),
    "Windows": (["x86_64-w64-mingw32-gcc", "-static", "-D__USE_MINGW_ANSI_STDIO=1"], ["wine"]),
    "sanitized": (["gcc", *SANITIZED], []),
    "sanitized, with the vectors of this processor": (["gcc", *SANITIZED, "-march=native"], []),
}


@pytest.mark.c
@pytest.mark.skipif(sys.platform == "win32", reason="the options are those of gcc and clang")
@pytest.mark.parametrize("build", BUILDS)
def test_kernels_in_c(build: str, tmp_path: Path) -> None:
    (compiler, *options), runner = BUILDS[build]
    for tool in (compiler, *runner):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    try:
        for name in ("libasan.so", "libubsan.so") if build.startswith("sanitized") else ():
            library(compiler, name)
    except SystemExit as missing:
        pytest.skip(str(missing))
    program = tmp_path / "kernels_test.exe"  # as Windows would have it
    sources = [source for source in SOURCES if source.name != "_kernels.c"]  # what Cython wrote needs Python
    words = [compiler, *FLAGS, *options, "-DGC_ISA=baseline", f"-I{ROOT / 'src'}", *sources, "-lm", "-pthread"]
    done = subprocess.run([*words, "-o", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own = {**os.environ, "WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all"}
    done = subprocess.run([*runner, program], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("baseline")
