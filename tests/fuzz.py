"""Search for bytes that make gradcore do what its documentation does not promise, with atheris (pip install atheris).

`python tests/fuzz.py checkpoint`, `text` or `arguments`: what each does with bytes is in `fuzz_targets.py`. A search
begins with `tests/corpus/<target>`, lasts `--seconds` and leaves what it finds in `--work`. A defect ends it, with a
file `defect-*` that `--replay FILE` runs again. `--merge` adds to the corpus as few and small files of `--work` as
reach the same lines.
"""

from __future__ import annotations

import argparse
import atexit
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"
MOST_BYTES = 32_768  # of an input
MOST_MEMORY = 1 << 30  # of address space beside what is taken at the start: what asks for more gets a MemoryError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("checkpoint", "text", "arguments"))
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--work", type=Path, help="a folder; by default a new one")
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--replay", type=Path)
    given, inner = parser.parse_known_args()  # a merge runs this script again, with flags of its own

    import atheris

    with atheris.instrument_imports(include=["gradcore", "csv", "json"]):
        import fuzz_targets

    target, mutator = fuzz_targets.TARGETS[given.target], fuzz_targets.MUTATORS[given.target]
    if given.replay:
        target(given.replay.read_bytes())
        return

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        return mutator(bytes(data), most, random.Random(seed), atheris.Mutate)

    flags = inner or _flags(given, fuzz_targets.seeds(given.target))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_MEMORY, resource.RLIM_INFINITY))
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # the fuzzer's clock, whose handler goes first
    again = f"{sys.executable} {__file__} {given.target}"
    atheris.Setup([again, *flags], lambda data: target(bytes(data)), custom_mutator=mutate)
    atheris.Fuzz()


def _flags(given: argparse.Namespace, seeds: dict[str, bytes]) -> list[str]:
    """What libFuzzer is to do."""
    work = given.work or Path(tempfile.mkdtemp(prefix=f"gradcore-{given.target}-"))
    corpus = CORPUS / given.target
    for folder in (work, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (work / name).write_bytes(data)
    limits = [f"-max_len={MOST_BYTES}", "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={work}/defect-"]
    if given.merge:
        return [*limits, "-merge=1", "-use_counters=0", str(corpus), str(work)]
    return [*limits, f"-max_total_time={given.seconds}", "-print_final_stats=1", str(work), str(corpus)]


if __name__ == "__main__":
    main()
