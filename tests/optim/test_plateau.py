"""ReduceLROnPlateau: PyTorch's rule, groups, what it looks at in `fit`, and its state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore import optim
from gradcore.optim import ReduceLROnPlateau

OPTIONS: list[dict[str, Any]] = [
    {},
    {"factor": 0.5, "patience": 0},
    {"factor": 0.5, "patience": 2, "cooldown": 3},
    {"mode": "max", "factor": 0.3, "patience": 1},
    {"mode": "max", "threshold_mode": "abs", "threshold": 0.2, "patience": 1},
    {"threshold_mode": "abs", "threshold": 0.2, "patience": 3, "min_lr": 0.01},
    {"threshold": 0.3, "patience": 1, "eps": 0.03},
]


def optimizer(lr: Any = 0.8) -> optim.SGD:
    first, second = ((np.zeros(2), np.ones(2)) for _ in range(2))
    return optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.3}], lr=lr)


def values() -> list[float]:
    """Falling, flat, rising, negative, not finite."""
    rng = np.random.default_rng(0)
    falling = np.exp(-np.arange(30) / 10) + 0.1 * rng.standard_normal(30)
    return [
        *falling,
        *[0.2] * 20,
        math.nan,
        math.inf,
        *np.linspace(0.2, -3, 15),
        *[-3.0] * 12,
        *rng.standard_normal(30),
    ]


def follow(plateau: ReduceLROnPlateau, opt: Any, given: list[float]) -> list[Any]:
    seen = []
    for value in given:
        plateau.step(value)
        seen.append((opt.lr, opt.groups[0].lr, opt.groups[1].lr, plateau.best, plateau.num_bad_epochs))
    return seen


@pytest.mark.peers
@pytest.mark.parametrize("options", OPTIONS)
def test_the_rates_are_pytorchs(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    opt = optimizer()
    plateau = ReduceLROnPlateau(opt, **options)
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    other = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}], lr=0.8)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(other, **options)
    for value in values():
        plateau.step(value)
        theirs.step(value)
        assert [group.lr for group in opt.groups] == [group["lr"] for group in other.param_groups]
        assert (plateau.best, plateau.num_bad_epochs) == (theirs.best, theirs.num_bad_epochs)
        assert plateau.cooldown_counter == theirs.cooldown_counter
    assert opt.groups[0].lr < 0.8


@pytest.mark.parametrize("options", OPTIONS)
def test_a_state_goes_on_where_it_was(options: dict[str, Any]) -> None:
    opt, again = optimizer(), optimizer()
    plateau, resumed = ReduceLROnPlateau(opt, **options), ReduceLROnPlateau(again, **options)
    follow(plateau, opt, values()[:40])
    resumed.load_state_dict(plateau.state_dict())
    again.load_state_dict(opt.state_dict())
    np.testing.assert_equal(follow(resumed, again, values()[40:]), follow(plateau, opt, values()[40:]))
    before = plateau.state_dict()
    bad = {"best": "low", "num_bad_epochs": -1, "cooldown_counter": 0.5}
    for name, value in bad.items():
        with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
            plateau.load_state_dict(before | {name: value})
    with pytest.raises(KeyError, match="state_dict: missing"):
        plateau.load_state_dict({})
    assert plateau.state_dict() == before


def test_groups_without_a_rate_of_their_own_still_have_the_optimizers() -> None:
    opt = optimizer()
    plateau = ReduceLROnPlateau(opt, factor=0.5, patience=0)
    for _ in range(2):
        plateau.step(1.0)
    assert (opt.lr, opt.groups[0].lr, opt.groups[1].lr) == (0.4, 0.4, 0.15)
    opt.lr = 0.7
    assert (opt.groups[0].lr, opt.groups[1].lr) == (0.7, 0.15)


# ---- in fit ----------------------------------------------------------------------------------------------------------


def trained(monitor: str, epochs: int = 6, **options: Any) -> tuple[Any, gradcore.History]:
    """A model that cannot learn anything: its loss never falls."""
    model = gradcore.Linear(2, 1, dtype=np.float64, rng=0)
    opt = optim.SGD(model, lr=0.5)
    x, target = np.zeros((4, 2)), np.zeros((4, 1))
    model.params["bias"] = np.zeros(1)
    plateau = ReduceLROnPlateau(opt, factor=0.5, patience=1, monitor=monitor)
    batches = [(x, target)] * 3
    history = gradcore.fit(model, batches, gradcore.losses.mse, opt, epochs=epochs, hooks=[plateau], **options)
    return opt, history


@pytest.mark.parametrize("monitor", ["loss", "validation_loss"])
def test_without_validation_it_looks_at_the_training_loss(monitor: str) -> None:
    opt, history = trained(monitor)
    assert history.lr.tolist() == [0.5] * 9 + [0.25] * 6 + [0.125] * 3  # patience of one, from the second epoch on
    assert opt.lr == 0.125


def test_validation_and_metrics_are_what_it_looks_at() -> None:
    held_out = [(np.zeros((2, 2)), np.zeros((2, 1)))]
    seen: list[int] = []

    def worse(y: Any, target: Any) -> float:
        seen.append(len(seen))
        return -1.0 / (1 + seen[-1])

    def better(y: Any, target: Any) -> float:
        return -worse(y, target)

    for metric, lowered in ((worse, True), (better, False)):
        seen.clear()
        opt, _ = trained(metric.__name__, validation=held_out, metrics=[metric])
        assert (opt.lr < 0.5) == lowered
    opt, _ = trained("validation_loss", validation=[(np.zeros((2, 2)), np.full((2, 1), np.nan))])
    assert opt.lr < 0.5  # NaN never improves


def test_a_resumed_run_has_its_state(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    _, history = trained("loss", epochs=9)
    trained("loss", epochs=4, checkpoint=tmp_path / "run")
    opt, resumed = trained("loss", epochs=9, checkpoint=tmp_path / "run", resume=True)
    assert resumed.lr.tolist() == history.lr.tolist()
    assert opt.lr == 0.5**5


def test_an_unknown_number_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^monitor: expected one of loss, got 'accuracy'"):
        trained("accuracy")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "low"}, ValueError, "mode: expected 'min' or 'max'"),
        ({"factor": 1.0}, ValueError, "factor: expected a number"),
        ({"factor": 0.0}, ValueError, "factor: expected a number"),
        ({"patience": -1}, ValueError, "patience: expected an integer"),
        ({"threshold": -1.0}, ValueError, "threshold: expected a number"),
        ({"threshold_mode": "both"}, ValueError, "threshold_mode: expected 'rel' or 'abs'"),
        ({"cooldown": 1.5}, TypeError, "cooldown: expected an integer"),
        ({"min_lr": -0.1}, ValueError, "min_lr: expected a number"),
        ({"eps": math.nan}, ValueError, "eps: expected a number"),
        ({"monitor": 3}, TypeError, "monitor: expected a name, got int"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ReduceLROnPlateau(optimizer(), **options)


def test_what_has_no_rate_to_lower_is_refused() -> None:
    with pytest.raises(TypeError, match=r"optimizer: expected an optimizer of gradcore\.optim, got int"):
        ReduceLROnPlateau(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer: expected a number as lr, got the schedule step"):
        ReduceLROnPlateau(optimizer(gradcore.schedule.step(0.1, 0.5, 3)))
    opt = optimizer()
    plateau = ReduceLROnPlateau(opt, patience=0)
    opt.groups[1].lr = gradcore.schedule.constant(0.1)
    with pytest.raises(TypeError, match="optimizer: expected a number as lr"):
        plateau.step(1.0)
    with pytest.raises(TypeError, match="value: expected a number, got str"):
        ReduceLROnPlateau(optimizer()).step("low")  # type: ignore[arg-type]
    assert plateau.best == math.inf
    assert repr(ReduceLROnPlateau(optimizer(), mode="max", patience=3)).startswith(
        "ReduceLROnPlateau(mode='max', factor=0.1, patience=3, threshold=0.0001, threshold_mode='rel', cooldown=0"
    )
