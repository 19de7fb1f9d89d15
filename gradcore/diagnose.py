"""From a source to a diagnosis: forecast, measurement, a trial training, a threshold, remedies tried, a verdict.

Everything is a function of the configuration, the seed included (but for the seconds); nothing is printed, each part
goes to a callback as soon as it is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore import init, losses, meanfield, optim, spectral
from gradcore._check import Array, check_int, check_number
from gradcore._files import jsonable
from gradcore._threads import info
from gradcore.data import Task, load
from gradcore.linear import LastStep, Linear, Sequential
from gradcore.monitor import Finding, GradientMonitor
from gradcore.recurrent import GRU, LSTM, RNN
from gradcore.spectral.logs import safe_exp
from gradcore.spectral.verdict import judge
from gradcore.train import History, StepRecord, fit

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
GATES = {"rnn": ("",), "lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}
KEEPING = {"lstm": "forget", "gru": "update"}  # the gate that keeps the state, the second one in both
INITS = ("default", "normal", "orthogonal", "eye")
OPTIMIZERS = {
    "sgd": optim.SGD,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "rmsprop": optim.RMSprop,
    "adagrad": optim.Adagrad,
}

# `sunspots` is there to show something: a start at which the gradients of a plain RNN explode. Everything else starts
# as its layers do by themselves.
SUNSPOTS: dict[str, Any] = {"init": "normal", "gain": 1.8}

SAMPLES = 64  # sequences that forecast and measurement follow,
FEW = 8  # those whose Lyapunov exponents are worked out, and for which a gain is searched
EXPONENTS = 64  # of a layer, at most
LARGEST_GAIN = 1e30  # float32 has to hold weights of the gains that are tried around it, too
SAME_GAIN = 0.01  # a gain that differs by less than this share is the same
EARLY = 0.2  # share of the steps whose norms decide on the thresholds,
DEPARTED = 3.0  # those before the loss has risen to so many times its start
WORTHWHILE = 0.02  # a loss lower by this share is a difference


@dataclass(frozen=True)
class Config:
    """What to diagnose. `configure` makes one with the defaults that suit the source.

    `gate_bias`, for LSTM and GRU, is given to every unit's gate that keeps the state; None leaves the layer's own.
    """

    source: str
    target: str | None = None
    cell: str = "rnn"
    hidden: int = 64
    layers: int = 1
    init: str = "default"
    gain: float = 1.0
    seq_len: int | None = None
    batch: int = 32
    steps: int = 300
    lr: float = 0.02
    optimizer: str = "sgd"
    seed: int = 0
    gate_bias: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("cell", CELLS), ("init", INITS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("hidden", "layers", "batch", "steps"):
            check_int(name, getattr(self, name), least=1)
        check_int("seed", self.seed)
        check_number("gain", self.gain, above=0.0, most=LARGEST_GAIN)
        if not math.isfinite(check_number("lr", self.lr, above=0.0)):
            raise ValueError(f"lr: expected a finite number, got {self.lr}")
        if self.gate_bias is not None:
            if self.cell not in KEEPING:
                raise ValueError(f"gate_bias: expected None, since {self.cell} has no gates, got {self.gate_bias}")
            if not math.isfinite(check_number("gate_bias", self.gate_bias)):
                raise ValueError(f"gate_bias: expected a finite number, got {self.gate_bias}")


def configure(source: str, **options: Any) -> Config:
    """A configuration with the source's defaults for every option that is missing or None."""
    given = {name: value for name, value in options.items() if value is not None}
    plain_rnn = given.get("cell", "rnn") == "rnn" and "init" not in given
    return Config(source, **((SUNSPOTS if source == "sunspots" and plain_rnn else {}) | given))


# ---- the parts of a diagnosis ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """What is about to be looked at."""

    config: Config
    task: str
    baseline: float
    input_size: int
    output_size: int
    steps_back: int
    n_parameters: int
    machine: dict[str, Any]


@dataclass(frozen=True)
class Matrix:
    """One recurrent matrix (of a gated cell: one gate's)."""

    name: str
    radius: float
    norm: float
    eigenvalues: Array


