"""gradcore.sklearn against scikit-learn's own checks of estimators, and against a twin in PyTorch."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tools import HANG, Array

import gradcore

pytest.importorskip("sklearn")
base, checks, datasets, selection, pipeline, preprocessing = (
    importlib.import_module(f"sklearn.{name}")
    for name in ("base", "utils.estimator_checks", "datasets", "model_selection", "pipeline", "preprocessing")
)
bridge, estimators = importlib.import_module("gradcore.sklearn"), importlib.import_module("gradcore.sklearn.estimators")
RNNClassifier, RNNRegressor = bridge.RNNClassifier, bridge.RNNRegressor

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:max_iter=.* epochs passed:sklearn.exceptions.ConvergenceWarning"),
]

rng = np.random.default_rng(0)
N, T = 60, 6
X = rng.standard_normal((N, T))
SUM = X.sum(axis=1)
LABELS = np.array(["low", "middle", "high"])[np.digitize(SUM, [-1.0, 1.0])]
RAGGED = [rng.standard_normal((n, 2)) for n in rng.integers(3, 9, N)]


def classifier(**more: Any) -> Any:
    return RNNClassifier(**{"hidden_size": 8, "max_iter": 5, "random_state": 0, **more})


def regressor(**more: Any) -> Any:
    return RNNRegressor(**{"hidden_size": 8, "max_iter": 5, "random_state": 0, **more})


each_kind = pytest.mark.parametrize(("make", "y"), [(classifier, LABELS), (regressor, SUM)], ids=["class", "number"])


def said(estimator: Any, X: Any) -> Array:
    """The most precise that an estimator says."""
    values: Array = estimator.predict_proba(X) if base.is_classifier(estimator) else estimator.predict(X)
    return values


def weights(estimator: Any) -> Array:
    flat: Array = estimator.model_.flat_params.copy()
    return flat


# ---- scikit-learn's checks -------------------------------------------------------------------------------------------


def each_check() -> Iterator[Any]:
    """The checks of small networks; the one that needs an environment of its own is below."""
    small = RNNClassifier(hidden_size=8, batch_size=100, learning_rate_init=0.03, max_iter=10)
    for estimator in (small, RNNRegressor("gru", hidden_size=12, learning_rate_init=0.03, max_iter=40)):
        for copy, check in checks.estimator_checks_generator(estimator):
            name = getattr(check, "func", check).__name__
            if name != "check_array_api_input":
                yield pytest.param(copy, check, id=f"{type(copy).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(each_check()))
@pytest.mark.filterwarnings("ignore")
def test_a_check_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def test_the_check_of_arrays_of_other_libraries() -> None:
    code = """
from sklearn.utils.estimator_checks import estimator_checks_generator
from gradcore.sklearn import RNNClassifier, RNNRegressor
done = 0
for kind in (RNNClassifier, RNNRegressor):
    for estimator, check in estimator_checks_generator(kind(hidden_size=4, max_iter=2)):
        if getattr(check, "func", check).__name__ == "check_array_api_input":
            check(estimator)
            done += 1
