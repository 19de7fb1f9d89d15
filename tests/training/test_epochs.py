"""What `fit` does beside the steps: forms of batches, carried states, validation, early stopping, going on."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_checkpoint import same

import gradcore
from gradcore import losses, optim
from gradcore.training import epochs
from gradcore.training.monitor import GradientMonitor

MSE = losses.mse


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(seed: int = 0, n: int = 3) -> tuple[Any, list[Any]]:
    r = rng(seed)
    model = gradcore.Sequential(
        gradcore.LSTM(3, 5, 2, dropout=0.3, rng=seed), gradcore.LastStep(), gradcore.Linear(5, 2, rng=seed)
    )
    return model, [(r.standard_normal((7, 4, 3), np.float32), r.standard_normal((4, 2), np.float32)) for _ in range(n)]


def sequences(seed: int = 0, n: int = 3, *, batch_first: bool = False) -> tuple[Any, list[Any]]:
    """A model with an output at each step, and batches."""
    r = rng(seed)
    model = gradcore.Sequential(
        gradcore.GRU(3, 5, batch_first=batch_first, dtype=np.float64, rng=seed),
        gradcore.Linear(5, 2, dtype=np.float64, rng=seed),
    )
    lead = (4, 6) if batch_first else (6, 4)
    return model, [(r.standard_normal((*lead, 3)), r.standard_normal((*lead, 2))) for _ in range(n)]


# ---- forms of a batch ------------------------------------------------------------------------------------------------


def recorded(seen: list[dict[str, Any]], *names: str) -> Any:
    """A loss with arguments of these names, which writes down what it is given."""
    namespace: dict[str, Any] = {"seen": seen, "mse": MSE}
    arguments = "".join(f", {name}=None" for name in names)
    given = ", ".join(f"{name}={name}" for name in names)
    exec(f"def loss(y, target{arguments}):\n    seen.append(dict({given}))\n    return mse(y, target)", namespace)
    return namespace["loss"]


@pytest.mark.parametrize("takes", [(), ("lengths",), ("mask", "weight"), ("lengths", "mask", "weight")])
def test_the_loss_gets_what_it_takes(takes: tuple[str, ...]) -> None:
    model, [(x, target), *_] = sequences()
    seen: list[dict[str, Any]] = []
    given = {"lengths": [6, 2, 3, 1], "mask": np.ones((6, 4), bool), "weight": np.ones(6)}
    batch = {"x": x, "target": target} | {name: given[name] for name in given if name in takes or name == "lengths"}
    gradcore.fit(model, [batch], recorded(seen, *takes), optim.SGD(model), epochs=1)
    assert same(seen, [{name: given[name] for name in takes}])


def test_a_loss_is_given_everything_if_it_says_so() -> None:
    model, [(x, target), *_] = sequences()
    seen = []

    def loss(y: Any, target: Any, **options: Any) -> Any:
        seen.append(sorted(options))
        return MSE(y, target, **options)

    batch = {"x": x, "target": target, "mask": np.ones((6, 4), bool), "lengths": [1, 2, 3, 4], "weight": None}
    step = gradcore.training_step(model, batch, loss, optim.SGD(model))
    assert seen == [["lengths", "mask"]]
    assert step.loss == MSE(step.y, target, lengths=[1, 2, 3, 4])[0]


def plain(y: Any, target: Any) -> Any:
    return MSE(y, target)


@pytest.mark.parametrize("name", ["mask", "weight"])
def test_a_loss_without_masks_refuses_them_before_anything_is_computed(name: str) -> None:
    model, [(x, target), *_] = sequences()
    before = model.state_dict()
    with pytest.raises(TypeError, match=f"{name}: the batch has one, and the loss takes no argument of this name"):
        gradcore.fit(model, [{"x": x, "target": target, name: np.ones(6)}], plain, optim.SGD(model), epochs=1)
    assert same(model.state_dict(), before)


def test_padding_has_no_part_in_the_loss() -> None:
    """The loss of padded sequences is the mean over all their own steps, and the padding has no gradient."""
    model, [(x, target), *_] = sequences()
    lengths = [6, 2, 0, 3]
    step = gradcore.training_step(model, (x, target, lengths), MSE, optim.SGD(model))
    y = model.forward(x, lengths=lengths)[0]
    errors = np.concatenate([(y - target)[:n, b] for b, n in enumerate(lengths)])
    step_before = sequences()[0].forward(x, lengths=lengths)[0]
    assert step.dy[2:, 1].max() == step.dy[:, 2].max() == 0
    np.testing.assert_allclose(
        step.loss, np.mean((np.concatenate([(step_before - target)[:n, b] for b, n in enumerate(lengths)])) ** 2)
    )
    assert errors.size == 22


def test_lengths_of_a_batch_first_model() -> None:
    """With as many steps as sequences, axes that are mistaken do not show in the shapes."""
    r = rng()
    x, target, lengths = r.standard_normal((4, 4, 3)), r.standard_normal((4, 4, 2)), [1, 4, 2, 3]
    mask = rng(1).random((4, 4)) < 0.7
    found = []
    for first in (False, True):
        model, _ = sequences(batch_first=first)
        axes = (1, 0, 2) if first else (0, 1, 2)
        for its_mask in (None, mask.T if first else mask, (mask.T if first else mask)[..., None]):
            batch = {"x": x.transpose(axes), "target": target.transpose(axes), "lengths": lengths, "mask": its_mask}
            found.append(gradcore.training_step(model, batch, MSE, optim.SGD(model, lr=0.0)).loss)
    np.testing.assert_allclose(found[:3], found[3:], rtol=1e-12)
    assert found[1] == found[2] != found[0]


def test_lengths_are_not_for_the_loss_of_one_answer_per_sequence() -> None:
    """With 4 steps, 4 sequences and 4 features nothing in the shapes tells them apart."""
    model = gradcore.Sequential(gradcore.GRU(3, 4, rng=0), gradcore.LastStep())
    x, target, lengths = rng().standard_normal((4, 4, 3), np.float32), np.zeros((4, 4), np.float32), [4, 1, 2, 3]
    step = gradcore.training_step(model, (x, target, lengths), MSE, optim.SGD(model))
    assert step.loss == MSE(step.y, target)[0]
    seen: list[Any] = []

    def demands(y: Any, target: Any, lengths: Any) -> Any:
        seen.append(lengths)
        return MSE(y, target)

    gradcore.training_step(model, (x, target, lengths), demands, optim.SGD(model))
    assert seen == [lengths]


@pytest.mark.parametrize("batch", [{}, {"x": 1}, {"x": 1, "target": 2, "masks": 3}, {"target": 2}])
def test_bad_dicts(batch: Any) -> None:
    model, _ = problem()
    with pytest.raises(ValueError, match="batches: expected a dict with x, target and any of lengths, reset, mask"):
        gradcore.fit(model, [batch], MSE, optim.SGD(model), epochs=1)


def test_the_monitor_judges_the_loss_with_its_mask() -> None:
    """The monitor asks the loss again, which without the mask would meet the NaN of the target."""
    model, batches = sequences()
    mask = np.ones((6, 4), bool)
    mask[2:4] = False
    masked = [{"x": x, "target": np.where(mask[..., None], target, np.nan), "mask": mask} for x, target in batches]
    monitor = GradientMonitor()
    history = gradcore.fit(model, masked, MSE, optim.SGD(model, lr=0.1), epochs=40, monitor=monitor)
    assert np.isfinite(history.loss).all()
    assert monitor._run.pure
    assert monitor._run.trials
    assert not [finding for finding in monitor.findings if "nan" in finding.kind]


# ---- stateful --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_truncated_backpropagation_is_the_loop_by_hand(cell: str) -> None:
    x, target = rng().standard_normal((20, 3, 2)), rng(1).standard_normal((20, 3, 1))
    chunks = [(x[t : t + 5], target[t : t + 5]) for t in range(0, 20, 5)]
    models = [
        gradcore.Sequential(
            getattr(gradcore, cell)(2, 4, 2, dtype=np.float64, rng=0),
            gradcore.GRU(4, 3, dtype=np.float64, rng=1),
            gradcore.Linear(3, 1, dtype=np.float64, rng=2),
        )
        for _ in range(2)
    ]
    history = gradcore.fit(
        models[0], chunks, MSE, optim.Adam(models[0]), epochs=2, stateful=True, max_norm=0.1, validation=chunks
    )
    optimizer = optim.Adam(models[1])
    for epoch in range(2):
        state, held_out = None, models[1].initial_state(3)
        for part, goal in chunks:
            models[1].zero_grad()
            y, tape = models[1].forward(part, state)
            models[1].backward(tape, MSE(y, goal)[1])
            optimizer.step(max_norm=0.1)
            state = tape.state
        errors = []
        for part, goal in chunks:
            y, held_out = models[1](part, held_out)
            errors.append(MSE(y, goal)[0])
        np.testing.assert_allclose(history.validation_loss[epoch], np.mean(errors), rtol=1e-14)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_a_state_that_is_not_finite_is_not_carried() -> None:
    model = gradcore.LSTM(2, 3, dtype=np.float64, rng=0)
    x = rng().standard_normal((4, 5, 3, 2))
    x[1, 2, 1] = np.nan  # sequence 1 of the second batch
    states = []

    class Look(gradcore.Hook):
        def after_loss(self, step: Any) -> None:
            states.append(step.options.get("state"))

    gradcore.fit(
        model,
        [(part, np.zeros((5, 3, 3))) for part in x],
        MSE,
        optim.SGD(model),
        epochs=1,
        stateful=True,
        hooks=[Look()],
    )
    assert states[0] is None
    for part in states[2]:
        assert (part[:, 1] == 0).all()
        assert (part[:, [0, 2]] != 0).all()
    assert all((part != 0).all() for state in (states[1], states[3]) for part in state)


def test_a_sequence_begins_from_zeros_in_all_layers() -> None:
    h, c, other = np.ones((1, 3, 2)), np.ones((1, 3, 2)), np.ones((4, 3, 5), np.float32)
    other[2, 1, 0], c[0, 2, 1] = np.inf, np.nan
    (got_h, got_c), got_other = epochs._usable(((h, c), other))
    for part, like in ((got_h, h), (got_c, c), (got_other, other)):
        assert part.dtype == like.dtype
        assert (part == np.array([1, 0, 0])[:, None]).all()
    assert epochs._usable((h, (h,))) == (h, (h,))


def test_a_model_without_a_state() -> None:
    model = gradcore.Linear(3, 2)
    with pytest.raises(ValueError, match="stateful: no layer of this model has a state"):
        gradcore.fit(model, [], MSE, optim.SGD(model), epochs=1, stateful=True)


# ---- validation ------------------------------------------------------------------------------------------------------


def largest_error(y: Any, target: Any) -> float:
    return float(np.abs(y - target).max())


def test_validation_is_inference_averaged_over_terms() -> None:
    model, batches = problem()
    x, target = batches[0]
    held_out = [(x[:, :3], target[:3]), (x[:, 3:], target[3:])]  # of different sizes
    by_epoch = []

    class Look(gradcore.Hook):
        def after_epoch(self, epoch: int, history: Any) -> None:
            y = model(x)
            parts = [largest_error(model(a), b) for a, b in held_out]
            by_epoch.append((MSE(y, target)[0], (3 * parts[0] + parts[1]) / 4, np.abs(y - target).mean()))
            assert len(history.validation_loss) == epoch + 1  # hooks see it

    history = gradcore.fit(
        model, batches, MSE, optim.Adam(model), epochs=3, validation=lambda: iter(held_out),
        metrics=[largest_error, losses.mae], hooks=[Look()],
    )  # fmt: skip
    found = np.transpose([history.validation_loss, history.metrics["largest_error"], history.metrics["mae"]])
    np.testing.assert_allclose(found, by_epoch, rtol=1e-6)
    assert history.validation_epoch.tolist() == [0, 1, 2]
    other, batches = problem()
    gradcore.fit(other, batches, MSE, optim.Adam(other), epochs=3)
    assert same(other.state_dict(), model.state_dict())  # it draws no dropout masks and changes nothing


def test_validation_of_padded_and_masked_sequences() -> None:
    model, batches = sequences()
    mask = rng(3).random((6, 4)) < 0.5
    held_out = [
        {"x": batches[0][0], "target": batches[0][1], "lengths": [6, 1, 2, 0]},
        {"x": batches[1][0], "target": batches[1][1], "lengths": [3, 3, 3, 3], "mask": mask},
    ]
    metrics = {"mae": losses.mae, "plain": lambda y, t: float(np.abs(y - t).mean())}
    history = gradcore.fit(model, batches, MSE, optim.SGD(model), epochs=1, validation=held_out, metrics=metrics)
    errors, unmasked = [], []
    for batch in held_out:
        y = model(batch["x"], lengths=batch["lengths"])
        alive = np.arange(6)[:, None] < np.array(batch["lengths"])
        errors.append((y - batch["target"])[alive & batch.get("mask", True)])
        unmasked.append(np.abs(y - batch["target"]))
    errors = np.concatenate(errors)
    np.testing.assert_allclose(history.validation_loss, [np.square(errors).mean()], rtol=1e-12)
    np.testing.assert_allclose(history.metrics["mae"], [np.abs(errors).mean()], rtol=1e-12)
    np.testing.assert_allclose(history.metrics["plain"], [np.mean(unmasked)], rtol=1e-12)


def test_a_recurrent_layer_alone_validates() -> None:
    model = gradcore.LSTM(3, 2, rng=0)
    batch = np.ones((5, 2, 3), np.float32), np.zeros((5, 2, 2), np.float32)
    history = gradcore.fit(model, [batch], MSE, optim.SGD(model, lr=0.0), epochs=1, validation=[batch])
    assert history.validation_loss.tolist() == history.loss.tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": {}}, ValueError, "metrics: expected validation batches"),
        ({"validation": 3}, TypeError, "validation: expected an iterable or a callable, got int"),
        ({"validation": iter([])}, ValueError, "validation: an iterator can be consumed only once"),
        ({"validation": []}, ValueError, "validation: epoch 0 produced no batches"),
        ({"validation": [1]}, ValueError, r"validation: expected \(x, target\)"),
        ({"validation": [], "metrics": 3}, TypeError, "metrics: expected a dict or a list of functions, got int"),
        ({"validation": [], "metrics": [3]}, TypeError, r"metrics\[0\]: expected a callable, got int"),
        ({"validation": [], "metrics": {"a": 3}}, TypeError, r"metrics\['a'\]: expected a callable, got int"),
        ({"validation": [], "metrics": {3: len}}, TypeError, "metrics: expected text as names, got 3"),
        (
            {"validation": [], "metrics": [len, len]},
            ValueError,
            r"metrics\[1\]: expected a function with a name of its own",
        ),
        (
            {"validation": [], "metrics": [functools.partial(MSE)]},
            ValueError,
            "expected a function with a name of its own",
        ),
        ({"early_stopping": 3}, TypeError, "early_stopping: expected an EarlyStopping, got int"),
        ({"early_stopping": gradcore.EarlyStopping()}, ValueError, "early_stopping.monitor: expected 'loss'"),
        ({"stateful": 3}, ValueError, "stateful: expected True or False"),
        ({"resume": True}, ValueError, "resume: expected a checkpoint to go on from"),
        ({"checkpoint": 3}, TypeError, "checkpoint: expected a path, got int"),
        ({"checkpoint": "no/such/folder/x"}, FileNotFoundError, "checkpoint: there is no folder"),
        ({"checkpoint": "x", "rng": 3}, TypeError, "rng"),
        ({"checkpoint": "x", "rng": [3]}, TypeError, "rng: expected a numpy.random.Generator or several, got int"),
    ],
)
def test_bad_options(options: Any, error: Any, message: str) -> None:
    model, batches = problem()
    with pytest.raises(error, match=message):
        gradcore.fit(model, batches, MSE, optim.SGD(model), epochs=2, **options)


def test_ctrl_c_breaks_off_a_validation() -> None:
    model, batches = problem()

    def held_out() -> Any:
        yield batches[0]
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**6):
            yield batches[0]

    history = gradcore.fit(model, batches, MSE, optim.SGD(model), epochs=2, validation=held_out)
    assert history.interrupted
    assert len(history) == 3
    assert history.validation_loss.size == 0


# ---- early stopping --------------------------------------------------------------------------------------------------


class Judge:
    """A metric that gives the numbers it is told, one for each epoch."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = iter(numbers)

    def __call__(self, y: Any, target: Any) -> float:
        return float(next(self.numbers))


