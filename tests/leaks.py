"""Whether anything is left behind: by many calls, a tenth of which fail, and by kernels that are refused memory.

`python tests/leaks.py` makes 100,000 calls of recipes.py and of those below,
with and without malformed arguments, and prints from time to time what the process holds. `--leak` leaves something
behind in every hundredth call, which has to be seen. `--malloc` makes every single allocation of the compiled module
fail, and looks at the error, at what was changed, and at what was not freed. The status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recipes import (
    CELLS,
    ENDLESS,
    OPTIMIZERS,
    RECIPES,
    Case,
    Recipe,
    bits,
    floats,
    invoke,
    little_memory,
    makers_for,
    malformed,
    model,
    part,
    paths,
    prepared,
    seeded,
    some_pairs,
    taped,
)
from tools import Array

import gradcore
from gradcore import _kernels, data, diagnosis, losses, monitor, optim, threshold

# ---- calls that recipes.py has no recipe for ----------------------------------------------------------------------

EXTRA: list[Recipe] = []


def extra(name: str) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        EXTRA.append(Recipe(name, make))
        return make

    return add


def failing(call: Callable[..., Any], error: type[BaseException]) -> Callable[..., Any]:
    """The call, when this error is what it is meant to end in."""

    def failed(**given: Any) -> None:
        try:
            call(**given)
        except error:
            return
        raise AssertionError(f"expected {error.__name__}")

    return failed


def trained() -> tuple[Any, Any]:
    """A model and its optimizer, which has moments."""
    made = model()
    optimizer = optim.Adam(made)
    y, tape = made.forward(np.ones((4, 3, 2), np.float32))
    made.backward(tape, y)
    optimizer.step()
    return made, optimizer


def a_history() -> Any:
    history, (_, tape) = gradcore.History(), taped(seeded(), "RNN")
    for _ in range(3):
        history.append(1.0, 2.0, tape=tape)
    return history


@extra("save_checkpoint")
def _(rng: np.random.Generator) -> Any:
    made, optimizer = trained()
    return gradcore.save_checkpoint, {"path": "saved", "model": made, "optimizer": optimizer, "rng": rng, "step": 3}


@extra("load_checkpoint")
def _(rng: np.random.Generator) -> Any:
    made, optimizer = trained()
    if not os.path.exists("stored"):
        gradcore.save_checkpoint("stored", model=made, optimizer=optimizer, rng=rng)
    return gradcore.load_checkpoint, {"path": "stored", "model": made, "optimizer": optimizer, "rng": rng}


@extra("load_checkpoint of a damaged file")
def _(rng: np.random.Generator) -> Any:
    if not os.path.exists("damaged"):
        gradcore.save_checkpoint("damaged", model=model())
        Path("damaged").write_bytes(Path("damaged").read_bytes()[:-5])
    return failing(gradcore.load_checkpoint, ValueError), {"path": "damaged", "model": model()}


@extra("History.to_json")
def _(rng: np.random.Generator) -> Any:
    return a_history().to_json, {"path": "history.json"}


@extra("History.from_json")
def _(rng: np.random.Generator) -> Any:
    return gradcore.History.from_json, {"source": a_history().to_json()}


@extra("History.load_state_dict")
def _(rng: np.random.Generator) -> Any:
    return gradcore.History().load_state_dict, {"state_dict": a_history().state_dict()}


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


for _copy in (copy.deepcopy, copy.copy, pickled):

    @extra(f"{_copy.__name__} of a model and its optimizer")
    def _(rng: np.random.Generator, copied: Any = _copy) -> Any:
        return copied, {"x": trained()}

    @extra(f"{_copy.__name__} of layers")
    def _(rng: np.random.Generator, copied: Any = _copy) -> Any:
        return copied, {"x": [build(2, 3, rng=seeded()) for build in CELLS.values()]}


def fitting(rng: np.random.Generator, callback: Callable[[Any], Any]) -> tuple[Any, dict[str, Any]]:
    made = model()
    return gradcore.fit, {
        "model": made,
        "batches": [(floats(rng, 4, 3, 2), floats(rng, 3, 1), [4, 2, 1])] * 2,
        "loss": losses.mse,
        "optimizer": optim.RMSprop(made),
        "epochs": 3,
        "max_norm": threshold.ZClip(),
        "step_clip": 1.0,
        "monitor": monitor.GradientMonitor(),
        "callbacks": [callback],
        "progress": False,
    }


@extra("fit of a model")
def _(rng: np.random.Generator) -> Any:
    return fitting(rng, lambda record: None)


@extra("fit that goes back")
def _(rng: np.random.Generator) -> Any:
    fit, given = fitting(rng, lambda record: None)
    (x, target, lengths), *_ = given["batches"]
    given["batches"] += [(x, np.full_like(target, np.nan), lengths)]
    return fit, {**given, "supervisor": gradcore.Supervisor(rollback=2, skip=2)}


@extra("fit that is interrupted")
def _(rng: np.random.Generator) -> Any:
    return fitting(rng, lambda record: os.kill(os.getpid(), signal.SIGINT))


@extra("fit that is interrupted twice")
def _(rng: np.random.Generator) -> Any:
    def interrupt(record: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    fit, given = fitting(rng, interrupt)
    return failing(fit, KeyboardInterrupt), given


@extra("fit with a callback that fails")
def _(rng: np.random.Generator) -> Any:
    fit, given = fitting(rng, lambda record: record.nothing)
    return failing(fit, AttributeError), given


@extra("monitor.GradientMonitor over a run")
def _(rng: np.random.Generator) -> Any:
    layer, tape = taped(rng, "RNN")

    def watch(layer: Any, tape: Any, norms: Any) -> Any:
        seen = monitor.GradientMonitor(monitor.Thresholds(warmup=2, window=10))
        for step, norm in enumerate(norms):
            seen.update(step, norm, norm, layer, tape, max_norm=1.0)
        seen.finish()
        return seen.findings

    return watch, {"layer": layer, "tape": tape, "norms": [1.0] * 5 + [1e6] + [np.nan] * 3}


@extra("diagnose")
def _(rng: np.random.Generator) -> Any:
    def run(**options: Any) -> Any:
        return diagnosis.study(diagnosis.configure(**options)).to_dict()

    return run, {"source": "adding", "hidden": 3, "seq_len": 6, "batch": 2, "steps": 2, "cell": "rnn", "seed": 1}


@extra("data.adding")
def _(rng: np.random.Generator) -> Any:
    return data.adding, {"rng": rng, "batch": 3, "length": 8}


@extra("data.load")
def _(rng: np.random.Generator) -> Any:
    return data.load, {"source": "sunspots", "seq_len": 10}


@extra("in a thread of its own")
def _(rng: np.random.Generator) -> Any:
    def there(layer: Any, x: Any) -> None:
        def work() -> None:
            with suppress(Exception):
                layer.forward(x)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    return there, {"layer": gradcore.Linear(64, 128, rng=seeded()), "x": floats(rng, 64, 64)}


SHARED: dict[str, Any] = {
    "x": floats(seeded(), 4, 3, 2),
    "dy": floats(seeded(), 4, 3, 5),
    "gradients": [floats(seeded(), 3, 2), floats(seeded(), 3)],
    "generator": seeded(),
    **{cell: build(2, 5, rng=seeded()) for cell, build in CELLS.items()},
    "optimizer": optim.Adam(some_pairs(seeded())),
}

for _cell in CELLS:

    @extra(f"the shared {_cell}")
    def _(rng: np.random.Generator, cell: str = _cell) -> Any:
        def both(x: Any, dy: Any, step_clip: Any) -> Any:
            tape = SHARED[cell].forward(x)[1]
            return SHARED[cell].backward(tape, dy, step_clip=step_clip), tape.telemetry.dh_norm

        return both, {"x": SHARED["x"], "dy": SHARED["dy"], "step_clip": 1.0}


@extra("the shared gradients")
def _(rng: np.random.Generator) -> Any:
    return gradcore.grad_norm, {"grads": SHARED["gradients"], "norm_type": 2.0}


@extra("the shared generator")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Linear, {"in_features": 3, "out_features": 2, "rng": SHARED["generator"]}


@extra("the shared optimizer")
def _(rng: np.random.Generator) -> Any:
    return SHARED["optimizer"].step, {"max_norm": 1.0, "scale": 2.0}


def each(chosen: Recipe) -> Iterator[Case]:
    """The recipe with any one leaf of its arguments replaced. What is filled by a call's first time is full then."""
    _, given = chosen.make(np.random.default_rng(0))
    for name, value in given.items():
        for where in paths(value):
            for maker in makers_for(part(value, where)):
                if not ((chosen.name, name) in ENDLESS and maker.endswith(" long")):
                    yield Case(chosen, [(name, where, maker)])