print(done)
"""
    words, env = [sys.executable, "-W", "ignore", "-c", code], {**os.environ, "SCIPY_ARRAY_API": "1"}
    run = subprocess.run(words, env=env, capture_output=True, text=True, timeout=HANG, check=False)
    assert run.stdout.strip() == "2", run.stderr


# ---- X ---------------------------------------------------------------------------------------------------------------


@each_kind
def test_every_form_of_x_gives_the_same_bits(make: Any, y: Array) -> None:
    objects = np.empty(N, object)
    objects[:] = list(X)
    forms = [
        X, X.tolist(), X[:, :, None], X[:, :, None].tolist(), list(X), [row[:, None] for row in X], objects,
        np.asfortranarray(X), X.astype(object), X[:, :, None].astype(object), tuple(X[:, :, None]),
    ]  # fmt: skip
    fitted = [make().fit(form, y) for form in forms]
    for estimator in fitted[1:]:
        np.testing.assert_array_equal(weights(estimator), weights(fitted[0]))
    expected = said(fitted[0], X)
    for form in forms:  # however it was fitted
        np.testing.assert_array_equal(said(fitted[0], form), expected)
        np.testing.assert_array_equal(said(fitted[2], form), expected)


@each_kind
def test_ragged_sequences_have_no_padding_that_anything_depends_on(make: Any, y: Array) -> None:
    estimator = make(bidirectional=True, num_layers=2).fit(RAGGED, y)
    alone = np.concatenate([said(estimator, [series]) for series in RAGGED])
    np.testing.assert_allclose(said(estimator, RAGGED), alone, rtol=1e-10)
    assert estimator.n_features_in_ == 2


def test_sequences_may_have_another_length_in_predict_and_tables_may_not() -> None:
    estimator = classifier().fit(X[:, :, None], LABELS)
    assert estimator.predict(rng.standard_normal((4, 3 * T, 1))).shape == (4,)
    assert estimator.predict([np.ones((0, 1)), np.ones((1, 1))]).shape == (2,)
    table = classifier().fit(X, LABELS)
    assert table.n_features_in_ == T
    assert table.predict(rng.standard_normal((4, 3 * T, 1))).shape == (4,)
    with pytest.raises(ValueError, match="X has 3 features, but RNNClassifier is expecting 6"):
        table.predict(X[:, :3])
    with pytest.raises(ValueError, match="X: expected 1 features at each step, got 2"):
        table.predict(RAGGED)
    with pytest.raises(ValueError, match="X has 3 features, but RNNClassifier is expecting 1"):
        estimator.predict(np.ones((2, 5, 3)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((N, T, 2), np.nan), "Input X contains NaN"),
        ([*RAGGED[:-1], np.full((3, 2), np.inf)], "Input X contains infinity"),
        ([*RAGGED[:-1], np.ones((3, 4))], r"X\[59\]: expected shape \(T, 2\) as in the other sequences, got \(3, 4\)"),
        ([*RAGGED[:-1], [[1.0, 2.0], [3.0]]], r"X\[59\]: expected a sequence of shape"),
        (np.ones((0, T, 2)), r"Found array with 0 sample\(s\)"),
        (np.ones((N, T, 0)), r"Found array with 0 feature\(s\)"),
        (np.ones((N, T, 2, 2)), "dim 4"),
        ([], "Expected 2D array"),
        (list(range(N)), "Expected 2D array"),
        ([["a", "b"]] * N, "could not convert|dtype"),
        (RAGGED[:-1], "inconsistent numbers of samples"),
    ],
)
def test_invalid_x_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier().fit(given, LABELS)


def test_values_that_overflow_where_they_are_scaled_are_refused() -> None:
    estimator = classifier(dtype="float32").fit(X, LABELS)
    with pytest.raises(ValueError, match="X: expected values that float32 can hold"):
        estimator.predict(1e300 * X)


@each_kind
@pytest.mark.parametrize(
    "given",
    [[np.ones((0, 1))] * N, np.ones((N, 1)), np.ones((N, 1, 3)), np.ones((N, 0, 2)), np.ones((N, T))],
    ids=["empty series", "one step", "one step of three", "no steps", "constant"],
)
def test_sequences_of_which_nothing_can_be_learned(make: Any, y: Array, given: Any) -> None:
    estimator = make().fit(given, y)
    assert np.isfinite(said(estimator, given)).all()
    assert np.ptp(said(estimator, given), axis=0).max() < 1e-12
    assert (estimator.growth_ is None) == (np.shape(given)[1] < 2)


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=[f"t{i}" for i in range(T)])
    estimator = classifier().fit(frame, pandas.Series(LABELS))
    assert estimator.feature_names_in_.tolist() == list(frame.columns)
    np.testing.assert_array_equal(weights(estimator), weights(classifier().fit(X, LABELS)))
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame.rename(columns={"t0": "other"}))
    frames = [pandas.DataFrame(series) for series in RAGGED]
    np.testing.assert_array_equal(weights(classifier().fit(frames, LABELS)), weights(classifier().fit(RAGGED, LABELS)))
    series = pandas.Series(RAGGED)
    np.testing.assert_array_equal(weights(classifier().fit(series, LABELS)), weights(classifier().fit(RAGGED, LABELS)))


@each_kind
def test_the_network_has_the_dtype_of_x_unless_another_is_asked_for(make: Any, y: Array) -> None:
    for given, asked, expected in [
        (X.astype(np.float32), None, np.float32),
        (X, None, np.float64),
        (X, "float32", np.float32),
        (X.round().astype(int), None, np.float64),
    ]:
        estimator = make(dtype=asked).fit(given, y)
        assert estimator.model_.dtype == said(estimator, given).dtype == expected


# ---- y and weights ---------------------------------------------------------------------------------------------------


def test_one_class_one_sample() -> None:
    assert (classifier().fit(X, np.full(N, "only")).predict(X) == "only").all()
    assert classifier().fit(X[:1], ["only"]).predict_proba(X).tolist() == [[1.0]] * N
    assert np.isfinite(regressor().fit(X[:1], [5.0]).predict(X)).all()


def test_several_targets() -> None:
    y = np.stack([SUM, 1e6 * X[:, -1]], axis=1)
    estimator = regressor(max_iter=300, learning_rate_init=0.02).fit(X, y)
    assert estimator.predict(X).shape == (N, 2)
    assert estimator.score(X, y) > 0.9
    assert regressor().fit(X, y[:, :1]).predict(X).shape == (N, 1)
    with pytest.raises(ValueError, match="y: expected 2 numbers for each sequence, got 1"):
        estimator.partial_fit(X, SUM)


@each_kind
def test_a_weight_of_zero_leaves_a_sample_out_and_a_common_factor_changes_nothing(make: Any, y: Array) -> None:
    weight = np.ones(N)
    weight[::3] = 0
    kept = weight > 0
    expected = make().fit(X[kept], y[kept])
    np.testing.assert_array_equal(weights(make().fit(X, y, sample_weight=weight)), weights(expected))
    np.testing.assert_array_equal(weights(make().fit(X, y, sample_weight=4 * weight)), weights(expected))


@each_kind
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros(N), "sample_weight: expected a weight above zero"),
        (-np.ones(N), "sample_weight: expected numbers of at least 0"),
        (np.ones(N + 1), r"sample_weight: expected shape \(60,\), got \(61,\)"),
        (np.full(N, np.nan), "Input sample_weight contains NaN"),
    ],
)
def test_invalid_weights_are_refused(make: Any, y: Array, weight: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().fit(X, y, sample_weight=weight)


def test_weights_of_classes_are_weights_of_their_samples() -> None:
    factor = {"low": 2.0, "middle": 1.0, "high": 0.5}
    given = np.array([factor[label] for label in LABELS])
    by_class = classifier(class_weight=factor).fit(X, LABELS)
    np.testing.assert_array_equal(weights(by_class), weights(classifier().fit(X, LABELS, sample_weight=given)))
    rare = np.where(np.arange(N) < 6, "rare", "common")
    assert (classifier(class_weight="balanced").fit(X, rare).predict(X) == "rare").mean() > (
        classifier().fit(X, rare).predict(X) == "rare"
    ).mean()
    with pytest.raises(ValueError, match="class_weight: partial_fit needs a dict or None"):
        classifier(class_weight="balanced").partial_fit(X, rare, classes=["rare", "common"])


# ---- training --------------------------------------------------------------------------------------------------------


@each_kind
def test_the_same_seed_gives_the_same_bits(make: Any, y: Array, with_thread_counts: Any) -> None:
    options = {"num_layers": 2, "dropout": 0.2, "early_stopping": True}
    first, *others = with_thread_counts(lambda: weights(make(**options).fit(RAGGED, y)))
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert (weights(make(**options, random_state=1).fit(RAGGED, y)) != first).any()
    state = np.random.RandomState(0)
    assert (weights(make(random_state=state).fit(X, y)) != weights(make(random_state=state).fit(X, y))).any()


@each_kind
@pytest.mark.parametrize("given", [X, RAGGED], ids=["table", "ragged"])
def test_a_search_with_two_jobs(make: Any, y: Array, given: Any) -> None:
    found = [
        selection.GridSearchCV(make(), {"hidden_size": [4, 8]}, cv=3, n_jobs=jobs).fit(given, y) for jobs in (1, 2)
    ]
    np.testing.assert_array_equal(*(search.cv_results_["mean_test_score"] for search in found))
    np.testing.assert_array_equal(*(weights(search.best_estimator_) for search in found))


@each_kind
def test_pipelines_clones_and_pickles(make: Any, y: Array) -> None:
    estimator = pipeline.make_pipeline(preprocessing.StandardScaler(), make(verbose=False)).fit(X, y)
    copy = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(said(copy[-1], X), said(estimator[-1], X))
    again = base.clone(estimator).fit(X, y)
    np.testing.assert_array_equal(weights(again[-1]), weights(estimator[-1]))
    for one in (copy[-1], estimator[-1]):  # optimizer, generator and threshold are in the pickle
        one.partial_fit(X, y)
    np.testing.assert_array_equal(weights(copy[-1]), weights(estimator[-1]))


def test_partial_fit_goes_on() -> None:
    estimator = classifier(learning_rate_init=0.02)
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        estimator.partial_fit(X, LABELS)
    for _ in range(40):
        estimator.partial_fit(X, LABELS, classes=["low", "middle", "high", "never seen"])
    assert len(estimator.loss_curve_) == 40
    assert estimator.n_iter_ == 1
    assert estimator.loss_ == estimator.loss_curve_[-1] < 0.5 * estimator.loss_curve_[0]
    assert estimator.score(X, LABELS) > 0.8
    assert estimator.predict_proba(X).shape == (N, 4)
    with pytest.raises(ValueError, match="classes: expected those of the first call"):
        estimator.partial_fit(X, LABELS, classes=["low", "middle"])
    with pytest.raises(ValueError, match="y: expected classes among"):
        estimator.partial_fit(X, np.full(N, "other"))
    with pytest.raises(ValueError, match="early_stopping: partial_fit does not support it"):
        classifier(early_stopping=True).partial_fit(X, LABELS, classes=np.unique(LABELS))


@each_kind
def test_a_warm_start_goes_on(make: Any, y: Array) -> None:
    estimator = make(warm_start=True).fit(X, y)
    first, curve = said(estimator, X), estimator.loss_curve_.copy()
    estimator.fit(X, y)
    assert estimator.loss_curve_[:5] == curve
    assert estimator.loss_curve_[5] < curve[0]
    estimator.set_params(warm_start=False).fit(X, y)
    np.testing.assert_array_equal(said(estimator, X), first)


@each_kind
def test_early_stopping_keeps_the_weights_that_were_best_on_what_is_held_out(make: Any, y: Array) -> None:
    options = {"early_stopping": True, "validation_fraction": 0.3, "n_iter_no_change": 3, "learning_rate_init": 0.02}
    estimator = make(max_iter=200, **options).fit(X, y)
    scores = estimator.validation_scores_
    assert len(scores) == estimator.n_iter_ < 200
    assert estimator.best_validation_score_ == max(scores)
    best = 1 + int(np.argmax(scores))
    np.testing.assert_array_equal(weights(make(max_iter=best, **options).fit(X, y)), weights(estimator))
    assert make().fit(X, y).validation_scores_ is None


def test_the_score_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """R^2 of several targets and accuracy, with weights, on what is held out."""
    weight = rng.uniform(0.5, 2, N)
    seen: list[Any] = []
    split = estimators.train_test_split
    monkeypatch.setattr(estimators, "train_test_split", lambda *a, **k: seen.append(split(*a, **k)) or seen[-1])
    options = {"early_stopping": True, "validation_fraction": 0.4}
    y = np.stack([SUM, X[:, 0]], axis=1)
    for estimator, target in ((regressor(**options), y), (classifier(**options), LABELS)):
        estimator.fit(X, target, sample_weight=weight)
        held_out = seen[-1][1]
        expected = estimator.score(X[held_out], target[held_out], sample_weight=weight[held_out])
        assert estimator.best_validation_score_ == pytest.approx(expected, rel=1e-9)


def test_the_training_ends_where_the_loss_stands_still(recwarn: pytest.WarningsRecorder) -> None:
    still = classifier(learning_rate_init=0.0, max_iter=50, n_iter_no_change=4).fit(X, LABELS)
    assert still.n_iter_ == 5
    assert not recwarn
    with pytest.warns(match="max_iter=2 epochs passed, and the training has not converged yet"):
        classifier(max_iter=2).fit(X, LABELS)


def test_what_a_training_tells(capsys: pytest.CaptureFixture[str]) -> None:
    estimator = classifier(verbose=True).fit(X, LABELS)
    assert capsys.readouterr().out.splitlines()[-1] == f"Iteration 5, loss = {estimator.loss_:.8f}"
    assert len(estimator.history_) == 10
    assert estimator.growth_.verdict == "vanishes"
    assert estimator.findings_ == []
    long = classifier(max_iter=250, n_iter_no_change=250).fit(X, LABELS)
    assert len(long.history_) == 500
    assert long.findings_ == []
    broken = classifier(learning_rate_init=1e6, max_norm=None, max_iter=40).fit(X, LABELS)
    assert {"diverged", "huge_steps", "large_weights"} & {finding.kind for finding in broken.findings_}


def test_the_start_is_changed_where_nothing_of_the_gradient_is_left() -> None:
    """And only there: in short sequences PyTorch's start learns best."""
    for cell, long in (("lstm", 60), ("gru", 60), ("rnn", 60)):
        for T, changed in ((6, False), (long, True)):
            given = rng.standard_normal((20, T))
            auto, default = (
                classifier(cell=cell, init=init, max_iter=1).fit(given, LABELS[:20]) for init in ("auto", "default")
            )
            assert (auto.growth_.rate > default.growth_.rate) == changed, (cell, T)
            assert default.growth_.verdict == "vanishes"
            if changed:
                assert auto.growth_.factor > 1e-4