@pytest.mark.parametrize(
    ("numbers", "options", "n", "best"),
    [
        ([5, 4, 3, 2, 1, 0], {"patience": 2}, 6, 5),
        ([5, 4, 6, 7, 1, 0], {"patience": 2}, 4, 1),
        ([5, 4, 6, 3, 7, 8], {"patience": 2}, 6, 3),
        ([5, 4.9, 4.8, 4.7, 3, 2], {"patience": 2, "min_delta": 0.25}, 3, 0),
        ([1, 2, 3, 2.5, 3, 9], {"patience": 3, "mode": "max"}, 6, 5),
        ([1, 2, 3, 2.5, 3, 2], {"patience": 3, "mode": "max"}, 6, 2),
        ([np.nan, 4, np.nan, 5, np.nan, 1], {"patience": 3}, 5, 1),
        ([np.nan] * 6, {"patience": 3}, 3, None),
        ([1, 1, 0, 0, 0, 0], {"patience": 0}, 2, 0),
        ([-np.inf, 1, 0, 0, 0, 0], {"patience": 5}, 6, 0),
    ],
)
def test_early_stopping_leaves_the_best_weights(numbers: Any, options: Any, n: int, best: int | None) -> None:
    model, batches = problem()
    weights = []

    class Look(gradcore.Hook):
        def after_epoch(self, epoch: int, history: Any) -> None:
            weights.append(model.state_dict())

    stopping = gradcore.EarlyStopping("judge", **options)
    for _ in range(2):  # a second run begins afresh
        model.load_state_dict(problem()[0].state_dict())
        weights.clear()
        history = gradcore.fit(
            model, batches, MSE, optim.SGD(model), epochs=6, validation=[batches[0]],
            metrics={"judge": Judge(numbers)}, early_stopping=stopping, hooks=[Look()],
        )  # fmt: skip
        assert len(history.validation_loss) == n
        assert stopping.best_epoch == best
        assert stopping.stopped or n == 6
        assert same(model.state_dict(), weights[-1 if best is None else best])


