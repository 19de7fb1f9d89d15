"""What a type checker must accept of a caller, and at the end what it must refuse: mypy reads this, nobody runs it."""

from typing import TYPE_CHECKING

import numpy as np

import gradcore

if TYPE_CHECKING:
    layer = gradcore.LSTM(3, 5, num_layers=2, bidirectional=True, dtype=np.float64, rng=np.random.default_rng(0))
    x = np.zeros((7, 2, 3))
    y, tape = layer.forward(x, lengths=[7, 3])
    dx = layer.backward(tape, y, step_clip=1.0)
    norm: float = gradcore.clip_grad_norm_(layer, max_norm=1.0)
    optimizer = gradcore.optim.Adam(layer, lr=1e-3)
    found: gradcore.GradNorm = optimizer.step(max_norm=1.0)
    model = gradcore.Sequential(layer, gradcore.LastStep(), gradcore.Linear(10, 1, dtype=np.float64))
    history: gradcore.History = gradcore.fit(model, [(x, np.zeros((2, 1)))], gradcore.losses.mse, optimizer, epochs=1)
    optimizer = gradcore.optim.Adam(
        layer, lr=gradcore.schedule.chain((gradcore.schedule.constant(0.1), 9), lambda t: 0.01)
    )
    optimizer.lr *= 0.5
    limit: float = optimizer.step(gradcore.threshold.ZClip()).max_norm + optimizer.step(
        gradcore.schedule.step(1, 0.5, 9)
    )
    gradcore.clip_grad_norm_(layer, gradcore.threshold.AutoClip())
    radius: float = gradcore.spectral.spectral_radius(layer.params["weight_hh_l0"][:5])
    layer.forward(x, stat=None)  # type: ignore[call-arg]  # a misspelled keyword; mypy reports an ignore that is not needed