def test_a_start_that_explodes_is_scaled_down() -> None:
    layer = gradcore.RNN(1, 16, dtype=np.float64, rng=0)
    layer.params["weight_hh_l0"] *= 6
    start = importlib.import_module("gradcore.sklearn.start")
    sequences = importlib.import_module("gradcore.sklearn.sequences").from_table(0.1 * X)
    before = layer.flat_params.copy()
    growth = start.begin(layer, sequences, np.arange(N), rng, change=False)
    assert growth.verdict == "explodes"
    np.testing.assert_array_equal(layer.flat_params, before)
    assert start.begin(layer, sequences, np.arange(N), rng, change=True).verdict == "stable"


def test_a_gradient_that_stands_out_is_clipped() -> None:
    y = SUM.copy()
    usual = regressor(max_iter=30, n_iter_no_change=30).fit(X, y)
    y[0] = 1e4  # most batches go without it
    options = {"max_iter": 30, "n_iter_no_change": 30, "batch_size": 4, "standardize": False}
    auto, never = regressor(**options).fit(X, y), regressor(**options, max_norm=None).fit(X, y)
    assert not usual.history_.clipped.any()
    assert 0 < auto.history_.clipped.mean() < 0.1
    assert not never.history_.clipped.any()
    assert regressor(max_norm=1e-3).fit(X, SUM).history_.clipped.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "elman"}, "cell: expected 'lstm'|cell: expected 'rnn'|cell: expected"),
        ({"hidden_size": 0}, "hidden_size: expected an integer of at least 1, got 0"),
        ({"init": "orthogonal"}, "init: expected 'auto' or 'default', got 'orthogonal'"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
        ({"max_iter": 0}, "max_iter: expected an integer of at least 1, got 0"),
        ({"max_norm": -1.0}, "max_norm: expected a number at least 0, got -1.0"),
        ({"alpha": -1.0}, "alpha: expected a number at least 0, got -1.0"),
        ({"tol": float("nan")}, "tol: expected a number at least 0, got nan"),
        ({"validation_fraction": 1.5}, "validation_fraction: expected a number above 0 and at most 1, got 1.5"),
    ],
)
@each_kind
def test_an_invalid_argument_is_refused_in_fit(make: Any, y: Array, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options).fit(X, y)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("calls", [1, 5])
def test_ctrl_c_ends_the_training_and_keeps_what_was_learned(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def loss(y: Array, target: Array, *, weight: Array | None = None) -> tuple[float, Array]:
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGINT)
        return gradcore.losses.softmax_cross_entropy(y, target, weight=weight)

    monkeypatch.setattr(RNNClassifier, "_loss", staticmethod(loss))
    with pytest.warns(match="Training interrupted by user"):
        estimator = classifier(max_iter=1000).fit(X, LABELS)
    assert len(estimator.history_) == 0 if calls == 1 else 0 < len(estimator.history_) < 10
    assert estimator.history_.interrupted
    assert estimator.n_iter_ == len(estimator.loss_curve_) < 10
    assert estimator.predict(X).shape == (N,)