def attempt(case: Case) -> bool:
    """Whether the call succeeds; its result is forgotten."""
    threads = gradcore.get_num_threads()
    try:
        call, _, given = prepared(case)
        invoke(call, given, case.recipe.by_position)
    except Exception:
        return False
    finally:
        gradcore.set_num_threads(threads)
    return True


# ---- what the process holds ------------------------------------------------------------------------------------------


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
GLIBC = hasattr(LIBC, "mallinfo2")
if GLIBC:
    LIBC.mallinfo2.restype = MallInfo
CLASSES = {
    kind
    for name, module in sorted(sys.modules.items())
    if name.startswith("gradcore")
    for kind in vars(module).values()
    if isinstance(kind, type) and kind.__module__.startswith("gradcore")
}
# A class knows its instances by their references. Left out is float64: NumPy 2.4 itself loses a reference to it in
# every Generator.uniform, Generator.normal and np.divide(where=...).
REFERENCED: dict[str, Any] = {
    **{repr(np.dtype(name)): np.dtype(name) for name in ("float16", "float32", "intp", "uint8")},
    **{f"{kind.__module__}.{kind.__qualname__}": kind for kind in CLASSES},
    **{f"the shared {name}": value for name, value in SHARED.items()},
    **{f"the shared gradients[{i}]": value for i, value in enumerate(SHARED["gradients"])},
    "None": None,
    "True": True,
    "()": (),
    "gradcore.fit": gradcore.fit,
    "_kernels.norm": _kernels.norm,
}


