"""gradcore beside PyTorch, JAX and onnxruntime, in one process and in turns: `python bench/peers.py [section ...]`.

Every run is verified before it is timed. Of each round the peers and gradcore take their turns one after the other, so
that a ratio compares neighbors in time. Printed are medians over the rounds, and the quotients of everybody's fastest
turn ("best over"), which others on the machine disturb least; "peak" is the share of what the processor can do at most,
as it showed right after the turn, for its clock varies. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bench_norm
import bench_optim
import figures
import numpy as np
from figures import GATES, SHAPES, Shape, flop

import gradcore
from gradcore import _kernels

try:
    import torch
except ImportError:
    torch = None
try:
    import jax
except ImportError:
    jax = None
try:
    import onnx
    import onnxruntime
except ImportError:
    onnxruntime = None

Array = np.ndarray[Any, Any]
Run = Callable[[], object]
Row = dict[str, Any]

SLICE = 0.03  # seconds that one turn takes at least
PAUSE = 0.005  # seconds in which the threads of whoever came before stop spinning
WAIT = 3.0  # seconds to wait at most until every thread has a core of its own
# Of the processor's limit, what shows that it is ours: two threads on one core have half, a warm core three quarters.
WHOLE = 0.6


# ---- timing --------------------------------------------------------------------------------------------------------


class Turn(NamedTuple):
    seconds: float  # per call
    limit: float  # GFLOP/s in float32 of nothing but multiply-adds, after it


def multiply_adds() -> float:
    """GFLOP/s in float32 of nothing but multiply-adds on all threads of gradcore, in half a millisecond."""
    start = time.perf_counter()
    n = _kernels.multiply_adds(np.dtype("float32"), 200_000)
    return 2.0 * n / (time.perf_counter() - start) / 1e9


_best: dict[int, float] = {}


def peak() -> float:
    """The most of them that were seen so far on so many threads, a look of half a second included.

    On several threads the look takes as long as they are far below so many times one thread, up to WAIT seconds.
    """
    threads, start = gradcore.get_num_threads(), time.perf_counter()
    expected = WHOLE * threads * _best.get(1, 0.0)
    _best.setdefault(threads, 0.0)
    while (elapsed := time.perf_counter() - start) < 0.5 or (_best[threads] < expected and elapsed < WAIT):
        _best[threads] = max(_best[threads], multiply_adds())
    return _best[threads]


def look(seconds: float) -> tuple[float, bool]:
    """What the processor can do now, and whether it is ours, for which so many seconds are waited at most.

    Virtual processors that were idle may share a core.
    """
    enough, start = WHOLE * _best[gradcore.get_num_threads()], time.perf_counter()
    while (now := multiply_adds()) < enough and time.perf_counter() - start < seconds:
        pass
    return now, now >= enough


def turn(run: Run) -> Turn:
    """A turn with the whole processor before and after it, if there is one in five."""
    for _ in range(5):
        time.sleep(PAUSE)
        look(WAIT)
        run()
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SLICE or not calls:
            run()
            calls += 1
        limit, ours = look(0.02)
        if ours:
            break
    return Turn(elapsed / calls, limit)


def interleave(runs: dict[str, Run], rounds: int) -> dict[str, list[Turn]]:
    """The turns of each, round by round, the order turning from round to round."""
    names: list[str] = list(runs)
    turns: dict[str, list[Turn]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    peak()
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            turns[name].append(turn(runs[name]))
    return turns


def ratio(turns: dict[str, list[Turn]], name: str, base: str) -> float:
    """How many times as long `name` takes as `base`: the median over the rounds."""
    return statistics.median(a.seconds / b.seconds for a, b in zip(turns[name], turns[base], strict=True))


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


# ---- who computes ----------------------------------------------------------------------------------------------------


class Job:
    """One cell and shape: the layer, its input, and what the peers make of the same weights."""

    def __init__(self, cell: str, shape: Shape, dtype: str, lengths: Array | None = None) -> None:
        T, B, I, H = shape
        rng = np.random.default_rng(0)
        self.cell, self.shape, self.lengths = cell, shape, lengths
        self.layer = getattr(gradcore, cell)(I, H, dtype=dtype, rng=rng)
        self.x = rng.standard_normal((T, B, I)).astype(dtype)
        self.dy = rng.standard_normal((T, B, H)).astype(dtype)
        self.tolerance = 1e-4 if dtype == "float32" else 1e-10

    def check(self, who: str, what: str, got: Any, want: Array) -> None:
        error = np.abs(np.asarray(got) - want).max() / np.abs(want).max()
        if not error < self.tolerance:
            raise SystemExit(f"{who}, {self.cell} {self.shape}: {what} is off by {error:.1e} of its largest value")

    def gradcore(self, **options: Any) -> Run:
        def run() -> tuple[Array, Array]:
            y, tape = self.layer.forward(self.x, lengths=self.lengths)
            return y, self.layer.backward(tape, self.dy, **options)

        return run

    def training(self) -> dict[str, Run]:
        """forward + backward of everybody, verified: y, dL/dx and dL/dW_hh."""
        run = self.gradcore()
        self.layer.zero_grad()
        y, dx = run()
        want = y.copy(), dx.copy(), self.layer.grads["weight_hh_l0"].copy()
        runs = {"gradcore": run}
        for who, make in (("torch", self._torch), ("jax", self._jax)):
            if (made := make()) is not None:
                runs[who], results = made
                for what, got, expected in zip(("y", "dx", "dw_hh"), results, want, strict=True):
                    self.check(who, what, got, expected)
        return runs

    def _twin(self) -> Any:
        twin = getattr(torch.nn, self.cell)(self.layer.input_size, self.layer.hidden_size)
        twin = twin.to(torch.float32 if self.x.dtype == np.float32 else torch.float64)
        twin.load_state_dict({name: torch.from_numpy(value) for name, value in self.layer.state_dict().items()})
        return twin

    def _torch(self) -> tuple[Run, tuple[Any, ...]] | None:
        if torch is None:
            return None
        torch.set_num_threads(gradcore.get_num_threads())
        twin, x = self._twin(), torch.from_numpy(self.x).requires_grad_()
        dy = torch.from_numpy(self.dy)
        if self.lengths is None:

            def forward() -> Any:
                return twin(x)[0]
        else:
            lengths = torch.from_numpy(self.lengths)
            rnn = torch.nn.utils.rnn

            def forward() -> Any:
                packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
                return rnn.pad_packed_sequence(twin(packed)[0], total_length=self.shape[0])[0]

        def run() -> None:
            forward().backward(dy)

        run()
        results = forward().detach().numpy(), x.grad.numpy().copy(), twin.weight_hh_l0.grad.numpy().copy()
        return run, results

    def _jax(self) -> tuple[Run, tuple[Any, ...]] | None:
        if jax is None or self.lengths is not None or gradcore.get_num_threads() != 2:
            return None
        jax.config.update("jax_enable_x64", True)
        step = {"RNN": _jax_rnn, "LSTM": _jax_lstm, "GRU": _jax_gru}[self.cell]
        parameters = {name[:-3]: jax.numpy.asarray(value) for name, value in self.layer.params.items()}

        def outputs(p: Any, x: Any) -> Any:
            from_x = x @ p["weight_ih"].T + p["bias_ih"]  # hoisted out of the scan, as it is with PyTorch
            zero = jax.numpy.zeros((x.shape[1], self.shape[3]), x.dtype)
            return jax.lax.scan(lambda state, a: step(p, state, a), (zero, zero), from_x)[1]

        @jax.jit
        def both(p: Any, x: Any, dy: Any) -> Any:
            y, back = jax.vjp(outputs, p, x)
            return y, back(dy)

        x, dy = jax.numpy.asarray(self.x), jax.numpy.asarray(self.dy)
        y, (d_parameters, dx) = both(parameters, x, dy)
        return lambda: jax.block_until_ready(both(parameters, x, dy)), (y, dx, d_parameters["weight_hh"])

    def inference(self) -> dict[str, Run]:
        """The outputs alone, of everybody, verified."""
        want = self.layer(self.x)[0]
        runs: dict[str, Run] = {"gradcore": lambda: self.layer(self.x)}
        if torch is not None:
            torch.set_num_threads(gradcore.get_num_threads())
            twin, x = self._twin().eval(), torch.from_numpy(self.x)

            def in_torch() -> Any:
                with torch.inference_mode():
                    return twin(x)[0]

            self.check("torch", "y", in_torch().numpy(), want)
            runs["torch"] = in_torch
        if onnxruntime is not None:
            session = _onnx_session(self.cell, self.layer, gradcore.get_num_threads())

            def in_onnxruntime() -> Any:
                return session.run(["y"], {"x": self.x})[0]

            self.check("onnxruntime", "y", in_onnxruntime()[:, 0], want)
            runs["onnxruntime"] = in_onnxruntime
        return runs


def _jax_rnn(p: Any, state: Any, a: Any) -> Any:
    h = jax.numpy.tanh(a + state[0] @ p["weight_hh"].T + p["bias_hh"])
    return (h, state[1]), h


def _jax_lstm(p: Any, state: Any, a: Any) -> Any:
    h, c = state
    i, f, g, o = jax.numpy.split(a + h @ p["weight_hh"].T + p["bias_hh"], 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
    h = jax.nn.sigmoid(o) * jax.numpy.tanh(c)
    return (h, c), h


def _jax_gru(p: Any, state: Any, a: Any) -> Any:
    h = state[0]
    a_r, a_z, a_n = jax.numpy.split(a, 3, axis=1)
    q_r, q_z, q_n = jax.numpy.split(h @ p["weight_hh"].T + p["bias_hh"], 3, axis=1)
    z = jax.nn.sigmoid(a_z + q_z)
    n = jax.numpy.tanh(a_n + jax.nn.sigmoid(a_r + q_r) * q_n)
    h = (1 - z) * n + z * h
    return (h, state[1]), h


def _onnx_session(cell: str, layer: Any, threads: int) -> Any:
    """One ONNX operator with the layer's weights, its gates in ONNX's order."""
    H, order = layer.hidden_size, {"RNN": [0], "LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}[cell]

    def gates(name: str) -> Array:
        value = layer.params[name]
        return np.concatenate([value[k * H : (k + 1) * H] for k in order])

    weights = {
        "w": gates("weight_ih_l0")[None],
        "r": gates("weight_hh_l0")[None],
        "b": np.concatenate([gates("bias_ih_l0"), gates("bias_hh_l0")])[None],
    }
    options = {"linear_before_reset": 1} if cell == "GRU" else {}
    node = onnx.helper.make_node(cell, ["x", "w", "r", "b"], ["y"], hidden_size=H, **options)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "layer",
        [value("x", onnx.TensorProto.FLOAT, ["T", "B", layer.input_size])],
        [value("y", onnx.TensorProto.FLOAT, ["T", 1, "B", H])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # between its turns
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


# ---- sections: each yields rows --------------------------------------------------------------------------------------


def beside(row: Row, turns: dict[str, list[Turn]]) -> Row:
    """The row with everybody's times, and how many times as long as gradcore the others take."""
    row["threads"] = gradcore.get_num_threads()
    least = {name: min(t.seconds for t in of) for name, of in turns.items()}
    for name, of in turns.items():
        row[f"{name} ms"] = 1e3 * statistics.median(t.seconds for t in of)
        if name != "gradcore":
            row[f"over {name}"] = ratio(turns, name, "gradcore")
            row[f"best over {name}"] = least[name] / least["gradcore"]
    return row