# ---- against PyTorch -------------------------------------------------------------------------------------------------


def test_digits_as_well_as_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows of eight pixels. The twin has the same start and the same batches."""
    X, y = datasets.load_digits(return_X_y=True)
    parts = selection.train_test_split(X.reshape(-1, 8, 8).astype(np.float32), y, random_state=0, stratify=y)
    options = {
        "hidden_size": 32,
        "max_iter": 12,
        "learning_rate_init": 0.005,
        "n_iter_no_change": 12,
        "random_state": 0,
    }
    ours, theirs = accuracies(RNNClassifier("lstm", **options), *parts, monkeypatch=monkeypatch)
    assert theirs > 0.9
    assert ours >= theirs - 0.01


def accuracies(
    estimator: Any, X: Any, X_test: Any, y: Array, y_test: Array, *, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float]:
    """The accuracies of a classifier and of a twin in PyTorch, an LSTM of one layer and a linear layer."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # the batches are small
    batches: list[Any] = []

    class Recorded(estimators.Batches):  # type: ignore[misc,name-defined]
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                batches.append(batch)
                yield batch

    start = base.clone(estimator).set_params(learning_rate_init=0.0, max_iter=1, init="default").fit(X, y)
    monkeypatch.setattr(estimators, "Batches", Recorded)
    estimator.fit(X, y)
    state = {name: torch.from_numpy(value) for name, value in start.model_.state_dict().items()}
    net = torch.nn.LSTM(start.model_[0].input_size, estimator.hidden_size)
    head = torch.nn.Linear(estimator.hidden_size, len(estimator.classes_))
    net.load_state_dict({name[2:]: value for name, value in state.items() if name.startswith("0.")})
    head.load_state_dict({name[2:]: value for name, value in state.items() if name.startswith("2.")})
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], estimator.learning_rate_init)

    def logits(batch: dict[str, Array]) -> Any:
        x = torch.from_numpy(np.ascontiguousarray(batch["x"]))
        lengths = torch.as_tensor(batch.get("lengths", np.full(x.shape[1], len(x))))
        return head(net(x)[0][lengths - 1, torch.arange(x.shape[1])])

    for batch in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits(batch), torch.from_numpy(batch["target"])).backward()
        optimizer.step()
    given = estimator._scaled(estimator._read(X_test, anew=False)).batch(np.arange(len(y_test)))
    with torch.no_grad():
        found = estimator.classes_[logits(given).argmax(1).numpy()]
    return float(estimator.score(X_test, y_test)), float((found == y_test).mean())


# ---- the package -----------------------------------------------------------------------------------------------------


def test_a_missing_library_is_named_and_a_broken_one_is_not_hidden() -> None:
    for hidden, expected in (
        ("sklearn", 'gradcore.sklearn needs scikit-learn, 1.6 or newer: pip install "gradcore[sklearn]"'),
        ("joblib", "import of joblib halted"),
    ):
        code = f"import sys; sys.modules[{hidden!r}] = None; import gradcore.sklearn"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False)
        assert expected in run.stderr.splitlines()[-1]
