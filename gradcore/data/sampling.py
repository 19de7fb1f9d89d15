"""Text, or any sequence of tokens, from a model that predicts the next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradcore._base.check import Array, as_array, check_int, check_number, check_rng

__all__ = ["sample"]


def sample(
    model: Any,
    prompt: Any,
    steps: int,
    *,
    temperature: float = 1.0,
    encode: Callable[[Array], Array] | None = None,
    rng: int | np.random.Generator | None = None,
) -> Array:
    """Continue a prompt: draw one token after the other from the probabilities that a model gives the next one.

    The model reads the prompt, then each token that was drawn, and carries its state from one to the next.

    Parameters
    ----------
    model : Sequential or recurrent layer
        A model with recurrent layers that returns, for each step, the logits of the token that follows.
    prompt : array_like of int, (P,) or (P, B)
        The tokens to continue, at least one, of one sequence or of B side by side.
    steps : int
        The number of tokens to draw.
    temperature : float
        What the logits are divided by. Below 1 the likely tokens become likelier; at 0 the likeliest one is taken.
    encode : callable, optional
        ``encode(tokens) -> x`` makes tokens (T, B) into what the model takes, such as one-hot vectors. By default
        the tokens themselves, for an `Embedding`.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws.

    Returns
    -------
    ndarray of int64, (steps,) or (steps, B)
        The tokens that were drawn, without the prompt.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the model has no state or returns no logits for each step.
    FloatingPointError
        If the logits are NaN or infinite, so that they give no probabilities.

    Examples
    --------
    A model of characters, trained on streams that carry the state, as `sample` does:

    >>> import numpy as np, gradcore
    >>> text = "the cat sat on the mat. " * 40
    >>> letters = sorted(set(text))
    >>> ids = np.array([letters.index(letter) for letter in text])
    >>> rng, n = np.random.default_rng(0), len(letters)
    >>> model = gradcore.Sequential(
    ...     gradcore.Embedding(n, 8, rng=rng), gradcore.GRU(8, 32, rng=rng), gradcore.Linear(32, n, rng=rng))
    >>> batches = gradcore.data.streams(ids, batch=4, steps=20)
    >>> loss, optimizer = gradcore.losses.softmax_cross_entropy, gradcore.optim.Adam(model, lr=0.02)
    >>> history = gradcore.fit(model, batches, loss, optimizer, epochs=20, stateful=True)
    >>> prompt = [letters.index(letter) for letter in "the c"]
    >>> drawn = gradcore.data.sample(model, prompt, 18, temperature=0.2, rng=0)
    >>> "".join(letters[token] for token in drawn)
    'at sat on the mat.'
    """
    steps, temperature = check_int("steps", steps), check_number("temperature", temperature, least=0.0)
    given = as_array("prompt", prompt)
    if given.dtype.kind not in "iu":
        raise TypeError(f"prompt: expected integers, got {given.dtype}")
    if given.ndim not in (1, 2) or not len(given):
        raise ValueError(f"prompt: expected shape (P,) or (P, B) with at least one token, got {given.shape}")
    if not getattr(model, "n_states", 0):
        raise ValueError("model: expected one with recurrent layers, whose state says what came before")
    if encode is not None and not callable(encode):
        raise TypeError(f"encode: expected a callable, got {type(encode).__name__}")
    rng = check_rng(rng)
    tokens = given.astype(np.int64).reshape(len(given), -1 if given.size else 0)
    drawn, state = np.zeros((steps, tokens.shape[1]), np.int64), model.initial_state(tokens.shape[1])
    for step in range(steps):
        y, state = model(tokens if encode is None else encode(tokens), state)
        if np.ndim(y) != 3 or y.shape[:2] != tokens.shape:
            raise ValueError(f"model: expected logits (T, B, tokens) of each step, got shape {np.shape(y)}")
        drawn[step] = _drawn(y[-1], temperature, rng)
        tokens = drawn[step : step + 1]
    return drawn[:, 0] if given.ndim == 1 else drawn


def _drawn(logits: Array, temperature: float, rng: np.random.Generator) -> Array:
    """Return one token of each row of logits, (B, tokens)."""
    z = logits.astype(np.float64)
    top = z.max(axis=1, keepdims=True, initial=-np.inf)
    if not np.isfinite(top).all():
        raise FloatingPointError("model: the logits are NaN or infinite, so that they give no probabilities")
    if temperature == 0:
        return np.asarray(z.argmax(axis=1))
    with np.errstate(over="ignore"):  # for a temperature near 0: to minus infinity, which has no probability
        sums = np.exp((z - top) / temperature).cumsum(axis=1)
    found = (sums <= rng.random((len(z), 1)) * sums[:, -1:]).sum(axis=1)
    return np.asarray(np.minimum(found, z.shape[1] - 1))  # where the product is rounded up to the whole sum