@dataclass(frozen=True)
class Spectrum:
    """The Lyapunov exponents of one layer along real sequences, largest first: all `state_size`, or `EXPONENTS`.

    `dimension` is Kaplan and Yorke's; where it is the number of exponents and there are more, at least that.
    """

    exponents: Array
    largest: float
    dimension: float
    state_size: int

    @property
    def filled(self) -> str:
        """The dimension in words."""
        least = self.dimension == len(self.exponents) < self.state_size
        return "at least " * least + f"{self.dimension:.3g}"


@dataclass(frozen=True)
class Forecast:
    """What can be said before any gradient has been computed.

    `rates` are natural logarithms per step, by layer from the first; `curves` (layers, T) the norms expected at each
    time step relative to the last one; `layers` is what `spectral.predict_growth` says of each.
    """

    matrices: tuple[Matrix, ...]
    conditions: tuple[spectral.Condition, ...]
    rate: float
    factor: float
    verdict: str
    rates: tuple[float, ...]
    curves: Array
    layers: tuple[spectral.LayerGrowth, ...]
    spectra: tuple[Spectrum, ...]


@dataclass(frozen=True)
class Measurement:
    """What a backward pass shows: norms (layers, T) of dL/dh_t, the loss being that of the last step alone."""

    norms: Array
    rates: tuple[float, ...]
    rate: float
    factor: float
    verdict: str


@dataclass(frozen=True)
class LayerRates:
    """Rates of one layer side by side, natural logarithms per step.

    `predicted` is the rate of its own recurrence, which is at most `upper_bound`; `with_above` the largest of this
    layer and of those above it, whose gradients arrive here too: what `measured` should come to.
    """

    name: str
    predicted: float
    upper_bound: float
    with_above: float
    measured: float


@dataclass(frozen=True)
class Comparison:
    """Forecast and measurement by layer, from the first."""

    layers: tuple[LayerRates, ...]


@dataclass(frozen=True)
class Suggestion:
    """A change of the configuration that should let gradients last, and their rate at its start: forecast, measured."""

    name: str
    changes: dict[str, Any]
    reason: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class Suggestions:
    """Those to be tried, and why there is none where there might have been one."""

    tried: tuple[Suggestion, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """A training run."""

    name: str
    config: Config
    max_norm: float | None
    step_clip: float | None
    loss: float
    largest_norm: float
    clipped_steps: int
    nonfinite_steps: int
    seconds: float
    findings: tuple[Finding, ...]
    history: History


@dataclass(frozen=True)
class Threshold:
    """Where to clip, and the early norms behind it."""

    max_norm: float
    step_clip: float
    reason: str
    steps_seen: int
    norm_quantiles: tuple[float, ...]  # of all gradients: 5 %, 50 %, 95 %
    output_norm: float  # median of the output layer's


@dataclass(frozen=True)
class Verdict:
    """Two sentences, and the lines of Python that apply the best remedy."""

    finding: str
    advice: str
    best: str
    python: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `diagnose` found."""

    start: Start
    forecast: Forecast
    measurement: Measurement
    comparison: Comparison
    threshold: Threshold
    suggestions: Suggestions
    trials: tuple[Trial, ...]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's own types; non-finite numbers are the strings "NaN", "Infinity" and "-Infinity"."""
        fields = {part.name: _plain(getattr(self, part.name)) for part in dataclasses.fields(self)}
        document: dict[str, Any] = jsonable({"format": "gradcore.Diagnosis", "version": 1} | fields)
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, History):
        return {"loss": value.loss, "grad_norm": value.grad_norm, "clipped": value.clipped}
    if isinstance(value, Finding):
        return value.to_dict()
    if isinstance(value, np.ndarray) and value.dtype.kind == "c":
        return [[v.real, v.imag] for v in value.tolist()]
    if dataclasses.is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# ---- the work --------------------------------------------------------------------------------------------------------


