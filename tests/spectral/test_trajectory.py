"""Jacobians with layer norm, zoneout and recurrent dropout: against differences, products, bounds and exponents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tools import Array, as_state, masks_of, parts, random_state, recurrent_params

import gradcore
from gradcore import reference, spectral
from gradcore.spectral.trajectory import Trajectory, norm_bounds

pytestmark = pytest.mark.kernels

MODES = ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"]
REMEDIES: list[dict[str, Any]] = [
    {"layer_norm": True},
    {"zoneout": 0.3},
    {"recurrent_dropout": 0.4},
    {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.4},
]
ids: dict[str, Any] = {"ids": "-".join}


def made(mode: str, I: int, H: int, num_layers: int = 1, *, dtype: Any = np.float64, **options: Any) -> Any:
    """A layer whose gains are not all 1."""
    kind, _, nonlinearity = mode.partition("_")
    options |= {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
    layer = getattr(gradcore, kind)(I, H, num_layers, dtype=dtype, rng=1, **options)
    shape = {"num_layers": num_layers, "bidirectional": layer.bidirectional, "layer_norm": layer.layer_norm}
    params = recurrent_params(mode, I, H, **shape)
    layer.load_state_dict({name: value.astype(dtype) for name, value in params.items()})
    return layer


def taped(layer: Any, mode: str, x: Array, lengths: Any = None) -> tuple[Any, reference.RecurrentTape]:
    """The tape of a pass in training from a state, and the twin's with the same masks."""
    state = random_state(mode, layer.num_layers * layer.num_directions, x.shape[1], layer.hidden_size, seed=3)
    own = as_state(mode, [part.astype(layer.dtype) for part in parts(state)])
    tape = layer.forward(x, own, lengths)[1]
    params = {name: value.astype(np.float64) for name, value in layer.params.items()}
    twin = reference.recurrent_forward(mode, params, x.astype(np.float64), state, lengths, **masks_of(layer, tape))[2]
    return tape, twin


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", MODES)
def test_jacobians_against_differences_of_the_twin(mode: str, options: dict[str, Any], bidirectional: bool) -> None:
    layer = made(mode, 3, 9, 2, bidirectional=bidirectional, **options)
    x = np.random.default_rng(0).standard_normal((4, 3, 3))
    tape, twin = taped(layer, mode, x, [2, 4, 3])
    for index in range(len(twin.h)):
        want = reference.step_jacobians(twin, index, 1)
        walk = [3, 2, 1, 0] if bidirectional and index % 2 else [0, 1, 2, 3]
        for J, t in zip(want, walk, strict=True):
            got = spectral.jacobian(layer, tape, t, 1, index=index)
            np.testing.assert_allclose(got, J, rtol=0, atol=1e-8 * max(1.0, np.abs(J).max()))


@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", MODES)
def test_jacobians_of_a_float32_tape(mode: str, options: dict[str, Any]) -> None:
    layer = made(mode, 3, 20, dtype=np.float32, **options)
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    tape, twin = taped(layer, mode, x)
    for t, J in enumerate(reference.step_jacobians(twin, 0, 1)):
        np.testing.assert_allclose(spectral.jacobian(layer, tape, t, 1), J, rtol=0, atol=1e-4 * np.abs(J).max())


