"""Averaged weights: the formula, exchange with the model, runs, checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import Array, relative_error, same_bits

import gradcore
from gradcore import optim, reference
from gradcore.optim import EMA

pytestmark = pytest.mark.kernels
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def walk(model: Any, steps: int, seed: int = 0) -> Any:
    """Parameters that change, step by step."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        model.flat_params[...] += rng.standard_normal(model.flat_params.size)
        yield model.flat_params.astype(np.float64)


@each_dtype
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999, 1.0])
def test_100_updates_agree_with_the_twin(decay: float, warmup: bool, dtype: Any) -> None:
    model = gradcore.Linear(70, 130, dtype=dtype, rng=0)  # more than a block
    ema, want = EMA(model, decay, warmup=warmup), model.flat_params.astype(np.float64)
    for t, p in enumerate(walk(model, 100)):
        factor = min(decay, (1 + t) / (10 + t)) if warmup else decay
        assert ema.decay == factor
        ema.update()
        reference.ema(want, p, factor)
    assert ema.n_updates == 100
    kept = model.flat_params.copy()
    with ema.applied():
        assert relative_error(model.flat_params, want) <= (1e-5 if dtype == np.float32 else 1e-13)
    assert same_bits(model.flat_params, kept)


@pytest.mark.peers
def test_the_average_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    model = gradcore.Linear(7, 5, dtype=np.float64, rng=0)
    other = torch.nn.Linear(7, 5, dtype=torch.float64)
    averaged = torch.optim.swa_utils.AveragedModel(other, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))

    def give() -> None:
        other.load_state_dict({name: torch.tensor(a) for name, a in model.state_dict().items()})
        averaged.update_parameters(other)

    give()  # its first update copies
    ema = EMA(model, 0.9)
    for _ in walk(model, 20):
        ema.update()
        give()
    with ema.applied():
        for name, p in averaged.module.named_parameters():
            assert relative_error(model.params[name], p.detach().numpy()) < 1e-10


def test_the_bits_are_the_same_for_any_number_of_threads(
    with_thread_counts: Callable[[Callable[[], Any]], list[Any]],
) -> None:
    def run() -> bytes:
        model = gradcore.Linear(300, 501, rng=0)
        ema = EMA(model, 0.9)
        for _ in walk(model, 3):
            ema.update()
        average: Array = ema.state_dict()["average"]
        return average.tobytes()

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


def test_a_weight_that_is_not_finite_shows() -> None:
    model = gradcore.Linear(2, 2, dtype=np.float64, rng=0)
    ema = EMA(model)
    model.flat_params[1:3] = np.nan, np.inf
    ema.update()
    average = ema.state_dict()["average"]
    assert np.isnan(average[1])
    assert average[2] == np.inf
    assert np.isfinite(average[[0, 3]]).all()


def trained(epochs: int, ema: bool = True, **options: Any) -> tuple[Any, Any, gradcore.History]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 8, 3))
    batches = [(each, each @ np.array([[1.0], [2.0], [3.0]]) + rng.standard_normal((8, 1))) for each in x]
    model = gradcore.Linear(3, 1, dtype=np.float64, rng=0)
    hook = EMA(model, 0.9)
    hooks = [hook] if ema else []
    history = gradcore.fit(
        model, batches, gradcore.losses.mse, optim.SGD(model, lr=0.1), epochs=epochs, hooks=hooks, **options
    )
    return model, hook, history


def test_a_run_with_it_is_the_run_without_and_averages_every_step() -> None:
    model, ema, history = trained(3)
    assert ema.n_updates == len(history) == 18
    assert same_bits(model.flat_params, trained(3, ema=False)[0].flat_params)
    assert trained(3, accumulate=2)[1].n_updates == 9


def test_a_skipped_step_is_no_update() -> None:
    model = gradcore.Linear(2, 1, dtype=np.float64, rng=0)
    ema, optimizer = EMA(model), optim.SGD(model)
    for value in (1.0, np.nan, 1.0):
        batch = np.full((3, 2), value), np.zeros((3, 1))
        gradcore.training_step(model, batch, gradcore.losses.mse, optimizer, hooks=[ema])
    assert (ema.n_updates, optimizer.n_skipped) == (2, 1)


def test_a_resumed_run_has_its_average(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    _, want, _ = trained(5)
    trained(2, checkpoint=tmp_path / "run")
    _, ema, _ = trained(5, checkpoint=tmp_path / "run", resume=True)
    np.testing.assert_equal(ema.state_dict(), want.state_dict())


def test_an_average_smooths_what_the_last_steps_did() -> None:
    """Of noisy steps around a minimum, the average is nearer to it than the last weights."""
    rng = np.random.default_rng(0)
    model = gradcore.Linear(50, 1, bias=False, dtype=np.float64)
    optimizer, target = optim.SGD(model, lr=0.3), rng.standard_normal(50)
    model.flat_params[...] = target
    ema = EMA(model, 0.99)
    for _ in range(500):
        model.flat_grads[...] = model.flat_params - target + rng.standard_normal(50)
        optimizer.step()
        ema.update()
    last = np.linalg.norm(model.flat_params - target)
    with ema.applied():
        assert np.linalg.norm(model.flat_params - target) < last / 3


def test_while_the_average_is_in_the_model_nothing_else_happens_to_it() -> None:
    model = gradcore.Linear(3, 2, rng=0)
    ema = EMA(model, 0.5)
    model.flat_params[...] = 7
    state = ema.state_dict()
    with ema.applied():
        for call in (ema.update, ema.state_dict, lambda: ema.load_state_dict(state), ema.applied().__enter__):
            with pytest.raises(RuntimeError, match="the average is in the model; call swap first"):
                call()
    with contextlib.suppress(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert (model.flat_params == 7).all()
    ema.swap()
    ema.swap()
    np.testing.assert_equal(ema.state_dict(), state)
    assert repr(ema) == "EMA(decay=0.5, warmup=False, n_updates=0)"


def test_what_does_not_fit_is_refused() -> None:
    model = gradcore.Linear(3, 2, rng=0)
    for bad, error in ((1.5, ValueError), (-0.1, ValueError), ("0.9", TypeError)):
        with pytest.raises(error, match="decay: expected a number"):
            EMA(model, bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: expected a layer or model, got int"):
        EMA(3)  # type: ignore[arg-type]
    ema = EMA(model)
    before = ema.state_dict()
    for changed, error in (
        ({"average": np.zeros(8)}, TypeError),
        ({"average": np.zeros(7, np.float32)}, ValueError),
        ({"n_updates": -1}, ValueError),
        ({"other": 1}, KeyError),
    ):
        with pytest.raises(error, match=next(iter(changed))):
            ema.load_state_dict(before | changed)
    np.testing.assert_equal(ema.state_dict(), before)
