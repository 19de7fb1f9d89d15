"""The kernels as C alone: here, by other compilers, for aarch64 in an emulator, and under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
SOURCES = [path for path in (ROOT / "src").rglob("*.c") if path.name != "_kernels.c"]  # which needs Python
FLAGS = ["-std=c11", "-O2", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SANITIZED = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@dataclass
class Build:
    compiler: str
    options: list[str]
    runner: str = ""
    rounds: int = 100  # of random shapes


BUILDS = {
    "here": Build("cc", []),
    "threads": Build("gcc", ["-fopenmp"]),
    "one element at a time, strict C11": Build(
        "cc", ["-DGC_SCALAR", "-pedantic", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
    ),
    "clang": Build("clang", []),
    "aarch64": Build("aarch64-linux-gnu-gcc", ["-static"], "qemu-aarch64", 30),
    "Windows": Build("x86_64-w64-mingw32-gcc", ["-static", "-D__USE_MINGW_ANSI_STDIO=1"], "wine", 30),
    "sanitized": Build("gcc", [*SANITIZED, "-fopenmp"]),
    "sanitized, with the vectors of this processor": Build("gcc", [*SANITIZED, "-fopenmp", "-march=native"]),
    "memory": Build("clang", ["-O1", "-g1", "-fsanitize=memory", "-fno-sanitize-recover=all"]),
}


def run(words: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all"}
    return subprocess.run(words, cwd=folder, env=own, capture_output=True, text=True, check=False)


def skip_unless_it_works(build: Build, folder: Path) -> None:
    """Tries the compiler, its libraries and the emulator with a program that does nothing."""
    for tool in filter(None, (build.compiler, build.runner)):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    (folder / "nothing.c").write_text("int main(void) { return 0; }\n")
    done = run([build.compiler, *build.options, "nothing.c", "-o", "nothing.exe"], folder)
    if done.returncode == 0:
        done = run([*filter(None, [build.runner]), folder / "nothing.exe"], folder)
    if done.returncode:
        pytest.skip(f"no {build.compiler} {' '.join(build.options)} here: {done.stderr.strip()[-200:]}")


@pytest.mark.c
@pytest.mark.skipif(sys.platform == "win32", reason="the options are those of gcc and clang")
@pytest.mark.parametrize("name", BUILDS)
def test_kernels_in_c(name: str, tmp_path: Path) -> None:
    build = BUILDS[name]
    skip_unless_it_works(build, tmp_path)
    compiler: list[str | Path] = [build.compiler, *FLAGS, *build.options]
    done = run([*compiler, "-DGC_ISA=baseline", f"-I{ROOT / 'src'}", "-c", *SOURCES], tmp_path)
    assert done.returncode == 0, done.stderr
    objects = [tmp_path / f"{source.stem}.o" for source in SOURCES]
    for program, arguments in (("kernels_test", []), ("kernels_fuzz", [str(build.rounds)])):
        own = [f"-I{ROOT / 'src'}", TESTS / f"{program}.c", *objects, "-lm", "-pthread", "-o", f"{program}.exe"]
        done = run([*compiler, *own], tmp_path)
        assert done.returncode == 0, done.stderr
        done = run([*filter(None, [build.runner]), tmp_path / f"{program}.exe", *arguments], tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("baseline")
