"""`RNNClassifier` and `RNNRegressor`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

import gradcore
from gradcore import losses
from gradcore._base.check import Array, check_bool, check_choice, check_dtype, check_int, check_number
from gradcore._base.hook import Hook
from gradcore.clip.threshold import FromFirst
from gradcore.data import Standardizer
from gradcore.layers.cell import BY_NAME
from gradcore.sklearn.sequences import Batches, Sequences, from_sequences, from_table
from gradcore.sklearn.start import begin
from gradcore.training.early_stopping import EarlyStopping
from gradcore.training.findings import Finding
from gradcore.training.history import History
from gradcore.training.monitor import GradientMonitor

__all__ = ["RNNClassifier", "RNNRegressor"]

BATCH = 32  # sequences in a batch by default
FIRST, TIMES = 20, 10.0  # clip at so many times the median of so many first norms
LOOKS = 200  # of the monitor in a training: at every step it would cost a small network half of its time
AT_ONCE = 2**16  # steps of all sequences together that are predicted at once
REALS = [np.float64, np.float32]  # dtypes of X that need no conversion


class _Recurrent(BaseEstimator):
    """What both estimators do."""

    _loss: Callable[..., tuple[float, Array]]

    def __init__(
        self,
        cell: str = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        init: str = "auto",
        standardize: bool = True,
        alpha: float = 0.0,
        batch_size: int | str = "auto",
        learning_rate_init: float = 1e-3,
        max_iter: int = 100,
        max_norm: float | str | None = "auto",
        step_clip: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        dtype: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.init = init
        self.standardize = standardize
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.max_norm = max_norm
        self.step_clip = step_clip
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # ---- what differs ------------------------------------------------------------------------------------------------

    def _read_target(self, y: Any, classes: Any, *, anew: bool) -> tuple[Array, Any]:
        """Return what the loss compares with, unscaled, and factors for the samples' weights, or None."""
        raise NotImplementedError

    def _score(self, held_out: Array, weight: Array) -> Callable[..., float]:
        """Return the metric of early stopping, for these targets and weights."""
        raise NotImplementedError

    def _find_target_scale(self, target: Array, weight: Array) -> None:
        """Find the shift and scale of the target, if it has any."""

    def _scaled_target(self, target: Array) -> Array:
        return target

    # ---- training ----------------------------------------------------------------------------------------------------

    def _train(
        self, X: Any, y: Any, sample_weight: Any, classes: Any = None, *, anew: bool, epochs: int | None = None
    ) -> Any:
        """Train from a new start or go on; for a number of epochs with the same optimizer, or as the arguments say."""
        self._check_arguments()
        sequences = self._read(X, anew=anew)
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        check_consistent_length(sequences.lengths, y)
        target, factors = self._read_target(y, classes, anew=anew)
        weight = _read_weight(sample_weight, factors, len(sequences))
        seed = check_random_state(self.random_state).randint(2**31 - 1, size=4)
        drawn, order = np.random.default_rng(seed).spawn(2)
        train, held_out = np.flatnonzero(weight), np.zeros(0, np.intp)
        if self.early_stopping and epochs is not None:
            raise ValueError("early_stopping: partial_fit does not support it")
        if self.early_stopping:
            train, held_out = train_test_split(
                train,
                test_size=self.validation_fraction,
                stratify=target[train] if target.ndim == 1 else None,
                random_state=int(order.integers(2**31)),
            )
        for part in (train, held_out):
            weight[part] /= weight[part].mean() if len(part) else 1.0
        if anew:
            self._dtype = check_dtype(sequences.rows.dtype if self.dtype is None else self.dtype)
            self._find_scales(sequences, target, weight, train)
        sequences, target = self._scaled(sequences), self._scaled_target(target)
        if anew:
            self._begin(sequences, train, drawn)
        if anew or epochs is None:
            self._size = min(BATCH if self.batch_size == "auto" else int(self.batch_size), len(train))
            decay = self.alpha / self._size
            self._optimizer = gradcore.optim.Adam(self.model_, lr=self.learning_rate_init, weight_decay=decay)
            self._limit: Any = FromFirst(FIRST, TIMES) if self.max_norm == "auto" else self.max_norm
            self._order = order
        stopping = None
        if epochs is None:
            name, mode = ("score", "max") if self.early_stopping else ("loss", "min")
            stopping = EarlyStopping(name, self.n_iter_no_change, self.tol, mode=mode)
        given = sequences, target, None if (weight == 1).all() else weight
        held: dict[str, Any] = {}
        if len(held_out):
            held["validation"] = Batches(*given, held_out, sequences.at_once(AT_ONCE))
            held["metrics"] = {"score": self._score(target[held_out], weight[held_out])}
        epochs = self.max_iter if epochs is None else epochs
        batches = Batches(*given, train, self._size, self._order)
        monitor = _Glances(every=max(1, epochs * len(batches) // LOOKS))
        history = gradcore.fit(
            self.model_,
            batches,
            self._loss,
            self._optimizer,
            epochs=epochs,
            max_norm=self._limit,
            step_clip=self.step_clip,
            hooks=[_Lines()] if self.verbose else [],
            monitor=monitor,
            progress=False,
            **held,
            early_stopping=stopping,
        )
        self._keep(history, monitor)
        if history.interrupted:
            warnings.warn("Training interrupted by user.", stacklevel=3)
        elif stopping is not None and not stopping.stopped:
            message = f"max_iter={self.max_iter} epochs passed, and the training has not converged yet."
            warnings.warn(message, ConvergenceWarning, stacklevel=3)
        return self

    def _check_arguments(self) -> None:
        """Check what no other part of gradcore checks under its own name."""
        check_choice("cell", self.cell, BY_NAME)
        check_choice("init", self.init, ("auto", "default"))
        for name in ("standardize", "early_stopping", "warm_start"):
            check_bool(name, getattr(self, name))
        for name in ("max_iter", "n_iter_no_change"):
            check_int(name, getattr(self, name), least=1)
        for name in ("alpha", "tol", "learning_rate_init"):
            check_number(name, getattr(self, name), least=0.0)
        if self.batch_size != "auto":
            check_int("batch_size", self.batch_size, least=1)
        check_number("validation_fraction", self.validation_fraction, above=0.0, most=1.0)
        if self.max_norm not in ("auto", None):
            check_number("max_norm", self.max_norm, least=0.0)

    def _read(self, X: Any, *, anew: bool) -> Sequences:
        """Return X in the one form that all forms become, finite and of real numbers."""
        found = from_sequences(X)
        is_table = found is None
        if anew:
            self._fitted_to_table = is_table
        options: dict[str, Any] = {"dtype": REALS, "order": "C"}
        rows, lengths = (X, None) if found is None else found
        if lengths is not None:
            options["ensure_min_samples"] = 0  # steps: all sequences may be empty
            if not len(lengths):
                raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
        if is_table == self._fitted_to_table:
            rows = validate_data(self, rows, reset=anew, **options)
        else:  # n_features_in_ counts something else
            rows = check_array(rows, estimator=self, input_name="X", **options)
        sequences = from_table(rows) if lengths is None else Sequences(rows, lengths)
        if not anew and sequences.rows.shape[1] != self.model_[0].input_size:
            got = sequences.rows.shape[1]
            raise ValueError(f"X: expected {self.model_[0].input_size} features at each step, got {got}")
        return sequences

    def _find_scales(self, sequences: Sequences, target: Array, weight: Array, train: Array) -> None:
        used = np.zeros_like(weight)
        used[train] = weight[train]
        of_rows = np.repeat(used, sequences.lengths)
        self._scale = Standardizer().fit(sequences.rows, weight=of_rows) if self.standardize else None
        self._find_target_scale(target, used)

    def _scaled(self, sequences: Sequences) -> Sequences:
        rows = sequences.rows if self._scale is None else self._scale.transform(sequences.rows)
        with np.errstate(over="ignore"):
            rows = rows.astype(self._dtype, copy=False)
        if not np.isfinite(rows).all():
            raise ValueError(f"X: expected values that {self._dtype} can hold")
        return Sequences(rows, sequences.lengths)

    def _begin(self, sequences: Sequences, train: Array, rng: np.random.Generator) -> None:
        """Make the network, and forget what was before."""
        options: dict[str, Any] = {"dtype": self._dtype, "rng": rng}
        between = self.dropout if self.num_layers != 1 else 0.0
        recurrent = getattr(gradcore, BY_NAME[self.cell].layer)(
            sequences.rows.shape[1],
            self.hidden_size,
            self.num_layers,
            bidirectional=self.bidirectional,
            dropout=between,
            **options,
        )
        above = [gradcore.Dropout(self.dropout, **options)] if self.dropout else []
        width = recurrent.num_directions * self.hidden_size
        head = gradcore.Linear(width, self.n_outputs_, **options)
        self.growth_ = begin(recurrent, sequences, train, rng, change=self.init == "auto")
        self.model_ = gradcore.Sequential(recurrent, gradcore.FinalState(), *above, head)
        self.loss_curve_: list[float] = []

    def _keep(self, history: History, monitor: GradientMonitor) -> None:
        self.history_ = history
        automatic = self.max_norm == "auto"  # made to clip next to nothing
        self.findings_ = [found for found in monitor.findings if not (automatic and found.kind == "never_clipping")]
        curve = np.bincount(history.epoch, history.loss) / np.bincount(history.epoch)
        self.loss_curve_ += curve.tolist()
        self.n_iter_ = len(curve)
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else float("nan")
        scores = history.metrics.get("score")
        self.validation_scores_ = None if scores is None else scores.tolist()
        self.best_validation_score_ = None if scores is None else float(scores.max())

    def _outputs(self, X: Any) -> Array:
        """Return what the network makes of each sequence, (n, K)."""
        check_is_fitted(self, "model_")
        sequences = self._scaled(self._read(X, anew=False))
        parts = np.array_split(np.arange(len(sequences)), range(0, len(sequences), sequences.at_once(AT_ONCE))[1:])
        return np.concatenate([self.model_(**sequences.batch(part)) for part in parts])


class _Glances(GradientMonitor):
    """Look at one step of so many."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self._every = every

    def update(self, step: int, *given: Any, **more: Any) -> list[Finding]:
        return [] if step % self._every else super().update(step, *given, **more)


class _Lines(Hook):
    """Print the loss of each epoch, and the score if there is one, as scikit-learn does."""

    def after_epoch(self, epoch: int, history: History) -> None:
        print(f"Iteration {epoch + 1}, loss = {history.loss[history.epoch == epoch].mean():.8f}")
        if "score" in history.metrics:
            print(f"Validation score: {history.metrics['score'][-1]:f}")


def _read_weight(sample_weight: Any, factors: Any, n: int) -> Array:
    """Return the weight of each sample."""
    weight: Array = np.ones(n)
    if sample_weight is not None:
        weight = check_array(sample_weight, dtype=np.float64, ensure_2d=False, input_name="sample_weight", copy=True)
        if weight.shape != (n,):
            raise ValueError(f"sample_weight: expected shape ({n},), got {weight.shape}")
        if (weight < 0).any():
            raise ValueError("sample_weight: expected numbers of at least 0")
    if factors is not None:
        weight = weight * factors
    if not weight.any():
        raise ValueError("sample_weight: expected a weight above zero, got only zeros")
    return weight


def _weighted_mean(values: Array, weight: Array | None) -> float:
    """Return the mean over samples whose weights have the mean 1."""
    return float(values.mean() if weight is None else (values.T * weight).mean())


def _accuracy(y: Array, target: Array, weight: Array | None = None) -> float:
    return _weighted_mean(y.argmax(axis=1) == target, weight)


def _explained(y: Array, target: Array, weight: Array | None = None, *, spread: Array) -> float:
    """Return R^2, of which the variances (K,) of all that is held out are known."""
    return _weighted_mean(1 - np.square(y - target) / spread, weight)


class RNNClassifier(ClassifierMixin, _Recurrent):
    """Classify sequences with a recurrent network.

    An LSTM, GRU or RNN reads the sequence, and a linear layer turns its last output into the log odds of the classes.
    It is trained by Adam on the cross-entropy. It starts from weights whose gradient is forecast to last [1]_.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn"}
        The recurrent cell.
    hidden_size : int
        The number of hidden units of each layer and direction.
    num_layers : int
        The number of recurrent layers, one above the other.
    bidirectional : bool
        Whether each layer also reads the sequences from their ends.
    dropout : float
        The probability of dropping an output of a recurrent layer in training, between the layers and above the last.
    init : {"auto", "default"}
        The start of the recurrent layers. "default" is PyTorch's. "auto" forecasts from a few of the sequences what is
        left of the gradient after its way back through all steps. If that is less than the rounding of float32, the
        biases of the gates that keep the state are drawn by `gradcore.init.chrono_` for the length of the sequences
        [1]_. If the gradient explodes, or there are no such gates, the recurrent weights are multiplied by
        `gradcore.meanfield.suggest_gain`. Neither is done unless it improves the forecast.
    standardize : bool
        Whether to shift and scale each feature to mean 0 and standard deviation 1 on what is
        trained on. The scalers of scikit-learn take no sequences.
    alpha : float
        The strength of the L2 penalty: alpha / 2 times the sum of all squared parameters, divided by the batch size.
    batch_size : int or "auto"
        The number of sequences in a batch; "auto" for 32, or all if there are fewer.
    learning_rate_init : float
        The learning rate of Adam.
    max_iter : int
        The largest number of epochs.
    max_norm : float, "auto" or None
        The norm to clip the gradient to; None to not clip. "auto" is ten times the median of the first 20 norms, so
        that only what stands out is clipped.
    step_clip : float, optional
        The norm to clip each sequence's dL/dh_t to, at every step of the way back through time.
    early_stopping : bool
        Whether to hold out a part of the data, to end when the accuracy on it stops improving, and to keep the
        weights that were best. By default the training ends when its loss stops improving.
    validation_fraction : float
        The part that `early_stopping` holds out.
    n_iter_no_change : int
        The number of epochs in a row without improvement after which the training ends.
    tol : float
        What loss or score have to improve by to count as better.
    warm_start : bool
        Whether `fit` goes on from the weights that there are.
    class_weight : dict, "balanced" or None
        The weights of the classes; "balanced" for the inverse of how often they occur.
    dtype : {"float32", "float64"} or None
        The dtype of the network; None for that of X, as in scikit-learn. float32 takes about half the time.
    random_state : int, RandomState instance or None
        What weights, batches, dropout and the part held out are drawn from. An integer gives the same bits each time,
        with any number of threads and jobs.
    verbose : bool
        Whether to print the loss of each epoch.

    Attributes
    ----------
    classes_ : ndarray, (K,)
        The classes.
    n_outputs_ : int
        The number of classes.
    model_ : gradcore.Sequential
        The network: the recurrent layers, `FinalState`, `Dropout` if there is any, and `Linear`.
    growth_ : gradcore.spectral.GrowthPrediction or None
        The forecast for the start that was chosen; None where no sequence has two steps.
    findings_ : list of gradcore.monitor.Finding
        What was wrong with the gradients in the last training, with advice, of about 200 steps that were looked at.
    history_ : gradcore.History
        Every step of the last training.
    n_features_in_ : int
        The number of columns of a table, or of features of a sequence.
    feature_names_in_ : ndarray of str
        The names of the columns of a table that has names.
    n_iter_ : int
        The number of epochs of the last training.
    loss_ : float
        The mean loss of the last epoch.
    loss_curve_ : list of float
        The mean loss of each epoch, those before `warm_start` or `partial_fit` included.
    validation_scores_ : list of float or None
        The scores on what was held out, by epoch; None without `early_stopping`.
    best_validation_score_ : float or None
        The best of them.

    Notes
    -----
    X is a table (n, T), whose rows are series of one feature, an array (n, T, F), or a list of arrays (T_i, F) or
    (T_i,). The same content gives the same bits in each form. Sequences may have other lengths in `predict` than in
    `fit`; a table has to keep its columns. Axes (n, F, T), as in aeon, become (n, T, F) by ``X.swapaxes(1, 2)``.
    Nothing may be missing. Of an empty sequence the network sees nothing.

    Ctrl-C ends the training and keeps what has been learned.

    References
    ----------
    .. [1] C. Tallec, Y. Ollivier, "Can recurrent neural networks warp time?", 2018, arXiv 1804.11188 (chrono).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from gradcore.sklearn import RNNClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X.reshape(-1, 8, 8)  # 8 rows of 8 pixels
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> classifier = RNNClassifier("gru", hidden_size=32, random_state=0, tol=0.01).fit(X_train, y_train)
    >>> bool(classifier.score(X_test, y_test) > 0.9)
    True
    >>> classifier.predict_proba(X_test[:2]).shape
    (2, 10)
    """

    _loss = staticmethod(losses.softmax_cross_entropy)

    def __init__(
        self,
        cell: str = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        init: str = "auto",
        standardize: bool = True,
        alpha: float = 0.0,
        batch_size: int | str = "auto",
        learning_rate_init: float = 1e-3,
        max_iter: int = 100,
        max_norm: float | str | None = "auto",
        step_clip: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        class_weight: Any = None,
        dtype: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            cell,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            init=init,
            standardize=standardize,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            max_norm=max_norm,
            step_clip=step_clip,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            warm_start=warm_start,
            dtype=dtype,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RNNClassifier:
        """Train on sequences and their classes.

        Parameters
        ----------
        X : array_like, (n, T) or (n, T, F), or list of array_like, (T_i, F) or (T_i,)
            The sequences.
        y : array_like, (n,)
            The class of each sequence: numbers or text.
        sample_weight : array_like, (n,), optional
            How much each sequence counts, at least 0.

        Returns
        -------
        RNNClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If the data or an argument of the constructor are invalid.
        """
        self._train(X, y, sample_weight, anew=not (self.warm_start and hasattr(self, "model_")))
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> RNNClassifier:
        """Train for one epoch, going on from where the last call ended.

        Parameters
        ----------
        X : array_like, (n, T) or (n, T, F), or list of array_like, (T_i, F) or (T_i,)
            The sequences.
        y : array_like, (n,)
            The class of each sequence: numbers or text.
        classes : array_like, optional
            All classes there will ever be; needed in the first call.
        sample_weight : array_like, (n,), optional
            How much each sequence counts, at least 0.

        Returns
        -------
        RNNClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If the data or an argument of the constructor are invalid.
            With `early_stopping`, or class weights that are "balanced": both need all data at once.
        """
        if isinstance(self.class_weight, str):
            raise ValueError(f"class_weight: partial_fit needs a dict or None, got {self.class_weight!r}")
        anew = not hasattr(self, "model_")
        if anew and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        self._train(X, y, sample_weight, classes, anew=anew, epochs=1)
        return self

    def predict(self, X: Any) -> Array:
        """Return the most probable class of each sequence.

        Parameters
        ----------
        X : array_like, (n, T) or (n, T, F), or list of array_like, (T_i, F) or (T_i,)
            The sequences.

        Returns
        -------
        ndarray, (n,)
            The classes.

        Raises
        ------
        TypeError, ValueError
            If X does not fit what was passed to `fit`.
        """
        check_is_fitted(self, "model_")
        labels: Array = self.classes_[self._outputs(X).argmax(axis=1)]
        return labels

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes for each sequence.

        Parameters
        ----------
        X : array_like, (n, T) or (n, T, F), or list of array_like, (T_i, F) or (T_i,)
            The sequences.

        Returns
        -------
        ndarray, (n, K)
            The probabilities, in the order of `classes_`.

        Raises
        ------
        TypeError, ValueError
            If X does not fit what was passed to `fit`.
        """
        return losses.softmax(self._outputs(X))

    def _read_target(self, y: Any, classes: Any, *, anew: bool) -> tuple[Array, Any]:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        found = np.unique(y)
        if anew:
            self.classes_ = found if classes is None else np.unique(classes)
            self.n_outputs_ = len(self.classes_)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes: expected those of the first call, {self.classes_}, got {np.unique(classes)}")
        if not np.isin(found, self.classes_).all():
            raise ValueError(f"y: expected classes among {self.classes_}, got {found}")
        factors = None if self.class_weight is None else compute_sample_weight(self.class_weight, y)
        return np.searchsorted(self.classes_, y), factors

    def _score(self, held_out: Array, weight: Array) -> Callable[..., float]:
        return _accuracy


class RNNRegressor(RegressorMixin, _Recurrent):
    """Predict numbers from sequences with a recurrent network.

    An LSTM, GRU or RNN reads the sequence, and a linear layer turns its last output into one number or several. It is
    trained by Adam on the squared error. It starts from weights whose gradient is forecast to last [1]_.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn"}
        The recurrent cell.
    hidden_size : int
        The number of hidden units of each layer and direction.
    num_layers : int
        The number of recurrent layers, one above the other.
    bidirectional : bool
        Whether each layer also reads the sequences from their ends.
    dropout : float
        The probability of dropping an output of a recurrent layer in training, between the layers and above the last.
    init : {"auto", "default"}
        The start of the recurrent layers. "default" is PyTorch's. "auto" forecasts from a few of the sequences what is
        left of the gradient after its way back through all steps. If that is less than the rounding of float32, the
        biases of the gates that keep the state are drawn by `gradcore.init.chrono_` for the length of the sequences
        [1]_. If the gradient explodes, or there are no such gates, the recurrent weights are multiplied by
        `gradcore.meanfield.suggest_gain`. Neither is done unless it improves the forecast.
    standardize : bool
        Whether to shift and scale each feature and each target to mean 0 and standard deviation 1 on what is
        trained on. The scalers of scikit-learn take no sequences.
    alpha : float
        The strength of the L2 penalty: alpha / 2 times the sum of all squared parameters, divided by the batch size.
    batch_size : int or "auto"
        The number of sequences in a batch; "auto" for 32, or all if there are fewer.
    learning_rate_init : float
        The learning rate of Adam.
    max_iter : int
        The largest number of epochs.
    max_norm : float, "auto" or None
        The norm to clip the gradient to; None to not clip. "auto" is ten times the median of the first 20 norms, so
        that only what stands out is clipped.
    step_clip : float, optional
        The norm to clip each sequence's dL/dh_t to, at every step of the way back through time.
    early_stopping : bool
        Whether to hold out a part of the data, to end when R^2 on it stops improving, and to keep the
        weights that were best. By default the training ends when its loss stops improving.
    validation_fraction : float
        The part that `early_stopping` holds out.
    n_iter_no_change : int
        The number of epochs in a row without improvement after which the training ends.
    tol : float
        What loss or score have to improve by to count as better.
    warm_start : bool
        Whether `fit` goes on from the weights that there are.
    dtype : {"float32", "float64"} or None
        The dtype of the network; None for that of X, as in scikit-learn. float32 takes about half the time.
    random_state : int, RandomState instance or None
        What weights, batches, dropout and the part held out are drawn from. An integer gives the same bits each time,
        with any number of threads and jobs.
    verbose : bool
        Whether to print the loss of each epoch.

    Attributes
    ----------
    n_outputs_ : int
        The number of targets.
    model_ : gradcore.Sequential
        The network: the recurrent layers, `FinalState`, `Dropout` if there is any, and `Linear`.
    growth_ : gradcore.spectral.GrowthPrediction or None
        The forecast for the start that was chosen; None where no sequence has two steps.
    findings_ : list of gradcore.monitor.Finding
        What was wrong with the gradients in the last training, with advice, of about 200 steps that were looked at.
    history_ : gradcore.History
        Every step of the last training.
    n_features_in_ : int
        The number of columns of a table, or of features of a sequence.
    feature_names_in_ : ndarray of str
        The names of the columns of a table that has names.
    n_iter_ : int
        The number of epochs of the last training.
    loss_ : float
        The mean loss of the last epoch.
    loss_curve_ : list of float
        The mean loss of each epoch, those before `warm_start` or `partial_fit` included.
    validation_scores_ : list of float or None
        The scores on what was held out, by epoch; None without `early_stopping`.
    best_validation_score_ : float or None
        The best of them.

    Notes
    -----
    With `standardize` the losses are those of standardized targets.

    X is a table (n, T), whose rows are series of one feature, an array (n, T, F), or a list of arrays (T_i, F) or
    (T_i,). The same content gives the same bits in each form. Sequences may have other lengths in `predict` than in
    `fit`; a table has to keep its columns. Axes (n, F, T), as in aeon, become (n, T, F) by ``X.swapaxes(1, 2)``.
    Nothing may be missing. Of an empty sequence the network sees nothing.

    Ctrl-C ends the training and keeps what has been learned.

    References
    ----------
    .. [1] C. Tallec, Y. Ollivier, "Can recurrent neural networks warp time?", 2018, arXiv 1804.11188 (chrono).

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.sklearn import RNNRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.standard_normal((rng.integers(5, 15), 2)) for _ in range(200)]  # of different lengths
    >>> y = np.array([series[:, 0].sum() for series in X])
    >>> regressor = RNNRegressor("gru", hidden_size=16, learning_rate_init=0.01, tol=0.01, random_state=0).fit(X, y)
    >>> bool(regressor.score(X, y) > 0.9)
    True
    """

    _loss = staticmethod(losses.mse)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RNNRegressor:
        """Train on sequences and the numbers that belong to them.

        Parameters
        ----------
        X : array_like, (n, T) or (n, T, F), or list of array_like, (T_i, F) or (T_i,)
            The sequences.
        y : array_like, (n,) or (n, K)
            The number, or the K numbers, of each sequence.
        sample_weight : array_like, (n,), optional
            How much each sequence counts, at least 0.

        Returns
        -------
        RNNRegressor
            Itself.

        Raises
        ------
        TypeError, ValueError
            If the data or an argument of the constructor are invalid.
        """
        self._train(X, y, sample_weight, anew=not (self.warm_start and hasattr(self, "model_")))
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> RNNRegressor:
        """Train for one epoch, going on from where the last call ended.

        Parameters
        ----------
        X : array_like, (n, T) or (n, T, F), or list of array_like, (T_i, F) or (T_i,)
            The sequences.
        y : array_like, (n,) or (n, K)
            The number, or the K numbers, of each sequence.
        sample_weight : array_like, (n,), optional
            How much each sequence counts, at least 0.

        Returns
        -------
        RNNRegressor
            Itself.

        Raises
        ------
        TypeError, ValueError
            If the data or an argument of the constructor are invalid.
            With `early_stopping`, which needs all data at once.
        """
        self._train(X, y, sample_weight, anew=not hasattr(self, "model_"), epochs=1)
        return self

    def predict(self, X: Any) -> Array:
        """Return the number, or the numbers, of each sequence.

        Parameters
        ----------
        X : array_like, (n, T) or (n, T, F), or list of array_like, (T_i, F) or (T_i,)
            The sequences.

        Returns
        -------
        ndarray, (n,) or (n, K)
            The numbers, as y had them in `fit`.

        Raises
        ------
        TypeError, ValueError
            If X does not fit what was passed to `fit`.
        """
        outputs = self._outputs(X)
        y = outputs if self._target_scale is None else self._target_scale.inverse_transform(outputs)
        return y[:, 0] if self._flat else y

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _read_target(self, y: Any, classes: Any, *, anew: bool) -> tuple[Array, Any]:
        y = check_array(y, dtype=REALS, ensure_2d=False, input_name="y", estimator=self)
        target: Array = y[:, None] if y.ndim == 1 else y
        if anew:
            self._flat, self.n_outputs_ = y.ndim == 1, target.shape[1]
        elif target.shape[1] != self.n_outputs_:
            raise ValueError(f"y: expected {self.n_outputs_} numbers for each sequence, got {target.shape[1]}")
        return target, None

    def _find_target_scale(self, target: Array, weight: Array) -> None:
        self._target_scale = Standardizer().fit(target, weight=weight) if self.standardize else None

    def _scaled_target(self, target: Array) -> Array:
        y = target if self._target_scale is None else self._target_scale.transform(target)
        return y.astype(self._dtype)

    def _score(self, held_out: Array, weight: Array) -> Callable[..., float]:
        mean = np.average(held_out, axis=0, weights=weight)
        spread = np.average(np.square(held_out - mean), axis=0, weights=weight)
        return partial(_explained, spread=np.where(spread > 0, spread, 1.0))