def of_malloc() -> int:
    LIBC.malloc_trim(0)
    info = LIBC.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# What a process holds: bytes that are resident, and that malloc has given out; Python's own blocks of memory and the
# objects that its collector knows; references to what outlives the calls.
HELD: dict[str, Callable[[], int]] = {
    **({"malloc": of_malloc, "resident": resident} if GLIBC else {}),
    "blocks": sys.getallocatedblocks,
    "objects": lambda: len(gc.get_objects()),
    **{f"references to {name}": lambda value=value: sys.getrefcount(value) for name, value in REFERENCED.items()},
}
NAMES = list(HELD)
SAMPLES = 20
# What a call may leave behind, on average. A hundredth of a reference, of an object or of 64 bytes is more; of what is
# resident, in whole pages, that can be said of 200 bytes.
BOUNDS = {"resident": 2.0, "malloc": 0.3, "blocks": 0.004, "objects": 0.004, "references": 0.004}
BOUND = np.array([BOUNDS[name.partition(" ")[0]] for name in NAMES])


def held(generation: int = 2) -> Array:
    """What the process holds, garbage apart. In one array: whatever keeps it keeps always the same.

    Looking at all generations also empties Python's lists of free objects, which takes some calls to be made up for.
    """
    gc.collect(generation)
    return np.array([look() for look in HELD.values()])