def test_early_stopping_watches_the_losses() -> None:
    model, batches = problem()
    stopping = gradcore.EarlyStopping("loss", patience=1)
    history = gradcore.fit(model, batches, MSE, optim.SGD(model, lr=5.0), epochs=50, early_stopping=stopping)
    means = [history.loss[history.epoch == epoch].mean() for epoch in range(history.epoch[-1] + 1)]
    assert 1 < len(means) < 50
    assert (np.diff(means[:-1]) < 0).all()
    assert means[-1] >= means[-2] == stopping.best


@pytest.mark.parametrize(
    "change",
    [{"best": "x"}, {"best_epoch": -1}, {"waited": 0.5}, {"stopped": 2}, {"weights": 3}, {"more": 1}],
)
def test_another_state_of_early_stopping_is_refused(change: Any) -> None:
    stopping = gradcore.EarlyStopping()
    stopping.update(1.0, gradcore.Linear(2, 1))
    before = stopping.state_dict()
    with pytest.raises((KeyError, TypeError, ValueError)):
        stopping.load_state_dict(before | change)
    assert same(stopping.state_dict(), before)
    assert repr(stopping) == "EarlyStopping(monitor='validation_loss', patience=5, min_delta=0, mode='min')"


# ---- going on from a checkpoint --------------------------------------------------------------------------------------


