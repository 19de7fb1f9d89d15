"""Threads: how many by default, forks, Python threads and interpreters, a system that refuses, limits of others."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import RECIPES, Recipe, flattened, invoke, new_folder
from tools import HANG, same_bits

import gradcore
from gradcore._base import threads as _threads

VERSION_2, VERSION_1 = "0::{}\n", "3:memory:/elsewhere\n2:cpu,cpuacct:{}\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("own", "path", "files", "quota"),
    [
        (VERSION_2, "/", {"cpu.max": "150000 100000\n"}, 1.5),
        (VERSION_2, "/", {"cpu.max": "max 100000\n"}, math.inf),
        (VERSION_2, "/a.slice/b.service", {"a.slice/b.service/cpu.max": "200000 100000"}, 2),
        (VERSION_2, "/a/b", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        (VERSION_2, "/a", {"a/cpu.max": "nonsense", "cpu.max": "0 0"}, math.inf),
        (VERSION_2, "/../b", {"cpu.max": "300000 100000"}, 3),
        (VERSION_2, "/not/mounted/here", {"cpu.max": "300000 100000"}, 3),
        (VERSION_1, "/docker/7", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        (VERSION_1, "/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "25000"}, 2),
        (VERSION_1, "/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("", "", {"cpu.max": "400000 100000"}, 4),
        ("no colons\n", "", {}, math.inf),
        (None, "", {"cpu.max": "400000 100000"}, 4),
    ],
)
def test_the_quota_is_that_of_the_tightest_group_around_the_process(
    own: str | None, path: str, files: dict[str, str], quota: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, member = tmp_path / "cgroup", tmp_path / "self"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    if own is not None:
        member.write_text(own.format(path))
    monkeypatch.setattr(_threads, "CGROUPS", groups)
    monkeypatch.setattr(_threads, "OWN_CGROUPS", member)
    assert _threads._cgroup_quota() == quota


# What the scripts below share: they run in processes of their own, because what they do to it lasts.
SCRIPT = (
    f"\nHANG = {HANG}\n"
    + """
import hashlib, os, sys, threading, time
import numpy as np
import gradcore

layer = gradcore.LSTM(20, 96, rng=np.random.default_rng(0))
x = np.random.default_rng(1).standard_normal((20, 32, 20)).astype(np.float32)

def result():
    own = gradcore.LSTM(20, 96, rng=np.random.default_rng(0))
    y, tape = own.forward(x)
    dx = own.backward(tape, y)
    return hashlib.sha256(y.tobytes() + dx.tobytes() + own.flat_grads.tobytes()).hexdigest()

def n_tasks():
    return len(os.listdir("/proc/self/task"))

def settled(n):  # threads that were told to end take a moment
    end = time.monotonic() + HANG
    while n_tasks() != n and time.monotonic() < end:
        time.sleep(0.01)
    return n_tasks() == n