def compare(job: Job, runs: dict[str, Run], rounds: int, work: float) -> Row:
    turns, lanes = interleave(runs, rounds), 4 / job.x.itemsize
    row = beside({"cell": job.cell, "shape": job.shape, "dtype": str(job.x.dtype)}, turns)
    for name, of in turns.items():
        row[f"{name} peak"] = statistics.median(work / t.seconds / 1e9 / (t.limit * lanes) for t in of)
    return row


THREADS = [1, 2]


def training(rounds: int, dtype: str = "float32") -> Iterator[Row]:
    for threads in THREADS:
        gradcore.set_num_threads(threads)
        for shape in SHAPES:
            for cell in GATES:
                job = Job(cell, shape, dtype)
                work = flop(cell, shape, passes=3)
                yield compare(job, job.training(), rounds, work)


def double(rounds: int) -> Iterator[Row]:
    return training(rounds, "float64")


def inference(rounds: int) -> Iterator[Row]:
    for threads in THREADS:
        gradcore.set_num_threads(threads)
        for shape in SHAPES:
            for cell in GATES:
                job = Job(cell, shape, "float32")
                work = flop(cell, shape, passes=1)
                yield compare(job, job.inference(), rounds, work)


def ragged(rounds: int) -> Iterator[Row]:
    """Lengths uniform in 1..T: beside PyTorch's PackedSequence, and beside the padded batch."""
    gradcore.set_num_threads(2)
    for shape in SHAPES:
        T, B = shape[:2]
        lengths = np.random.default_rng(1).integers(1, T + 1, B)
        for cell in GATES:
            job, padded = Job(cell, shape, "float32", lengths), Job(cell, shape, "float32")
            times = interleave(job.training() | {"padded": padded.gradcore()}, rounds)
            share = float(lengths.sum()) / (T * B)
            cost = ratio(times, "gradcore", "padded")
            row: Row = {"cell": cell, "shape": shape, "threads": 2, "rows of padded": share, "cost of padded": cost}
            row["cost per row"] = cost / share
            if "torch" in times:
                row["over torch"] = ratio(times, "torch", "gradcore")
            yield row


