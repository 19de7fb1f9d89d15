"""`gradcore.sklearn` beside skorch: the same network, training and data, fitted in turns.

    python bench/sklearn_fit.py [--turns N]

Needs the extras `sklearn` and `torch`, and skorch. Both fit the same number of Adam steps of the same batch size in
float32 on the same number of threads, and both record the loss of each epoch; gradcore also forecasts, clips, and
watches every gradient. Before it is timed each is fitted once, and its accuracy is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import skorch
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

import gradcore
from gradcore.sklearn import RNNClassifier

Array = np.ndarray[Any, Any]
BATCH, RATE = 32, 1e-3


class Net(torch.nn.Module):
    """A recurrent layer and a linear one on its last output."""

    def __init__(self, cell: str, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.recurrent = getattr(torch.nn, cell.upper())(features, hidden, batch_first=True)
        self.head = torch.nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def ours(cell: str, hidden: int, epochs: int) -> Any:
    return RNNClassifier(
        cell,
        hidden,
        max_iter=epochs,
        n_iter_no_change=epochs,
        batch_size=BATCH,
        learning_rate_init=RATE,
        standardize=False,
        random_state=0,
    )


def theirs(cell: str, hidden: int, epochs: int, X: Array, classes: int) -> Any:
    torch.manual_seed(0)
    return skorch.NeuralNetClassifier(
        Net,
        module__cell=cell,
        module__features=X.shape[2],
        module__hidden=hidden,
        module__classes=classes,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=RATE,
        batch_size=BATCH,
        max_epochs=epochs,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
    )


def rows_of_digits() -> tuple[Array, Array]:
    X, y = load_digits(return_X_y=True)
    return X.reshape(-1, 8, 8).astype(np.float32) / 16, y


def noisy_waves() -> tuple[Array, Array]:
    """Four frequencies over 100 steps, from phases of their own."""
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=400)
    phase, t = rng.uniform(0, 2 * np.pi, (400, 1)), np.arange(100)
    X = np.sin(0.1 * (1 + y[:, None]) * t + phase) + 0.5 * rng.standard_normal((400, 100))
    return X[:, :, None].astype(np.float32), y


def seconds(fit: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fit()
    return time.perf_counter() - start


def compare(name: str, data: tuple[Array, Array], cell: str, hidden: int, epochs: int, turns: int) -> None:
    X, y = data
    X, X_test, y, y_test = train_test_split(X, y, random_state=0, stratify=y)
    classes = len(np.unique(y))
    accuracy = [
        model.fit(X, y).score(X_test, y_test)
        for model in (ours(cell, hidden, epochs), theirs(cell, hidden, epochs, X, classes))
    ]
    pairs = [
        (
            seconds(lambda: ours(cell, hidden, epochs).fit(X, y)),
            seconds(lambda: theirs(cell, hidden, epochs, X, classes).fit(X, y)),
        )
        for _ in range(turns)
    ]
    ratio = statistics.median(mine / other for mine, other in pairs)
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"| {name} | {cell} | {hidden} | {epochs} | {mine:.2f} | {other:.2f} | {ratio:.2f} "
        f"| {accuracy[0]:.3f} | {accuracy[1]:.3f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(gradcore.get_num_threads())
    print(f"{gradcore.get_num_threads()} threads, {gradcore.info()['isa']}, skorch {skorch.__version__}\n")
    print("| data | cell | hidden | epochs | gradcore, s | skorch, s | ratio | accuracy | skorch's |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in ("lstm", "gru", "rnn"):
        compare("digits, 8 rows of 8", rows_of_digits(), cell, 64, 12, turns)
    compare("waves of 100 steps", noisy_waves(), "lstm", 64, 12, turns)


if __name__ == "__main__":
    main()