"""
)
NEEDS_OPENMP = pytest.mark.skipif(not gradcore.info()["openmp"], reason="built without OpenMP")
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")


def run(script: str, *arguments: object, timeout: float = HANG, **environment: str) -> list[str]:
    """The script, in a process of its own, must end well; its own assertions are the test's. The lines it prints."""
    surroundings = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
        env=surroundings | environment,
    )
    if "skip: " in done.stdout:
        pytest.skip(done.stdout.split("skip: ")[1].strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


WAYS = {
    "os.fork": """
import signal
for _ in range(n):
    child = os.fork()
    if child == 0:
        signal.alarm(HANG)
        os._exit(0 if result() == before else 7)
    assert os.waitpid(child, 0)[1] == 0
""",
    "multiprocessing": """
import multiprocessing
context = multiprocessing.get_context("fork")
def child():
    sys.exit(0 if result() == before else 7)
for _ in range(n):
    process = context.Process(target=child)
    process.start()
    process.join(HANG)
    assert process.exitcode == 0, process.exitcode or process.kill()
""",
    "ProcessPoolExecutor": """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
for _ in range((n + 3) // 4):
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        for future in [pool.submit(result) for _ in range(4)]:
            assert future.result(HANG) == before
""",
    "joblib, multiprocessing": """
import joblib
for _ in range((n + 3) // 4):
    jobs = joblib.Parallel(4, backend="multiprocessing", timeout=HANG)
    assert set(jobs(joblib.delayed(result)() for _ in range(4))) == {before}
""",
    "joblib, loky": """
import joblib
jobs = joblib.Parallel(2, timeout=HANG)
assert set(jobs(joblib.delayed(result)() for _ in range(n))) == {before}
""",
}
IMPORTS = ["", "torch before", "torch after", "scipy before", "scipy after"]


def fork(way: str, imports: str, n: int) -> None:
    other, _, when = imports.partition(" ")
    for name in {other, way.partition(",")[0]} & {"torch", "joblib"}:
        pytest.importorskip(name)
    lines = {  # and the other library has threads of its own by then
        "torch": "import torch; torch.ones(400, 400) @ torch.ones(400, 400)",
        "scipy": "import numpy, scipy.linalg; scipy.linalg.inv(numpy.eye(400))",
        "": "",
    }[other]
    lines = (lines + "\n" + SCRIPT) if when == "before" else (SCRIPT + "\n" + lines)
    ready = f"\ngradcore.set_num_threads(2)\nn = {n}\nbefore = result()\n"
    run(lines + ready + WAYS[way] + "\nassert result() == before\n", timeout=HANG + 60 * n)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_multiply_adds_counts_the_threads_that_come() -> None:
    """A forked child has one, whatever is asked for."""
    run("""
import os
import numpy as np
import gradcore
from gradcore import _kernels

def made(n_threads):
    gradcore.set_num_threads(n_threads)
    return _kernels.multiply_adds(np.dtype(np.float32), 1000)

one = made(1)
assert made(2) == (2 * one if _kernels.has_openmp() else one)
child = os.fork()
if child == 0:
    os._exit(made(2) != one)
assert os.waitpid(child, 0)[1] == 0
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    ("way", "imports"),
    [
        *((way, "") for way in WAYS if way != "joblib, loky"),
        pytest.param("os.fork", "torch before", marks=pytest.mark.peers),
        ("os.fork", "scipy after"),
    ],
)
def test_forked_children_compute_the_same_bits_and_do_not_hang(way: str, imports: str) -> None:
    fork(way, imports, 8)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("imports", IMPORTS)
@pytest.mark.parametrize("way", WAYS)
def test_500_forked_children_compute_the_same_bits_and_do_not_hang(way: str, imports: str) -> None:
    fork(way, imports, 500)


@pytest.mark.kernels
@pytest.mark.parametrize("make", [gradcore.RNN, gradcore.LSTM, gradcore.GRU, gradcore.Linear])
def test_eight_python_threads_share_the_inputs_each_with_its_own_tapes(make: Any, restore_threads: None) -> None:
    gradcore.set_num_threads(3)
    x = np.random.default_rng(1).standard_normal((20, 16, 24), dtype=np.float32)
    shared = make(24, 48, rng=np.random.default_rng(0))

    def passes() -> list[Any]:
        own = make(24, 48, rng=np.random.default_rng(0))
        y, tape = shared.forward(x)
        own_y, own_tape = own.forward(x)
        return [y, shared.backward(tape, y), own_y, own.backward(own_tape, own_y), own.flat_grads]

    want, wrong, barrier = passes(), [], threading.Barrier(8)

    def work() -> None:
        for _ in range(10):
            barrier.wait(HANG)
            if not all(map(same_bits, passes(), want)):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    assert not wrong


def uses_a_file(chosen: Recipe) -> bool:
    with new_folder():
        try:
            call, given = chosen.make(np.random.default_rng(0))
            invoke(call, given, chosen.by_position)
        except ImportError:  # of what reads and writes them
            return True
        return bool(os.listdir())


@pytest.mark.kernels
def test_python_threads_call_everything_at_once() -> None:
    """Each with objects of its own: nothing behind them is shared without care, with Python's lock or without it."""
    slow = ("meanfield.critical", "meanfield.suggest_gain")  # and in Python alone
    chosen = [recipe for recipe in RECIPES if recipe.name not in slow and not uses_a_file(recipe)]

    def results() -> Iterator[bytes]:
        for recipe in chosen:
            call, given = recipe.make(np.random.default_rng(0))
            yield b"".join(np.asarray(a).tobytes() for a in flattened(invoke(call, given, recipe.by_position)))

    want, same = list(results()), []
    threads = [threading.Thread(target=lambda: same.append(list(results()) == want)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 4


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has its lock always")
def test_the_import_leaves_pythons_lock_off() -> None:
    run("import numpy, scipy.linalg, sys; assert not sys._is_gil_enabled()")
    run("import gradcore, sys; assert not sys._is_gil_enabled()")


INTERPRETERS = """
import sys
try:
    import _interpreters as interpreters
    call = interpreters.exec
except ImportError:  # before Python 3.13
    import _xxsubinterpreters as interpreters
    call = interpreters.run_string

for name in sys.argv[1:]:
    __import__(name)
for _ in range(20):
    other = interpreters.create()
    call(other, '''
try:
    import gradcore
except (ImportError, RuntimeError) as error:  # NumPy 2.0 to 2.2 raise the latter
    print("refused", flush=True)
else:
    print("imported", flush=True)
''')
    interpreters.destroy(other)
if sys.argv[1:]:
    import numpy as np, gradcore
    assert gradcore.Linear(2, 3)(np.ones((1, 2), np.float32)).shape == (1, 3)
    print("fine here")
"""


@pytest.mark.parametrize("before", ["gradcore", "numpy", ""])
def test_one_interpreter_of_a_process_has_it_and_others_are_refused(before: str) -> None:
    pytest.importorskip("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    if np.lib.NumpyVersion(np.__version__) < "2.0.0" and before != "gradcore":
        pytest.skip("this NumPy runs in all interpreters, and crashes in some")
    said = run(INTERPRETERS, *before.split())
    if before:
        assert said == ["refused"] * 20 + ["fine here"]
    else:
        assert said.count("imported") <= 1
        assert said.count("refused") >= 19


REFUSAL = (
    SCRIPT
    + """
import resource
kind, room = sys.argv[1], int(sys.argv[2])
gradcore.set_num_threads(1)
before = result()
others = [threading.Thread(target=lambda: (go.wait(), [ends.append(result()) for _ in range(5)])) for _ in range(8)]
go, ends = threading.Event(), []
for thread in others if "threads" in sys.argv else []:
    thread.start()
if "grown" in sys.argv:
    gradcore.set_num_threads(3)
    assert result() == before
if kind == "processes":
    if os.getuid() == 0:  # whom the limit does not bind
        try:
            os.setuid(65534)
        except OSError:
            print("skip: cannot leave root")
            sys.exit()
    resource.setrlimit(resource.RLIMIT_NPROC, (room, room))
else:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room * 2**20,) * 2)

gradcore.set_num_threads(8)
tasks = n_tasks()
go.set()
assert result() == before
for thread in others if "threads" in sys.argv else []:
    thread.join()
assert ends == [before] * len(ends)
for n in (2, 8, 5, 8):
    gradcore.set_num_threads(n)
    assert result() == before
if room == 1:
    assert n_tasks() <= tasks
assert gradcore.get_num_threads() == 8
"""
)


@NEEDS_OPENMP
@NEEDS_PROC
@pytest.mark.parametrize(
    ("kind", "room", "how"),  # room for so many processes or MiB
    [
        ("processes", 1, ""),
        ("processes", 1, "grown"),
        ("processes", 20, "threads"),
        ("memory", 24, ""),
        ("memory", 80, ""),
    ],
)
def test_where_the_system_refuses_threads_kernels_run_with_fewer(kind: str, room: int, how: str) -> None:
    run(REFUSAL, kind, room, *how.split())


@NEEDS_OPENMP
@NEEDS_PROC
def test_the_memory_of_refused_threads_is_left_to_others() -> None:
    run(
        SCRIPT
        + """
import resource
gradcore.set_num_threads(1)
layer(x)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 30 * 2**20,) * 2)
gradcore.set_num_threads(8)
before = n_tasks()
layer(x)
assert n_tasks() == before
np.empty(24 * 2**20, np.uint8)
""",
        OMP_STACKSIZE="8M",
    )


@NEEDS_OPENMP
@NEEDS_PROC
def test_threads_are_created_again_some_calls_after_a_refusal() -> None:
    run(
        SCRIPT
        + """
import resource
layer, x = gradcore.Linear(64, 128), np.ones((64, 64), np.float32)  # short calls
gradcore.set_num_threads(1)
layer(x)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
gradcore.set_num_threads(3)
before = n_tasks()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**22, hard))
layer(x)
assert n_tasks() == before
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
for _ in range(1001):
    layer(x)
assert n_tasks() == before + 2
"""
    )


@NEEDS_OPENMP
@NEEDS_PROC
def test_small_teams_between_large_ones_end_no_threads() -> None:
    run(
        SCRIPT
        + """
gradcore.set_num_threads(4)
layer(x)
small = [np.ones(70_000, np.float32)]
before = sorted(os.listdir("/proc/self/task"))
for _ in range(10):
    gradcore.clip_grad_norm_(small, 1.0)
    layer(x)
time.sleep(0.1)
assert sorted(os.listdir("/proc/self/task")) == before
"""
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_there_are_no_more_threads_than_the_affinity_allows() -> None:
    run(
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
        + SCRIPT
        + "before = n_tasks(); layer(x); assert gradcore.get_num_threads() == 1 and n_tasks() == before"
    )


LIMITS = (
    SCRIPT
    + """
import threadpoolctl
openmp = [each for each in threadpoolctl.threadpool_info() if each["user_api"] == "openmp"]
assert [each["num_threads"] for each in openmp] == [4], openmp
assert gradcore.get_num_threads() == 4
alone = n_tasks()

with threadpoolctl.threadpool_limits(1):
    before = result()
    assert n_tasks() == alone
with threadpoolctl.threadpool_limits(3, user_api="openmp"):
    assert result() == before
    assert n_tasks() == alone + 2
assert result() == before
assert n_tasks() == alone + 3
with threadpoolctl.threadpool_limits(2, user_api="openmp"):
    assert result() == before
    assert settled(alone + 1)
    gradcore.set_num_threads(8)  # within what the other limit leaves
    assert result() == before
    assert n_tasks() == alone + 1
    assert gradcore.get_num_threads() == 8
assert result() == before
assert n_tasks() == alone + 7  # more than OpenMP's default, because nobody limits it
gradcore.set_num_threads(2)
with threadpoolctl.threadpool_limits(3, user_api="openmp"):  # a limit above the own number changes nothing
    assert result() == before
    assert settled(alone + 1)
"""
)


@NEEDS_OPENMP
@NEEDS_PROC
def test_threadpoolctl_sees_and_limits_the_threads() -> None:
    pytest.importorskip("threadpoolctl")
    run(LIMITS, OMP_NUM_THREADS="4")


@NEEDS_OPENMP
@NEEDS_PROC
def test_a_limit_at_the_time_of_the_import_is_not_taken_for_the_default() -> None:
    pytest.importorskip("threadpoolctl")
    run(
        """
import ctypes, ctypes.util, os, threadpoolctl
ctypes.CDLL(ctypes.util.find_library("gomp"))
with threadpoolctl.threadpool_limits(1):
    import gradcore
"""
        + SCRIPT
        + """
gradcore.set_num_threads(4)
with threadpoolctl.threadpool_limits(1):
    alone = n_tasks()
    layer(x)
    assert n_tasks() == alone
""",
        OMP_NUM_THREADS="4",
    )