def threads(rounds: int) -> Iterator[Row]:
    """Two threads beside one."""
    gradcore.set_num_threads(2)
    for dtype in ("float32", "float64"):
        for shape in SHAPES:
            for cell in GATES:
                run = Job(cell, shape, dtype).gradcore()

                def on(n: int, run: Run = run) -> Run:
                    def with_threads() -> None:
                        gradcore.set_num_threads(n)
                        run()
                        gradcore.set_num_threads(2)  # which `look` asks for, of one thread as well

                    return with_threads

                times = interleave({"1": on(1), "2": on(2)}, rounds)
                work = flop(cell, shape, passes=3) / 1e9
                yield {"cell": cell, "shape": shape, "dtype": dtype, "GFLOP": work, "speedup": ratio(times, "1", "2")}


def telemetry(rounds: int) -> Iterator[Row]:
    """What the norms of every step cost, and step clipping, over a run without either."""
    kernel = _kernels.recurrent_backward

    def silent(*args: Any) -> Any:
        *others, (step_clip, _, _), take = args
        return kernel(*others, (step_clip, None, None), take)

    gradcore.set_num_threads(2)
    for shape in SHAPES:
        for cell in GATES:
            job = Job(cell, shape, "float32")
            plain, run = job.gradcore(), job.gradcore()
            clip = job.gradcore(step_clip=float(np.median(_norms(job))))

            def without(run: Run = plain) -> None:
                _kernels.recurrent_backward = silent
                try:
                    run()
                finally:
                    _kernels.recurrent_backward = kernel

            times = interleave({"without": without, "with": run, "clip": clip}, rounds)
            yield {
                "cell": cell, "shape": shape, "telemetry": ratio(times, "with", "without") - 1,
                "step_clip": ratio(times, "clip", "with") - 1,
            }  # fmt: skip