def diagnose(config: Config, report: Callable[[Any], None] = lambda part: None) -> Diagnosis:
    """Say whether and why a network's gradients explode or vanish, and which remedy helps.

    Parameters
    ----------
    config : Config
    report : callable, optional
        Gets every part as soon as it is known: Start, Forecast, Measurement, Comparison, Trial (as configured),
        Threshold, Suggestions, Trial (one for each remedy), Verdict.

    Returns
    -------
    Diagnosis

    Raises
    ------
    gradcore.data.SourceError
        If the source cannot be read or learned from.
    KeyboardInterrupt
        At Ctrl-C.
    """

    def tell(part: Any) -> Any:
        report(part)
        return part

    task = load(config.source, config.seq_len, target=config.target)
    model = build(config, task)
    start = tell(
        Start(
            config, task.name, task.baseline, task.input_size, task.output_size, task.steps - 1,
            model.flat_params.size, info(),
        )
    )  # fmt: skip
    x, target = task.draw(np.random.default_rng(config.seed), SAMPLES)
    forecast = tell(_forecast(config, model.layers[0], x))
    measurement = tell(_measure(task, model, x, target))
    comparison = tell(_compare(forecast, measurement))
    configured = tell(_train(config, task, "as configured"))
    threshold = tell(_choose_threshold(configured))
    suggestions = tell(_suggest(config, task, x, target))
    trials = [configured]
    for name, changes, max_norm, step_clip in _remedies(config, threshold, suggestions):
        changed = dataclasses.replace(config, **changes)
        trials.append(tell(_train(changed, task, name, max_norm=max_norm, step_clip=step_clip)))
    verdict = tell(_judge(task, forecast, measurement, trials))
    return Diagnosis(start, forecast, measurement, comparison, threshold, suggestions, tuple(trials), verdict)


def build(config: Config, task: Task) -> Sequential:
    """The model. `python_lines` prints the same steps: keep them together."""
    rng = np.random.default_rng(config.seed)
    H = config.hidden
    recurrent = CELLS[config.cell](task.input_size, H, config.layers, rng=rng)
    for name, weight in recurrent.params.items():
        if name.startswith("weight_hh"):
            for gate in weight.reshape(-1, H, H):
                _initialise(gate, config, rng)
    if config.gate_bias is not None:
        for layer in range(config.layers):
            recurrent.params[f"bias_ih_l{layer}"][H : 2 * H] = config.gate_bias
            recurrent.params[f"bias_hh_l{layer}"][H : 2 * H] = 0
    read = () if task.every_step else (LastStep(),)
    return Sequential(recurrent, *read, Linear(H, task.output_size, rng=rng))


def _initialise(gate: Array, config: Config, rng: np.random.Generator) -> None:
    if config.init == "normal":
        init.normal_(gate, std=config.gain / math.sqrt(config.hidden), rng=rng)
    elif config.init == "orthogonal":
        init.orthogonal_(gate, gain=config.gain, rng=rng)
    else:
        if config.init == "eye":
            init.eye_(gate)
        gate *= config.gain


