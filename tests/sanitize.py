"""The kernels' tests under a sanitizer, in a copy of the source that is built for it and thrown away.

`python tests/sanitize.py address` (gcc's AddressSanitizer and UndefinedBehaviorSanitizer), `thread` (gcc's
ThreadSanitizer, with LLVM's OpenMP and its Archer, which says what OpenMP synchronizes; Debian's clang and libomp-dev
have them), `bounds` (Cython's checks of indices and of None, and the C library's own). What follows goes to pytest:
`thread tests/robustness/test_interrupt.py` watches kernels that are stopped half way. The first report ends the run
with a status above 0. `valgrind` (its memcheck, which also sees what is read before it is set) runs tests/cases.py
instead, where the tests would take a day; every report is printed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("src", "gradcore", "tests", "bench", "docs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
TESTS = ("-q", "-x", "-m", "kernels and not (peers or slow)", "-p", "no:cacheprovider")
OPTIMIZED = "-O1 -g -fno-omit-frame-pointer"
NO_MEMORY = "allocator_may_return_null=1:max_allocation_size_mb=65536"  # some tests ask for more than there is


def copy_source(folder: Path) -> None:
    for part in PARTS:
        if (ROOT / part).is_dir():
            left = shutil.ignore_patterns("*.so", "_kernels.c", "__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=left)
        else:
            shutil.copy(ROOT / part, folder)


def ask(compiler: str, question: str) -> Path:
    return Path(subprocess.run([compiler, question], capture_output=True, text=True, check=True).stdout.strip())


def library(compiler: str, name: str) -> str:
    """Where a compiler has one of its libraries."""
    path = ask(compiler, f"-print-file-name={name}")
    if not path.is_absolute():
        raise SystemExit(f"{compiler} has no {name} here")
    return str(path)


def address(folder: Path) -> dict[str, str]:
    return {
        "CC": "gcc -fsanitize=address,undefined -fno-sanitize-recover=all",
        "CFLAGS": OPTIMIZED,
        "LD_PRELOAD": f"{library('gcc', 'libasan.so')} {library('gcc', 'libubsan.so')}",
        "ASAN_OPTIONS": f"detect_leaks=0:{NO_MEMORY}",  # Python itself leaves memory to the end of the process
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def thread(folder: Path) -> dict[str, str]:
    llvm = ask("clang", "-print-resource-dir").parents[1]
    return {
        "CC": "gcc -fsanitize=thread",
        "CFLAGS": OPTIMIZED,
        "LD_PRELOAD": f"{library('gcc', 'libtsan.so')} {llvm / 'libomp.so'}",  # which takes libgomp's place
        "OMP_TOOL_LIBRARIES": str(llvm / "libarcher.so"),
        "TSAN_OPTIONS": f"ignore_noninstrumented_modules=1:halt_on_error=1:{NO_MEMORY}",
        "GRADCORE_NUM_THREADS": "3",
    }


def bounds(folder: Path) -> dict[str, str]:
    module = folder / "src" / "_kernels.pyx"
    text = module.read_text()
    checked = re.sub(
        "boundscheck=False, wraparound=False", "boundscheck=True, wraparound=True, nonecheck=True", text, count=1
    )
    if checked == text:
        raise SystemExit("src/_kernels.pyx: expected boundscheck=False, wraparound=False in its first line")
    module.write_text(checked)
    return {"CFLAGS": "-O1 -g -D_GLIBC_ASSERTIONS -D_FORTIFY_SOURCE=2"}


def valgrind(folder: Path) -> dict[str, str]:
    return {"CFLAGS": "-g", "PYTHONMALLOC": "malloc"}


KINDS: dict[str, Callable[[Path], dict[str, str]]] = {
    "address": address,
    "thread": thread,
    "bounds": bounds,
    "valgrind": valgrind,
}


def watched_by_valgrind(folder: Path, environment: dict[str, str]) -> int:
    """Run the cases; reports count where a kernel is on the stack, and where what it returned is written."""
    seen = folder / "reports.xml"
    run = ["valgrind", "--error-limit=no", "--track-origins=yes", "--xml=yes", f"--xml-file={seen}"]
    status = subprocess.run(
        [*run, sys.executable, "tests/cases.py"], cwd=folder, env=environment, check=False
    ).returncode
    errors = [
        error
        for error in ElementTree.parse(seen).iter("error")
        if not error.findtext("kind", "").startswith("Leak_")  # Python itself leaves memory to the end of the process
    ]
    ours = [
        error
        for error in errors
        if error.findtext("kind") == "SyscallParam"
        or any("_kernels" in frame.findtext("obj", "") for frame in error.iter("frame"))
    ]
    for error in ours:
        print(error.findtext("kind"), error.findtext("what") or error.findtext("xwhat/text"))
        for frame in error.iter("frame"):
            place = f"{frame.findtext('file', '?')}:{frame.findtext('line', '?')}"
            print(f"    {frame.findtext('fn', '?')} ({place} in {Path(frame.findtext('obj', '?')).name})")
    print(f"{len(ours)} reports about the kernels, {len(errors) - len(ours)} others")
    return status or bool(ours)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    arguments, tests = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_source(folder)
        found = KINDS[arguments.kind](folder)
        building = {**os.environ, **{name: found.pop(name) for name in ("CC", "CFLAGS") if name in found}}
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        if subprocess.run(build, cwd=folder, env=building, check=False).returncode:
            raise SystemExit("the build failed")
        testing = {**os.environ, "PYTHONPATH": name, **found}
        print("openmp:", flush=True, end=" ")
        say = "import gradcore; print(gradcore.info()['openmp'], gradcore.__file__)"
        subprocess.run([sys.executable, "-c", say], cwd=folder, env=testing, check=False)
        if arguments.kind == "valgrind":
            return watched_by_valgrind(folder, testing)
        run = [sys.executable, "-m", "pytest", *TESTS, *(tests or ["tests"])]
        return subprocess.run(run, cwd=folder, env=testing, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