def leak(kind: str | None) -> None:
    """Leave something behind."""
    if kind == "bytes":
        LIBC.malloc(64)
    elif kind:
        value = SHARED["x"] if kind == "reference" else object()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def watch_calls(n: int, seed: int, kind: str | None) -> bool:
    """Make n calls; whether what the process holds stays the same over the second half of them."""
    rng, recipes = np.random.default_rng(seed), [*RECIPES, *EXTRA]

    def some(n: int, kind: str | None) -> int:
        failed = 0
        for i in range(n):
            chosen = recipes[rng.integers(len(recipes))]
            failed += not attempt(malformed(chosen, rng) if rng.random() < 0.13 else Case(chosen, []))
            if i % 100 == 0:
                leak(kind)
        return failed

    for chosen in recipes:
        if not attempt(Case(chosen, [])):
            raise SystemExit(f"{chosen.name}: the good call fails")
        for case in each(chosen):
            attempt(case)
    some(20_000, None)
    gc.freeze()
    every, failed = max(n // SAMPLES, 1), 0
    at, samples = every * np.arange(SAMPLES + 1), np.zeros((SAMPLES + 1, len(HELD)), np.int64)
    samples[0] = held()
    print("    calls failed" + "".join(f"{kept:>12}" for kept in BOUNDS))
    for k in range(1, SAMPLES + 1):
        failed += some(every, kind)
        samples[k] = held()
        sums = [samples[k, [name.startswith(kept) for name in NAMES]].sum() for kept in BOUNDS]
        print(f"{at[k]:9} {failed:6}" + "".join(f"{total:12}" for total in sums), flush=True)
    slopes = np.polyfit(at[SAMPLES // 2 :], samples[SAMPLES // 2 :], 1)[0]
    print("\nleft by 100 calls, over the second half:")
    for kept in BOUNDS:
        for i in sorted((i for i, name in enumerate(NAMES) if name.startswith(kept)), key=lambda i: -slopes[i])[:1]:
            print(f"{100 * slopes[i]:12.3f}, at most {100 * BOUND[i]:6.1f}: {NAMES[i]}")
    grown = [NAMES[i] for i in np.flatnonzero(slopes > BOUND)]
    print(f"grown: {', '.join(grown)}" if grown else "flat")
    return not grown


# ---- allocations that fail -------------------------------------------------------------------------------------------

FAILING_MALLOC = """
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

extern void *__libc_malloc(size_t);
extern void __libc_free(void *);

static uintptr_t low, high;      /* who is watched */
static long asked, live, failing; /* its allocations, those not freed, and which one is to fail */

void watch(uintptr_t from, uintptr_t to) { low = from, high = to; }
void fail(long which) { asked = live = 0, failing = which; }
long get_asked(void) { return asked; }
long get_live(void) { return live; }

static int watched(void *caller) { return (uintptr_t)caller >= low && (uintptr_t)caller < high; }

void *malloc(size_t n)
{
    if (watched(__builtin_return_address(0))) {
        if (++asked == failing) {
            errno = ENOMEM;
            return NULL;
        }
        live++;
    }
    return __libc_malloc(n);
}

void free(void *p)
{
    if (p && watched(__builtin_return_address(0))) live--;
    __libc_free(p);
}
"""


@dataclass(frozen=True)
class Allocating:
    """A call that has the module allocate. `make()` gives it and all that it may change.

    It can do without `spared` of the allocations, and ends in a MemoryError when one of the others fails.
    """

    name: str
    make: Callable[[], tuple[Callable[[], Any], Any]]
    spared: int = 0


ALLOCATING: list[Allocating] = []


def allocating(name: str, spared: int = 0) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        ALLOCATING.append(Allocating(name, make, spared))
        return make

    return add


LISTS: dict[str, Callable[[], list[Array]]] = {
    "small arrays": lambda: [floats(seeded(), 3, 2), floats(seeded(), 3)],
    "large arrays": lambda: [floats(seeded(), 400, 300), floats(seeded(), 70_000, dtype=np.float64)],
    "halves": lambda: [floats(seeded(), 500, dtype=np.float16)],
    "huge entries": lambda: [floats(seeded(), 400, 300, dtype=np.float64) * 1e200, np.full(3, 1e300)],
    "layouts": lambda: [floats(seeded(), 30, 20)[::2, ::3], np.asfortranarray(floats(seeded(), 7, 5))],
}

for _name, _arrays in LISTS.items():
    for _p in (2.0, 3.0, np.inf):

        @allocating(f"grad_norm, p = {_p}, {_name}")
        def _(arrays: Any = _arrays, p: float = _p) -> Any:
            given = arrays()
            return lambda: gradcore.grad_norm(given, p), given

    for _each in (False, True):

        @allocating(f"clip_grad_norm_, {'each' if _each else 'all'}, {_name}")
        def _(arrays: Any = _arrays, each: bool = _each) -> Any:
            given = arrays()
            return lambda: gradcore.clip_grad_norm_(given, 0.5, per_array=each), given

    @allocating(f"clip_grad_value_, {_name}")
    def _(arrays: Any = _arrays) -> Any:
        given = arrays()
        return lambda: gradcore.clip_grad_value_(given, 0.1), given

    @allocating(f"GradScaler.unscale_, {_name}")
    def _(arrays: Any = _arrays) -> Any:
        given, scaler = arrays(), gradcore.GradScaler(4.0)
        return lambda: scaler.unscale_(given), [given, scaler.state_dict]


@allocating("clip_grad_units_")
def _() -> Any:
    pairs = some_pairs(seeded())
    return lambda: gradcore.clip_grad_units_(pairs, clip_factor=0.01), pairs


for _name, _options in OPTIMIZERS.items():
    for _groups in (1, 2):

        @allocating(f"{_name}.step, {_groups} groups")
        def _(name: str = _name, options: Any = _options, groups: int = _groups) -> Any:
            pairs = some_pairs(seeded())
            given: Any = [{"params": dict([pair])} for pair in pairs.items()] if groups == 2 else pairs
            optimizer = getattr(optim, name)(given, **options)
            for _ in range(2):  # SPAM starts anew in its third step
                optimizer.step()
            limit = threshold.FromFirst(steps=1, factor=0.5)
            return lambda: optimizer.step(max_norm=limit), [pairs, optimizer.state_dict, limit.state_dict]


@allocating("threads, of which there are fewer then", spared=1)
def _() -> Any:
    given = [floats(seeded(), 600, 500)]

    def measure() -> float:
        gradcore.set_num_threads(2)
        try:
            with ThreadPoolExecutor(1) as executor:  # a thread that has no team yet
                return executor.submit(gradcore.grad_norm, given).result()
        finally:
            gradcore.set_num_threads(1)

    return measure, given


def state(value: Any) -> Any:
    """All that is in there, to be compared."""
    if callable(value):  # a state_dict
        value = value()
    if isinstance(value, np.ndarray):
        return bits(value)
    if isinstance(value, dict):
        return {name: state(member) for name, member in value.items()}
    return [state(member) for member in value] if isinstance(value, (tuple, list)) else value


def refuse_each(library: Any, case: Allocating) -> tuple[int, list[str]]:
    """How often the call allocates, and what is wrong when one of the allocations fails."""
    call, value = case.make()
    library.fail(0)
    result = call()
    asked, after, wrong, spared = library.get_asked(), state(value), [], 0
    if library.get_live():
        wrong.append(f"{library.get_live()} not freed by a call that succeeds")
    for which in range(1, asked + 1):
        call, value = case.make()
        before = state(value)
        library.fail(which)
        got, error = None, "none"
        try:
            got = call()
        except Exception as raised:  # kept, it would keep what the call had
            error = repr(raised)
        asked_then, live = library.get_asked(), library.get_live()
        library.fail(0)
        if asked_then < which:
            wrong.append(f"{which}: it was not asked for")
        if live:
            wrong.append(f"{which}: {live} not freed")
        if error == "none":
            spared += 1
            if got != result:
                wrong.append(f"{which}: another result")
            continue
        if error != "MemoryError()":
            wrong.append(f"{which}: {error}")
        if state(value) != before:
            wrong.append(f"{which}: something was changed")
        call()
        if state(value) != after:
            wrong.append(f"{which}: the same call again gives something else")
    if spared != case.spared:
        wrong.append(f"{spared} of the allocations did not matter, expected {case.spared}")
    return asked, wrong


def refuse_all() -> bool:
    """Whether all is well when any one allocation of the module fails."""
    library = ctypes.CDLL(None)
    for name in ("get_asked", "get_live"):
        getattr(library, name).restype = ctypes.c_long
    library.watch.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.fail.argtypes = [ctypes.c_long]
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if _kernels.__file__ in line]
    low, high = lines[0][0].split("-")[0], lines[-1][0].split("-")[1]
    library.watch(int(low, 16), int(high, 16))
    total, bad = 0, 0
    gradcore.set_num_threads(1)
    for case in ALLOCATING:
        asked, wrong = refuse_each(library, case)
        if not asked:
            wrong.append("it does not allocate")
        total, bad = total + asked, bad + bool(wrong)
        print(f"{case.name:50}{asked:4}  {'; '.join(wrong) or 'fine'}", flush=True)
    print(f"{total} allocations of {len(ALLOCATING)} calls refused, one at a time; {bad} calls are wrong")
    return not bad


def with_failing_malloc() -> int:
    """This script again, with a malloc that can be told to fail."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "malloc.c"), Path(folder, "malloc.so")
        source.write_text(FAILING_MALLOC)
        subprocess.run(["cc", "-O1", "-fno-builtin", "-shared", "-fPIC", source, "-o", library], check=True)
        preloaded = {**os.environ, "LD_PRELOAD": str(library)}
        return subprocess.run([sys.executable, *sys.argv], env=preloaded, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="fewer may not be flat yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leak", choices=["reference", "object", "bytes"])
    parser.add_argument("--malloc", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.malloc and not hasattr(ctypes.CDLL(None), "get_asked"):
        return with_failing_malloc()
    if arguments.malloc:
        return 0 if refuse_all() else 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.chdir(folder)  # some malformed paths are good ones
        with little_memory(), redirect_stderr(nowhere):  # threads' errors, bars of progress
            flat = watch_calls(arguments.calls, arguments.seed, arguments.leak)
        os.chdir("/")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