def python_lines(config: Config, task: Task, *, max_norm: float | None = None, step_clip: float | None = None) -> str:
    """Python that does what a trial did, to the same numbers."""
    H = config.hidden
    where = "".join(
        f", {name}={value!r}"
        for name, value in (("seq_len", config.seq_len), ("target", config.target))
        if value is not None
    )
    layers = f", {config.layers}" if config.layers != 1 else ""
    fill = {
        "normal": f"gradcore.init.normal_(gate, std={config.gain!r} / {H} ** 0.5, rng=rng)",
        "orthogonal": f"gradcore.init.orthogonal_(gate, gain={config.gain!r}, rng=rng)",
        "eye": "gradcore.init.eye_(gate)",
    }.get(config.init)
    scale = f"gate *= {config.gain!r}" if config.init in ("default", "eye") and config.gain != 1 else None
    start = [
        "for name, weight in recurrent.params.items():",
        '    if name.startswith("weight_hh"):',
        f"        for gate in weight.reshape(-1, {H}, {H}):",
        *(f"            {line}" for line in (fill, scale) if line),
    ]
    bias = [
        f"for layer in range({config.layers}):  # the {KEEPING.get(config.cell)} gates",
        f'    recurrent.params[f"bias_ih_l{{layer}}"][{H} : {2 * H}] = {config.gate_bias!r}',
        f'    recurrent.params[f"bias_hh_l{{layer}}"][{H} : {2 * H}] = 0',
    ]
    read = "" if task.every_step else "gradcore.LastStep(), "
    clip = "".join(
        f", {name}={value!r}" for name, value in (("max_norm", max_norm), ("step_clip", step_clip)) if value is not None
    )
    optimizer = OPTIMIZERS[config.optimizer].__name__
    return "\n".join(
        [
            "import gradcore",
            "import numpy as np",
            "",
            f"task = gradcore.data.load({config.source!r}{where})",
            f"rng = np.random.default_rng({config.seed})",
            f"recurrent = gradcore.{CELLS[config.cell].__name__}({task.input_size}, {H}{layers}, rng=rng)",
            *(start if fill or scale else []),
            *(bias if config.gate_bias is not None else []),
            f"output = gradcore.Linear({H}, {task.output_size}, rng=rng)",
            f"model = gradcore.Sequential(recurrent, {read}output)",
            f"optimizer = gradcore.optim.{optimizer}(model, lr={config.lr!r})",
            f"batches = task.batches({config.batch}, {config.steps}, seed={config.seed})",
            f"history = gradcore.fit(model, batches, task.loss, optimizer, epochs=1{clip})",
        ]
    )


def _forecast(config: Config, recurrent: Any, x: Array) -> Forecast:
    matrices = []
    for layer in range(config.layers):
        weight = recurrent.params[f"weight_hh_l{layer}"]
        for gate, block in zip(GATES[config.cell], weight.reshape(-1, config.hidden, config.hidden), strict=True):
            eigenvalues = np.linalg.eigvals(block.astype(np.float64))
            name = f"weight_hh_l{layer}" + (f", gate {gate}" if gate else "")
            radius = float(np.abs(eigenvalues).max())
            matrices.append(Matrix(name, radius, spectral.spectral_norm(block), eigenvalues))
    growth = spectral.predict_growth(recurrent, x, horizon=len(x) - 1)
    # A layer also gets the gradient of the layers above it: the fastest of these is what comes to show.
    shown = [max(growth.layers[i:], key=lambda layer: layer.rate) for i in range(config.layers)]
    curves = np.full((config.layers, len(x)), np.nan)
    for row, growing in zip(curves, shown, strict=True):
        with np.errstate(over="ignore"):
            row[len(x) - len(growing.log_norm) :] = np.exp(growing.log_norm[::-1])
    return Forecast(
        tuple(matrices),
        growth.conditions,
        growth.rate,
        growth.factor,
        growth.verdict,
        tuple(layer.rate for layer in shown),
        curves,
        growth.layers,
        tuple(_spectrum(recurrent, x, index) for index in range(config.layers)),
    )