def _norms(job: Job) -> Array:
    _, tape = job.layer.forward(job.x)
    job.layer.backward(tape, job.dy)
    norms: Array = tape.telemetry.dh_norm_per_sample
    return norms


def behavior(rounds: int) -> Iterator[Row]:
    """A decaying sequence beside a normal one; a long one beside a short one; all beside the same work."""
    gradcore.set_num_threads(2)
    for cell in GATES:
        for dtype in ("float32", "float64"):
            normal, decaying = (Job(cell, (400, 16, 64, 64), dtype) for _ in range(2))
            decaying.x[1:] = 0
            decaying.dy[:-1] = 0
            for name in decaying.layer.params:
                decaying.layer.params[name] *= {"weight_ih_l0": 1.0, "weight_hh_l0": 0.05}.get(name, 0.0)
            times = interleave({"normal": normal.gradcore(), "decaying": decaying.gradcore()}, rounds)
            slower = ratio(times, "decaying", "normal")
            yield {"what": "decaying / normal", "cell": cell, "dtype": dtype, "ratio": slower}
        short, long = (Job(cell, (T, 1, 16, 32), "float32").gradcore() for T in (1_000, 100_000))
        times = interleave({"short": short, "long": long}, rounds)
        yield {"what": "T 100,000 / 1,000, per step", "cell": cell, "ratio": ratio(times, "long", "short") / 100}


def memory(rounds: int) -> Iterator[Row]:
    """What a training step adds to the process, in MB, each in a process of its own."""
    for shape in SHAPES:
        for cell in GATES:
            row: Row = {"cell": cell, "shape": shape}
            for who in ("gradcore", "torch") if torch is not None else ("gradcore",):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    row[f"{who} MB"] = pool.apply(_added_memory, (who, cell, shape))
            yield row


def _added_memory(who: str, cell: str, shape: Shape) -> float:
    T, *rest = shape
    runs = []
    for job in (Job(cell, (t, *rest), "float32") for t in (2, T)):  # a short one loads what has to be loaded
        if who == "gradcore":
            runs.append(job.gradcore())
            continue
        x, twin, dy = torch.from_numpy(job.x).requires_grad_(), job._twin(), torch.from_numpy(job.dy)
        runs.append(lambda x=x, twin=twin, dy=dy: twin(x)[0].backward(dy))
    runs[0]()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    runs[1]()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A size in kB from what Linux says of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def norm(rounds: int) -> Iterator[Row]:
    """Norms and clipping beside PyTorch, a norm beside a plain sum, and that of one array beside NumPy's."""
    for threads in THREADS:
        gradcore.set_num_threads(threads)
        for which in bench_norm.LISTS:
            for what, make in (
                ("norm", lambda run, arrays: run.norm),
                ("clip that fires", bench_norm.clip_that_fires),
                ("clip that does not", bench_norm.clip_that_does_not_fire),
            ):
                runs: dict[str, Run] = {}
                for name, system in (("gradcore", bench_norm.OfGradcore), ("torch", bench_norm.OfTorch)):
                    if name == "gradcore" or torch is not None:
                        arrays = bench_norm.make(which)
                        runs[name] = make(system(arrays), arrays)
                if what == "norm":
                    runs["sum"] = _plain_sum(bench_norm.make(which), threads)
                    if len(arrays) == 1:
                        runs["numpy"] = lambda a=arrays[0]: np.linalg.norm(a)
                yield beside({"what": what, "arrays": which}, interleave(runs, rounds))


