"""Mutants of the C kernels: how many small errors in them the tests would see.

`python tests/mutate.py [--n 200] [--seed 0] [--out FILE]` changes one operator, number, name or statement of the
kernels at a time, in a copy of the source that is thrown away, builds the best instruction set of this machine and runs
the tests that concern the file until one fails. A mutant that does not compile, or to the very same code, is drawn
again. The status is above 0 if fewer than 90 % are killed. `--only K` repeats candidate K of a seed and prints its
change; FILE gets everything as JSON. Needs gcc or clang, and pytest 9, which can end a test that hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sanitize import copy_source

GOAL = 0.9
AT_LEAST = 5  # mutants of each file and of each operator, where there are so many candidates
SECONDS = 60  # for a test; the slowest takes about ten
MEMORY = 8 << 30  # for a process, because a mutant may ask for any size

# What concerns each file, the most telling first.
TESTS = {
    "recurrent/cells/gru.inc.h": ("recurrent", "spectral", "stack"),
    "recurrent/cells/lstm.inc.h": ("recurrent", "spectral", "stack"),
    "recurrent/cells/rnn.inc.h": ("recurrent", "spectral", "vanishing", "stack"),
    "recurrent/chunk.h": ("recurrent",),
    "recurrent/forward.inc.h": ("recurrent", "spectral", "vanishing", "stack"),
    "recurrent/backward.inc.h": ("recurrent", "spectral", "vanishing", "stack"),
    "recurrent/norm.inc.h": ("stack", "trajectory"),
    "recurrent/zoneout.inc.h": ("stack", "trajectory"),
    "gemm/tile.inc.h": ("linear", "recurrent", "spectral"),
    "gemm/pack.inc.h": ("linear", "recurrent", "spectral"),
    "gemm/gemm.inc.h": ("linear", "recurrent", "spectral"),
    "gemm/gemm_tn.inc.h": ("linear", "recurrent", "spectral"),
    "linear/linear.inc.h": ("linear",),
    "activation/activation.inc.h": ("linear",),
    "activation/prelu.inc.h": ("prelu",),
    "dropout/dropout.inc.h": ("dropout",),
    "math/threefry.h": ("dropout",),
    "attention/attention.inc.h": ("attention",),
    "embedding/embedding.inc.h": ("embedding",),
    "pooling/pooling.inc.h": ("pooling",),
    "normalization/rows.inc.h": ("normalization", "linear"),
    "normalization/columns.inc.h": ("normalization", "linear"),
    "residual/residual.inc.h": ("residual",),
    "jacobian/jacobian.inc.h": ("spectral", "trajectory"),
    "clip/clip.inc.h": ("clip", "adaptive", "optimizers"),
    "optim/optim.inc.h": ("optimizers", "scaler"),
    "math/vmath.inc.h": ("vmath", "linear", "recurrent"),
    "clip/clip.c": ("clip", "adaptive", "scaler"),
    "optim/optim.c": ("optimizers", "scaler"),
    "base/spans.c": ("clip", "adaptive", "optimizers"),
    "base/rows.c": ("recurrent", "embedding"),
    "base/half.h": ("clip", "adaptive"),
    "base/work.h": ("dropout", "linear", "recurrent", "spectral"),
}

# ---- candidates ------------------------------------------------------------------------------------------------------

# Arguments of these may change places.
SYMMETRIC = "".join(
    rf"(?<!{name}\()" for name in (r"v_add\)", r"v_mul\)", r"v_fma\)", "min", r"min\)", "max", r"max\)")
)

# Each operator is a list of patterns and what takes the place of a match. The source is clang-format's: a binary
# operator has a space on both sides, a statement ends its line.
OPERATORS = {
    "< for <=": [(r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > ")],
    "== for !=": [(" == ", " != "), (" != ", " == ")],
    "+ for -": [(r" \+ ", " - "), (" - ", " + ")],
    "* for /": [(r" \* ", " / "), (" / ", " * ")],
    "dropped +=": [(r" [-+*|&]= ", " = ")],
    "&& for ||": [(" && ", " || "), (r" \|\| ", " && ")],
    "dropped !": [(r"!(?=[\w(])", "")],
    "if always": [(r"\bif \(", "if (1 || ")],
    "if never": [(r"\bif \(", "if (0 && ")],
    "other case": [(r"(?<![=!<>]= )(?<=[=(,] )(\w+(?:->\w+)*) \? ", r"!\1 ? ")],
    "0 for 1": [(r"(?<![\w.])0(?![\w.])", "1"), (r"(?<![\w.])1(?![\w.])", "0"), (r"(?<![\w.])2(?![\w.])", "1")],
    "sign": [(r"\bR\((?=\d)", "R(-"), (r"(?<=[(?:=] )-(?=\w)|(?<=\()-(?=\w)", "")],
    "min for max": [(r"(gc_|v_|\bf)min\b", r"\1max"), (r"(gc_|v_|\bf)max\b", r"\1min")],
    "other operation": [
        ("v_add", "v_sub"),
        ("v_sub", "v_add"),
        ("v_mul", "v_add"),
        ("v_fma", "v_fnma"),
        ("v_fnma", "v_fma"),
    ],
    "other function": [("([vd]_)tanh", r"\1sigmoid"), ("([vd]_)sigmoid", r"\1tanh")],
    "other gate": [
        (r"\b2 \* (V|H|p->H)\b", r"3 * \1"),
        (r"\b3 \* (V|H|p->H)\b", r"2 * \1"),
        (r"(?<=gates \+ |  pre \+ )V\b", "2 * V"),
        (r"\b(FACTOR|PRE)\(0\)", r"\1(1)"),
        (r"\b(FACTOR|PRE)\([1-5]\)", r"\1(0)"),
    ],
    "off-by-one tail": [(r", (live|\w+ - [ijs]|p->units(?: - j)?|chunk\.u1 - u)(?=\))", r", \1 - 1")],
    "dropped round-up": [(r" \+ ([\w>-]+) - 1(?=\) / \1)", "")],
    "length of another step": [(r"\b(own_rows\([^()]*|n_alive\(s), t\)", r"\1, 0)")],
    "other size": [
        (r"\bF\b", "H"),
        (r"\bH\b", "F"),
        (r"\bGH\b", "H"),
        (r"\bN\b", "K"),
        (r"\bK\b", "N"),
        (r"\bM\b", "N"),
    ],
    "other stride": [
        (r"\ba_row\b", "b_row"),
        (r"\b[bc]_row\b", "a_row"),
        (r"\bgates_row\b", "h_row"),
        (r"\b(?:h|dg)_row\b", "gates_row"),
    ],
    "swapped arguments": [(rf"(?:(?<=[({{])|(?<=, )){SYMMETRIC}(\w+), (\w+)(?=[,)}}])", r"\2, \1")],
    "dropped statement": [
        (r"(?m)^( +)\*?[\w>.-]+(?:\[.*\])? [-+*|&]?= [^;{}\0]+;(?=[\0 ]*$)", r"\1;"),
        (r"(?m)^( +)(?!return|if|for|while)\w+(?:\(\w+\))?\([^;{}\0]+;(?=[\0 ]*$)", r"\1;"),
    ],
}

# What changes no result, by design: what is fetched early, kept in a cache, or walked to and fro; how a panel is cut;
# what is worth a team of threads, and whether it shares sequences or units; barriers, which ThreadSanitizer watches.
SPEED = re.compile(
    r"PREFETCH|FETCH|ADDRESS|STREAM|stream|ahead|\b(?:next|then|back|way|line|last|same)\b|gc_wait\(|restrict|"
    r"_BYTES|SERIAL_|_WORK\b|useful|by_units =|all_help =|whole_chunk =|apart =|part =|\(int\)\(i % 2\)|64, 0, 0|"
    r"gc_stop_after\(|gc_stopped\(|LOOK_"
)
# Nor does the stride or the size of what is NULL, nor from which end a packed matrix is walked through.
NO_MATTER = re.compile(r"(?<=NULL, )0|(?<=->packed, )0|(?<=->w_ih, )0")
CHOICES = re.compile(r"(?ms)^INLINE [^\n;{]*\b(?:\w+_threads|FN\(columns_at_once\)|FN\(next_panel\))\(.*?^}$")


def blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", "\0", match[0])


def code_of(text: str) -> str:
    """The source with everything blanked that is not to be changed, every character in its place."""
    text = re.sub(r'(?s)/\*.*?\*/|"(?:\\.|[^"\\])*"', blank, text)
    text = re.sub(r"(?m)^ *#(?:.*\\\n)*.*$", blank, text)
    text = re.sub(r"(?s)\benum \{.*?\}", blank, text)
    text = NO_MATTER.sub(blank, CHOICES.sub(blank, text))
    return re.sub(r"(?m)^.*$", lambda line: blank(line) if SPEED.search(line[0]) else line[0], text)


@dataclass
class Mutant:
    number: int
    file: str
    operator: str
    start: int
    end: int
    new: str
    line: int = 0
    before: str = ""
    after: str = ""
    result: str = ""
    seconds: float = 0


def candidates(sources: dict[str, str], seed: int) -> list[Mutant]:
    """All of them, in the order of the seed."""
    found = []
    for file, text in sources.items():
        code = code_of(text)
        for operator, rules in OPERATORS.items():
            for pattern, template in rules:
                rule, at = re.compile(pattern), 0
                while match := rule.search(code, at):
                    found.append(Mutant(0, file, operator, match.start(), match.end(), match.expand(template)))
                    at = match.start() + 1
    random.Random(seed).shuffle(found)
    for number, mutant in enumerate(found):
        mutant.number = number
    return found


def draw(left: list[Mutant], done: list[Mutant]) -> Mutant | None:
    """The next candidate: of an operator or a file that has too few, else whichever comes."""
    operators, files = Counter(m.operator for m in done), Counter(m.file for m in done)
    for group in (
        (m for m in left if operators[m.operator] < AT_LEAST),
        (m for m in left if files[m.file] < AT_LEAST),
        iter(left),
    ):
        if mutant := next(group, None):
            left.remove(mutant)
            return mutant
    return None


# ---- building and testing --------------------------------------------------------------------------------------------


class Copy:
    """The source built once by setup.py; then one object is compiled and the module linked, by setup.py's own words."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copy_source(folder)
        self.environment = {"GRADCORE_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(folder)}
        self.environment |= {"HYPOTHESIS_PROFILE": "ci", "PYTHONDONTWRITEBYTECODE": "1"}
        build = self.run([sys.executable, "setup.py", "build_ext", "--inplace"])
        isa = self.run([sys.executable, "-c", "import gradcore; print(gradcore.info()['isa'])"]).strip()
        self.environment["GRADCORE_ISA"] = isa
        # The last -O counts. With -O1 the kernels are built in a quarter of the time, and the tests take no longer.
        commands = [[*shlex.split(line), "-O1", "-g0", "-w"] for line in build.splitlines() if " -o " in line]
        self.link = next(words for words in commands if "-shared" in words)
        module = next(folder.glob("gradcore/_kernels*.so"))
        self.link[self.link.index("-o") + 1] = str(module.relative_to(folder))
        self.compile = {
            file: next(
                words
                for words in commands
                if f"src/{file}" in words
                or ("src/per_isa.c" in words and f"-DGC_ISA={isa}" in words and file[-1] == "h")
            )
            for file in TESTS
        }
        self.sources = {file: (folder / "src" / file).read_text() for file in TESTS}
        for compile_once in dict.fromkeys(map(tuple, self.compile.values())):
            self.run(list(compile_once))
        self.built = {file: self.object_of(file).read_bytes() for file in TESTS}
        self.run(self.link)

    def object_of(self, file: str) -> Path:
        words = self.compile[file]
        return self.folder / words[words.index("-o") + 1]

    def run(self, words: list[str]) -> str:
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join(words)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def test(self, subject: str) -> str:
        """The test that failed, or "" if all passed."""
        words = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-m", "kernels and not peers"]
        words += ["-p", "no:cacheprovider", "-o", f"faulthandler_timeout={SECONDS}"]
        words += [
            "-o",
            "faulthandler_exit_on_timeout=true",
            str(next((self.folder / "tests").rglob(f"test_{subject}.py"))),
        ]
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=20 * SECONDS)
        except subprocess.TimeoutExpired:
            return f"timeout of test_{subject}.py"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what a crash or a timeout has left of its children
        if process.returncode == 0:
            return ""
        if failed := re.search(r"^(?:FAILED|ERROR) tests/(\S+)", said, re.MULTILINE):
            return failed[1]
        inside = re.findall(r"/(test_\w+\.py)\W+line \d+ in (\w+)", said)
        how = "timeout" if "Timeout (" in said else "crash"
        return f"{how} in {'::'.join(inside[0]) if inside else f'test_{subject}.py'}"

    def changed(self, mutant: Mutant) -> str:
        text = self.sources[mutant.file]
        return text[: mutant.start] + mutant.new + text[mutant.end :]

    def build(self, mutant: Mutant) -> bool:
        """Compile and link a mutant; whether it compiles, and to another code."""
        text, changed = self.sources[mutant.file], self.changed(mutant)
        mutant.line = text.count("\n", 0, mutant.start) + 1
        pairs = [(a, b) for a, b in zip(text.split("\n"), changed.split("\n"), strict=False) if a != b]
        mutant.before, mutant.after = (line.strip() for line in pairs[0])
        (self.folder / "src" / mutant.file).write_text(changed)
        words = self.compile[mutant.file]
        compiled = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, check=False)
        if compiled.returncode or self.object_of(mutant.file).read_bytes() == self.built[mutant.file]:
            return False
        return not subprocess.run(self.link, cwd=self.folder, capture_output=True, check=False).returncode

    def restore(self, file: str) -> None:
        (self.folder / "src" / file).write_text(self.sources[file])
        self.object_of(file).write_bytes(self.built[file])

    def judge(self, mutant: Mutant) -> bool:
        """Whether it is a mutant at all; if so, `result` says what has killed it."""
        began = time.monotonic()
        try:
            if not self.build(mutant):
                return False
            mutant.result = next(filter(None, map(self.test, TESTS[mutant.file])), "SURVIVED")
            return True
        finally:
            mutant.seconds = round(time.monotonic() - began, 1)
            self.restore(mutant.file)