def _spectrum(recurrent: Any, x: Array, index: int) -> Spectrum:
    state_size = recurrent.hidden_size * (2 if isinstance(recurrent, LSTM) else 1)
    k = min(EXPONENTS, state_size)
    # A quarter of the way is left for the states to forget their start, and for the directions to find themselves.
    exponents = spectral.lyapunov_spectrum(recurrent, x[:, :FEW], k=k, transient=len(x) // 4, index=index)
    return Spectrum(exponents, float(exponents[0]), spectral.kaplan_yorke(exponents), state_size)


def _measure(task: Task, model: Sequential, x: Array, target: Array) -> Measurement:
    """The loss of the last step alone: what arrives at earlier ones has come through the recurrence."""
    model.zero_grad()
    y, tape = model.forward(x)
    if task.every_step:
        dy = np.zeros_like(y)
        dy[-1] = (losses.softmax_cross_entropy if task.classes else losses.mse)(y[-1], target[-1])[1]
    else:
        dy = task.loss(y, target)[1]
    model.backward(tape, dy)
    recurrent = tape.tapes[0]
    norms = recurrent.telemetry.dh_norm
    rates = tuple(spectral.measure_growth(recurrent, index=index) for index in range(len(norms)))
    rate, back = max((rate for rate in rates if not math.isnan(rate)), default=math.nan), task.steps - 1
    return Measurement(norms, rates, rate, safe_exp(rate * back), judge(rate, back))


def _compare(forecast: Forecast, measurement: Measurement) -> Comparison:
    return Comparison(
        tuple(
            LayerRates(layer.name, layer.rate, layer.upper_bound, layer.rate_with_above, measured)
            for layer, measured in zip(forecast.layers, measurement.rates, strict=True)
        )
    )


def _suggest(config: Config, task: Task, x: Array, target: Array) -> Suggestions:
    """The gain that keeps the gradient's norm, and for gated cells the bias of the gate that keeps the state."""
    found: list[tuple[str, dict[str, Any], str]] = []
    missing = []
    try:
        factor = meanfield.suggest_gain(build(config, task).layers[0], x[:, :FEW])
    except ValueError:
        missing.append("No gain from 1/64 to 64 times the configured one is forecast to keep the gradient's norm.")
    else:
        gain = _three_digits(config.gain * factor)
        if abs(factor - 1) < SAME_GAIN:
            missing.append("The configured gain is the one forecast to keep the gradient's norm.")
        else:
            reason = f"in place of {config.gain:g}, chosen so that the gradient's norm lasts"
            found.append((f"gain {gain:g}", {"gain": gain}, reason))
    if config.cell in KEEPING:
        bias = _three_digits(meanfield.suggest_bias(config.cell, task.steps))
        reason = f"with which such a gate alone keeps 1/e of the state over {task.steps} steps"
        found.append((f"{KEEPING[config.cell]}-gate bias {bias:g}", {"gate_bias": bias}, reason))
    tried = []
    for name, changes, reason in found:
        model = build(dataclasses.replace(config, **changes), task)
        predicted = spectral.predict_growth(model.layers[0], x, horizon=len(x) - 1).rate
        tried.append(Suggestion(name, changes, reason, predicted, _measure(task, model, x, target).rate))
    return Suggestions(tuple(tried), tuple(missing))


def _train(
    config: Config, task: Task, name: str, *, max_norm: float | None = None, step_clip: float | None = None
) -> Trial:
    model = build(config, task)
    optimizer = OPTIMIZERS[config.optimizer](model, lr=config.lr)
    monitor = GradientMonitor()
    step_clipped: list[bool] = []

    def count(record: StepRecord) -> None:
        step_clipped.append(bool(record.tape.tapes[0].telemetry.n_clipped.any()))

    history = fit(
        model,
        task.batches(config.batch, config.steps, seed=config.seed),
        task.loss,
        optimizer,
        epochs=1,
        max_norm=max_norm,
        step_clip=step_clip,
        monitor=monitor,
        callbacks=[count],
    )
    if history.interrupted:
        raise KeyboardInterrupt
    norms = history.grad_norm
    finite = np.isfinite(norms) & np.isfinite(history.loss)
    return Trial(
        name,
        config,
        max_norm,
        step_clip,
        float(history.loss[-max(config.steps // 10, 1) :].mean()),
        float(norms[np.isfinite(norms)].max(initial=0.0)),
        int((history.clipped | step_clipped).sum()),
        int((~finite).sum()),
        float(history.seconds[-1]),
        tuple(monitor.findings),
        history,
    )


def _choose_threshold(trial: Trial) -> Threshold:
    """Clip above the usual norms; where these are explosions themselves, at the norm of what has passed no time step.

    The output layer's gradient passes no time step, so that nothing has blown it up: twice its median norm is the most
    that is asked for. A gradient step is clipped at the norm with which a sequence's gradient typically enters.
    """
    history = trial.history
    start = history.loss[0] if math.isfinite(history.loss[0]) else math.inf
    departed = np.flatnonzero(~(history.loss < DEPARTED * start))
    seen = min([math.ceil(EARLY * len(history)), *departed[:1]])
    seen = max(seen, 1)
    output = _usable(np.hypot(*(history.per_array[name][:seen] for name in list(history.per_array)[-2:])))
    norms = _usable(history.grad_norm[:seen])
    entering = _usable(list(history.dh_last.values())[-1][:seen])
    quantiles = tuple(map(float, np.quantile(norms, [0.05, 0.5, 0.95]))) if norms.size else (math.nan,) * 3
    output_norm = float(np.median(output)) if output.size else math.nan
    step_clip = float(np.median(entering)) / math.sqrt(trial.config.batch) if entering.size else 1.0
    if not (norms.size and output.size):
        max_norm, reason = 1.0, "the usual value, since no early norm was finite and above zero"
    elif quantiles[2] <= 2 * output_norm:
        max_norm, reason = quantiles[2], "the 95 % quantile of the norms seen, so that only spikes are cut"
    else:
        max_norm = 2 * output_norm
        reason = "twice the median norm of the output layer's gradient, which no time step has blown up"
    return Threshold(
        _three_digits(max_norm),
        _three_digits(step_clip),
        reason,
        seen,
        quantiles,
        output_norm,
    )


def _usable(norms: Array) -> Array:
    return norms[np.isfinite(norms) & (norms > 0)]


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _remedies(
    config: Config, threshold: Threshold, suggestions: Suggestions
) -> list[tuple[str, dict[str, Any], float | None, float | None]]:
    """Name, changes of the configuration, max_norm and step_clip of each trial."""
    remedies: list[tuple[str, dict[str, Any], float | None, float | None]] = [
        (f"norm clipping at {threshold.max_norm:g}", {}, threshold.max_norm, None),
        (f"step clipping at {threshold.step_clip:g}", {}, None, threshold.step_clip),
    ]
    if (config.init, config.gain) != ("orthogonal", 1.0):
        remedies.append(("orthogonal initialisation", {"init": "orthogonal", "gain": 1.0}, None, None))
    remedies += [(suggestion.name, suggestion.changes, None, None) for suggestion in suggestions.tried]
    if config.cell == "rnn":
        remedies.append(("LSTM instead of RNN", {"cell": "lstm", "init": "default", "gain": 1.0}, None, None))
    return remedies


def _judge(task: Task, forecast: Forecast, measurement: Measurement, trials: list[Trial]) -> Verdict:
    configured, *remedies = trials
    back = task.steps - 1
    word = {"explodes": "explodes", "vanishes": "vanishes", "stable": "neither explodes nor vanishes"}[
        measurement.verdict
    ]
    finding = (
        f"The gradient {word}: on its way back it changes by a factor of {math.exp(measurement.rate):.3f} a step "
        f"(forecast {math.exp(forecast.rate):.3f}), {measurement.factor:.2g} over {back} steps, and the training as "
        f"configured ended at a loss of {configured.loss:.3g} (the best constant answer has {task.baseline:.3g}) after "
        f"norms of up to {configured.largest_norm:.2g}."
    )
    sound = [trial for trial in trials if math.isfinite(trial.loss)]
    lowest = min(sound, key=lambda trial: trial.loss, default=configured)
    improved = sound and not lowest.loss > (1 - WORTHWHILE) * configured.loss
    best = lowest if improved else configured
    if not sound:
        advice = "No trial kept a finite loss: lower the learning rate first, then look again."
    elif lowest.loss > (1 - WORTHWHILE) * task.baseline:
        advice = (
            f"In {configured.config.steps} steps no trial got below the constant answer (the lowest loss is "
            f"{lowest.loss:.3g}): give them more steps before choosing."
        )
    elif not improved:
        advice = f"None of {len(remedies)} remedies reached a clearly lower loss: keep the training as it is."
    else:
        share = best.clipped_steps / best.config.steps
        clipped = f", {share:.0%} of the steps clipped" if best.clipped_steps else ""
        advice = (
            f"Of {len(remedies)} remedies {best.name} did best, with a loss of {best.loss:.3g} and norms of up to "
            f"{best.largest_norm:.2g}{clipped}."
        )
    lines = python_lines(best.config, task, max_norm=best.max_norm, step_clip=best.step_clip)
    return Verdict(finding, advice, best.name, lines)
