"""What all layers share: turns at the gradients."""

import copy
import os
import threading
from typing import Any

import numpy as np
import pytest
from tools import HANG

import gradcore

LAYERS = {
    "RNN": lambda: gradcore.RNN(3, 4, dtype=np.float64),
    "LSTM": lambda: gradcore.LSTM(3, 4, dtype=np.float64),
    "Linear": lambda: gradcore.Linear(3, 4, dtype=np.float64),
}


@pytest.mark.kernels
@pytest.mark.parametrize("name", LAYERS)
def test_no_addition_to_the_gradients_is_lost(name: str) -> None:
    layer: Any = LAYERS[name]()
    x = np.random.default_rng(0).standard_normal((40, 32, 3))
    y, tape = layer.forward(x)
    layer.backward(tape, np.ones_like(y))
    once, rounds, n_threads = layer.flat_grads.copy(), 200, 4
    layer.zero_grad()

    def work() -> None:
        for _ in range(rounds):
            layer.backward(tape, np.ones_like(y))

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    np.testing.assert_allclose(layer.flat_grads, rounds * n_threads * once, rtol=1e-10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_during_a_turn_gets_its_own() -> None:
    layer: Any = LAYERS["Linear"]()
    y, tape = layer.forward(np.ones((2, 3)))
    with layer._adding.lock:
        child = os.fork()
        if not child:
            thread = threading.Thread(target=layer.backward, args=(tape, y), daemon=True)
            thread.start()
            thread.join(HANG)
            os._exit(int(thread.is_alive()))
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_a_copy_has_turns_of_its_own() -> None:
    layer: Any = LAYERS["LSTM"]()
    other = copy.deepcopy(layer)
    y, tape = other.forward(np.ones((2, 1, 3)))
    with layer._adding.lock:
        other.backward(tape, y)
    assert other.flat_grads.any()


def test_generators_are_those_that_forward_draws_from() -> None:
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    drops = gradcore.LSTM(3, 4, num_layers=2, dropout=0.5, rng=rng)
    inner = gradcore.Sequential(gradcore.GRU(4, 3, num_layers=2, dropout=0.5, rng=other))
    plain = gradcore.LSTM(3, 3, num_layers=2, rng=rng)
    model = gradcore.Sequential(drops, inner, plain, gradcore.Linear(3, 1, rng=rng))
    assert [generator is rng for generator in drops.generators()] == [True]
    assert plain.generators() == []
    first, second = model.generators()
    assert first is rng
    assert second is other