@pytest.mark.parametrize("H", [5, 16, 37])
@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", MODES)
def test_products_along_steps_are_those_with_their_matrices(
    mode: str, options: dict[str, Any], H: int, restore_threads: None
) -> None:
    """Both ways, within their bounds, in the same bits for any number of threads."""
    T, B, m = 5, 3, 4
    layer = made(mode, 4, H, **options)
    x = np.random.default_rng(0).standard_normal((T, B, 4))
    trajectory = Trajectory.whole(layer, layer.forward(x)[1], 0, T, B)
    dense = np.stack([trajectory.dense(t) for t in range(T)])
    v = np.random.default_rng(1).standard_normal((B, m, dense.shape[-1]))
    factors = trajectory.factors(1, 4)
    for transposed in (False, True):
        want, found = v.copy(), []
        steps = factors[::-1].copy() if transposed else factors
        for J in dense[3:0:-1] if transposed else dense[1:4]:
            want = want @ (J if transposed else J.swapaxes(1, 2))
        for threads in (1, 2, 5):
            gradcore.set_num_threads(threads)
            found.append(v.copy())
            trajectory.carry(found[-1], steps, transposed=transposed)
        np.testing.assert_allclose(found[0], want, rtol=0, atol=1e-12 * np.abs(want).max())
        assert all(one.tobytes() == found[0].tobytes() for one in found)
        scaled, log_norm = v.copy(), np.empty((3, B, m))
        trajectory.carry(scaled, steps, transposed=transposed, log_norm=log_norm)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(log_norm.sum(axis=0), np.log(np.linalg.norm(want, axis=2)), atol=1e-9)
    bounds = norm_bounds(trajectory, factors, spectral.spectral_norm(layer.params["weight_hh_l0"]))
    norms = np.linalg.norm(dense[1:4], 2, axis=(2, 3))
    assert (norms <= bounds * (1 + 1e-12)).all()
    assert (bounds < 30 * norms.max()).all()


@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_lyapunov_exponents_are_those_of_inference(mode: str, options: dict[str, Any]) -> None:
    """With the mean of zoneout and without masks, whatever the layer's generator says."""
    layer = made(mode, 3, 8, **options)
    x = np.random.default_rng(0).standard_normal((30, 1, 3))
    before, P = layer._rng.bit_generator.state, len(layer.cell.states)
    found = spectral.lyapunov_spectrum(layer, x, k=3, transient=2)
    assert layer._rng.bit_generator.state == before
    mean = [np.full((1, 30, 1, 8), layer.zoneout)] * P if layer.zoneout else None
    twin = reference.recurrent_forward(mode, layer.params, x, keep=mean)[2]
    start = np.random.default_rng(0).standard_normal((1, 3, 8 * P))[0].T  # as the function begins
    want = reference.lyapunov_exponents(reference.step_jacobians(twin, 0, 0), np.linalg.qr(start)[0], 2)
    np.testing.assert_allclose(found, np.sort(want)[::-1], atol=1e-5)


@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_singular_values_of_what_a_sample_did(mode: str, options: dict[str, Any]) -> None:
    layer = made(mode, 3, 8, **options)
    x = np.random.default_rng(0).standard_normal((7, 2, 3))
    tape, twin = taped(layer, mode, x)
    product = np.eye(8 * len(layer.cell.states))
    for J in reference.step_jacobians(twin, 0, 1):
        product = J @ product
    want = np.linalg.svd(product, compute_uv=False)[:2]
    np.testing.assert_allclose(spectral.singular_values(layer, tape, 2, b=1), np.log(want), atol=1e-5)


@pytest.mark.parametrize("options", REMEDIES[:2], **ids)
@pytest.mark.parametrize("mode", MODES)
def test_a_forecast_is_what_a_backward_pass_measures(mode: str, options: dict[str, Any]) -> None:
    layer = made(mode, 3, 40, **options)
    x = np.random.default_rng(0).standard_normal((30, 16, 3))
    forecast = spectral.predict_growth(layer, x, horizon=20)
    tape = layer._taped(x, trains=False)[1]
    dy = np.zeros((30, 16, 40))
    dy[-1] = np.random.default_rng(1).standard_normal((16, 40))
    layer.backward(tape, dy)
    norms = tape.telemetry.dh_norm[0, ::-1]
    measured = np.log(norms[20] / norms[4]) / 16
    assert forecast.rate <= forecast.upper_bound
    assert abs(forecast.rate - measured) < 0.05
    assert "bound on the Jacobians" in forecast.conditions[0].name
    assert "weight_hh" not in str(forecast)