class Noise(gradcore.Hook):
    """A hook with a generator of its own."""

    def __init__(self) -> None:
        self.rng = rng(9)

    def after_backward(self, step: Any) -> None:
        step.model.flat_grads[...] += np.float32(0.01) * self.rng.standard_normal(
            step.model.flat_grads.size, np.float32
        )

    def state_dict(self) -> Any:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: Any) -> None:
        self.rng.bit_generator.state = state["rng"]


class Run:
    """Everything that a run of the user's consists of, built anew as in a new process."""

    def __init__(self, seed: int = 0) -> None:
        self.model, data = problem(seed)
        self.rng = rng(seed + 5)
        self.optimizer = optim.Adam(self.model, lr=gradcore.schedule.cosine(0.01, 0.001, 60))
        self.monitor, self.threshold = GradientMonitor(), gradcore.threshold.ZClip(warmup_steps=4, z_thresh=0.5)
        self.stopping = gradcore.EarlyStopping(patience=7)
        self.hooks = [gradcore.GradScaler(growth_interval=5), Noise(), gradcore.AdaptiveClip(0.05)]
        _, data = problem(77)
        self.data, self.held_out = data, problem(78)[1]

    def batches(self) -> Any:
        for i in self.rng.permutation(len(self.data)):
            yield self.data[i]

    def fit(self, epochs: int, **options: Any) -> gradcore.History:
        return gradcore.fit(
            self.model, self.batches, MSE, self.optimizer, epochs=epochs, max_norm=self.threshold, hooks=self.hooks,
            monitor=self.monitor, validation=self.held_out, early_stopping=self.stopping,
            metrics=[losses.mae], rng=self.rng, **options,
        )  # fmt: skip

    def everything(self, history: gradcore.History) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "monitor": self.monitor, "threshold": self.threshold}
        parts |= {"stopping": self.stopping, "scaler": self.hooks[0], "noise": self.hooks[1]}
        found = {name: part.state_dict() for name, part in parts.items()}
        found["generators"] = [g.bit_generator.state for g in (*self.model.generators(), self.rng)]
        return found | {"history": {k: v for k, v in history.state_dict().items() if k != "seconds"}}