# ---- reports ---------------------------------------------------------------------------------------------------------


def survived(mutants: list[Mutant]) -> list[Mutant]:
    return [mutant for mutant in mutants if mutant.result == "SURVIVED"]


def show(mutant: Mutant) -> None:
    print(f"{mutant.number}  {mutant.file}:{mutant.line}  {mutant.operator}  {mutant.seconds:.0f} s  {mutant.result}")
    print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)


def summary(mutants: list[Mutant]) -> None:
    for what in ("operator", "file"):
        print()
        for name in dict.fromkeys(sorted(getattr(mutant, what) for mutant in mutants)):
            of_it = [mutant for mutant in mutants if getattr(mutant, what) == name]
            print(f"{name:24} {len(of_it) - len(survived(of_it)):4} of {len(of_it):4} killed")
    killed = len(mutants) - len(survived(mutants))
    print(f"\n{killed} of {len(mutants)} killed, {killed / max(len(mutants), 1):.1%}")


def drawn(copy: Copy, n: int, seed: int) -> Iterator[Mutant]:
    left, done = candidates(copy.sources, seed), list[Mutant]()
    print(f"{len(left)} candidates", flush=True)
    while len(done) < n and (mutant := draw(left, done)):
        if copy.judge(mutant):
            done.append(mutant)
            yield mutant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="K")
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as name:
        copy = Copy(Path(name))
        if arguments.only is not None:
            mutant = candidates(copy.sources, arguments.seed)[arguments.only]
            before, after = (text.splitlines(True) for text in (copy.sources[mutant.file], copy.changed(mutant)))
            sys.stdout.writelines(difflib.unified_diff(before, after, mutant.file, mutant.file))
            if not copy.judge(mutant):
                mutant.result = "does not compile, or to the same code"
            show(mutant)
            return int(mutant.result == "SURVIVED")
        for subject in dict.fromkeys(subject for subjects in TESTS.values() for subject in subjects):
            if failed := copy.test(subject):
                raise SystemExit(f"without any change {failed} fails")
        mutants = []
        for mutant in drawn(copy, arguments.n, arguments.seed):
            mutants.append(mutant)
            show(mutant)
            if arguments.out:
                arguments.out.write_text(json.dumps([asdict(mutant) for mutant in mutants], indent=1) + "\n")
        summary(mutants)
        return len(survived(mutants)) > (1 - GOAL) * len(mutants)


if __name__ == "__main__":
    sys.exit(main())