def optim(rounds: int) -> Iterator[Row]:
    """Clipping and a step of Adam beside PyTorch's, fused and by default."""
    systems = {"gradcore": bench_optim.OfGradcore}
    if torch is not None:
        systems |= {"torch": bench_optim.OfTorch, "torch by default": bench_optim.OfTorchByDefault}
    for threads in THREADS:
        gradcore.set_num_threads(threads)
        for which in bench_optim.LISTS:
            runs: dict[str, Run] = {}
            for name, system in systems.items():
                pairs = bench_optim.make(which)
                run = system(pairs, "Adam", {})
                bench_optim.verify(run, "Adam", pairs)
                runs[name] = lambda run=run: run.step(1.0)
            yield beside({"what": "clip + Adam", "arrays": which}, interleave(runs, rounds))


def _plain_sum(arrays: list[Array], threads: int) -> Run:
    """Reading and adding: long arrays in as many parts as there are threads, small ones one after the other."""
    if arrays[0].size < 2**16:
        return lambda: [a.sum() for a in arrays]
    parts, pool = np.array_split(arrays[0], threads), concurrent.futures.ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.sum, parts))


SECTIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    f.__name__: f for f in (training, double, inference, ragged, threads, telemetry, behavior, memory, norm, optim)
}


# ---- printing --------------------------------------------------------------------------------------------------------


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def summary(rows: list[Row]) -> Iterator[str]:
    """Geometric mean and least of each ratio, for each number of threads."""
    for threads_used in sorted({row["threads"] for row in rows if "threads" in row}):
        of = [row for row in rows if row.get("threads") == threads_used]
        for name in sorted({key for row in of for key in row if key.startswith(("over ", "best over "))}):
            ratios = [row[name] for row in of if name in row]
            yield (
                f"{threads_used} thread{'s' * (threads_used > 1)}, {name}: geometric mean "
                f"{geometric_mean(ratios):.2f}, least {min(ratios):.2f}"
            )


def draw(rows: list[Row], path: Path) -> None:
    """Fraction of the peak over shape, for each cell, with two threads."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, cell in zip(axes, GATES, strict=True):
        of = [row for row in rows if row["cell"] == cell and row["threads"] == 2]
        for name in ("gradcore", "torch", "jax"):
            if all(f"{name} peak" in row for row in of):
                axis.plot([100 * row[f"{name} peak"] for row in of], "o-", label=name)
        axis.set_xticks(range(len(of)), [", ".join(map(str, row["shape"])) for row in of], rotation=60, ha="right")
        axis.set(title=cell, ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of the FMA peak")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.supxlabel("T, B, I, H")
    figure.savefig(path, dpi=110)


def machine() -> Row:
    versions = {m.__name__: m.__version__ for m in (np, torch, jax, onnxruntime) if m is not None}
    gradcore.set_num_threads(1)
    return figures.machine() | {"versions": versions, "GFLOP/s of one core": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="*", default=[], help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS, help="for the sections beside the peers")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--figure", type=Path, help="draw the training section to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.section) - SECTIONS.keys():
        parser.error(f"unknown section {sorted(unknown)}; expected of {', '.join(SECTIONS)}")
    THREADS[:] = arguments.threads
    result: Row = {"machine": machine(), "sections": {}}
    print(json.dumps(result["machine"], indent=1))
    for name in arguments.section or SECTIONS:
        rows: list[Row] = []
        for row in SECTIONS[name](arguments.rounds):
            if not rows:
                print(f"\n## {name}\n{' | '.join(row)}")
            print(" | ".join(map(show, row.values())), flush=True)
            rows.append(row)
        print(*summary(rows), sep="\n")
        result["sections"][name] = rows
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1))
    if arguments.figure and "training" in result["sections"]:
        draw(result["sections"]["training"], arguments.figure)


if __name__ == "__main__":
    main()