@pytest.mark.parametrize("again", ["new objects", "the same objects"])
def test_a_run_that_goes_on_is_the_run_that_was_never_broken_off(tmp_path: Path, again: str) -> None:
    pytest.importorskip("safetensors")
    whole = Run()
    history = whole.fit(7)
    path = tmp_path / "run.safetensors"
    broken = Run()
    for n in (2, 3, 3, 7):
        if again == "new objects" and n > 2:
            broken = Run(seed=n)  # whose weights and generators are others
        found = broken.fit(n, checkpoint=path, resume=True)
        assert found.epoch.max(initial=-1) == n - 1
    assert same(broken.everything(found), whole.everything(history))
    assert (np.diff(found.seconds) >= 0).all()
    assert broken.fit(7, checkpoint=path, resume=True).loss.tolist() == history.loss.tolist()


def test_a_run_whose_process_dies_between_two_epochs(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    whole, path = Run(), tmp_path / "run.safetensors"
    history = whole.fit(4)

    def die(step: Any) -> None:
        if step.epoch == 2:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        Run().fit(4, checkpoint=path, callbacks=[die])
    resumed = Run(seed=3)
    found = resumed.fit(4, checkpoint=path, resume=True)
    assert same(resumed.everything(found), whole.everything(history))


def test_a_run_that_was_stopped_early_stays_stopped(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "run.safetensors"

    def go(seed: int, **options: Any) -> Any:
        model, batches = problem(seed)
        stopping = gradcore.EarlyStopping("loss", patience=1)
        history = gradcore.fit(
            model,
            batches,
            MSE,
            optim.SGD(model, lr=5.0),
            epochs=50,
            early_stopping=stopping,
            checkpoint=path,
            **options,
        )
        return model.state_dict(), history.loss, stopping.state_dict()

    first = go(0)
    assert len(first[1]) < 150
    assert same(go(1, resume=True), first)
    model, _ = problem(3)
    gradcore.load_checkpoint(path, model=model)  # has the newest weights, not the best
    assert not same(model.state_dict(), first[0])


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "run.safetensors"
    model, batches = problem()
    gradcore.fit(model, batches, MSE, optim.SGD(model), epochs=1, checkpoint=path, hooks=[gradcore.GradScaler()])
    before = model.state_dict()
    options: Any = {"epochs": 2, "checkpoint": path, "resume": True}
    with pytest.raises(ValueError, match=r"resume: .*is of another run than this one: it lacks rng_0 and has hook_0"):
        gradcore.fit(model, batches, MSE, optim.SGD(model), rng=rng(), **options)
    with pytest.raises(ValueError, match="optimizer: state_dict: expected the state of Adam, got 'SGD'"):
        gradcore.fit(model, batches, MSE, optim.Adam(model), hooks=[gradcore.GradScaler()], **options)
    gradcore.save_checkpoint(path, model=model)
    with pytest.raises(ValueError, match="it lacks epochs and lacks history and lacks optimizer"):
        gradcore.fit(model, batches, MSE, optim.Adam(model), **options)
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"not a gradcore checkpoint.*the checkpoint before it is"):
        gradcore.fit(model, batches, MSE, optim.Adam(model), **options)
    assert same(model.state_dict(), before)


def test_a_model_without_a_state_dict_is_refused_before_the_first_step(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")

    class Model:
        def forward(self) -> None: ...
        def backward(self) -> None: ...
        def zero_grad(self) -> None: ...

    optimizer = optim.SGD([(np.ones(1), np.ones(1))])
    for options in ({"checkpoint": tmp_path / "x"}, {"early_stopping": gradcore.EarlyStopping("loss")}):
        with pytest.raises(TypeError, match="Model has no state_dict and load_state_dict"):
            gradcore.fit(Model(), [], MSE, optimizer, epochs=1, **options)


# ---- the history -----------------------------------------------------------------------------------------------------


def test_a_history_with_validations_in_json() -> None:
    history = gradcore.History()
    history.append(1.0, 1.0)
    history.append_validation(0.5, {"a": np.nan})
    history.append_validation(0.4, {"b": 2.0}, epoch=3)
    back = gradcore.History.from_json(history.to_json())
    assert same(back.state_dict(), history.state_dict())
    back.append_validation(0.3, {"a": 1.0}, epoch=4)
    np.testing.assert_array_equal(back.metrics["a"], [np.nan, np.nan, 1.0])
    np.testing.assert_array_equal(back.metrics["b"], [np.nan, 2.0, np.nan])
    assert back.validation_epoch.tolist() == [0, 3, 4]
    assert "validation loss" in back._repr_html_()
    assert len(back) == 1


def test_the_plot_shows_the_validation_loss_at_the_ends_of_epochs() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    history = gradcore.History()
    history.append_validation(9.0, epoch=0)  # without a step
    for epoch in (1, 2):
        for loss in (0.9, 0.8):
            history.append(loss, 1.0, epoch=epoch)
        history.append_validation(0.7 / epoch, epoch=epoch)
    upper, _ = history.plot(figure.subplots(2, 1))
    x, y = upper.get_lines()[1].get_data()
    np.testing.assert_array_equal(x, [1, 3])
    np.testing.assert_array_equal(y, [0.7, 0.35])
