"""Speakers told apart by Japanese vowels, sequences of 7 to 29 steps, as well as by a twin in PyTorch.

Not among the peers: it needs aeon, which brings the data, and is skipped without.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest


@pytest.mark.filterwarnings("ignore")  # of aeon and of training that has not converged
def test_japanese_vowels_as_well_as_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("aeon.datasets")
    estimators = pytest.importorskip("gradcore.sklearn")
    twin = importlib.import_module("test_sklearn")
    (X, y), (X_test, y_test) = (datasets.load_japanese_vowels(split=split) for split in ("train", "test"))
    X, X_test = ([np.float32(series.T) for series in part] for part in (X, X_test))
    classifier = estimators.RNNClassifier("lstm", max_iter=30, learning_rate_init=0.005, random_state=0)
    ours, theirs = twin.accuracies(classifier, X, X_test, y, y_test, monkeypatch=monkeypatch)
    assert theirs > 0.9
    assert ours >= theirs - 0.01
