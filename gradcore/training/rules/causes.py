"""Which findings follow from which others."""

from __future__ import annotations

from collections.abc import Iterable

from gradcore.training.findings import Finding

__all__: list[str] = []  # for the package only

_BROKEN = ("nan_loss", "inf_loss", "nonfinite_gradient", "nonfinite_outputs", "nonfinite_weights", "skipped_steps")
_STRAYED = ("large_weights", "large_gradients", "gradient_spike", "always_clipping", "unstable_after_progress")
_STUCK = ("constant_outputs", "frozen_outputs", "small_gradients", "not_learning", "dead_units")
_STALLED = ("vanishing_in_time", "vanishing_in_layers")
_LOSS = ("rising_loss", "oscillating_loss", "steps_raise_loss")
_GROWTH = ("exploding_in_time", "exploding_in_layers")

# What may follow from a cause, if it did not begin before: the first cause in this order is the one that counts.
EFFECTS: dict[str, tuple[str, ...]] = {
    "nan_in_data": (*_BROKEN, "unstable_after_progress", "diverged"),
    "frozen_weights": (*_STUCK, *_STALLED, "never_clipping"),
    "constant_inputs": (*_STUCK, *_STALLED),
    "unscaled_data": (*_BROKEN, *_STRAYED, *_LOSS, *_GROWTH, *_STUCK, "diverged", "tiny_steps"),
    "diverged": (*_BROKEN, *_STRAYED, *_LOSS, *_GROWTH, *_STUCK, *_STALLED),
    "exploding_in_time": (*_BROKEN, *_STRAYED, *_LOSS, *_STUCK, "diverged"),
    "exploding_in_layers": (*_BROKEN, *_STRAYED, *_LOSS, *_STUCK, "diverged"),
    "rising_loss": (*_STRAYED, "oscillating_loss", "steps_raise_loss", *_GROWTH, *_STUCK, *_STALLED),
    "steps_raise_loss": (*_STRAYED, "oscillating_loss", *_GROWTH, *_STUCK, *_STALLED),
    "nonfinite_weights": _BROKEN,
    "nonfinite_outputs": ("nan_loss", "inf_loss", "nonfinite_gradient", "skipped_steps"),
    "nan_loss": ("nonfinite_gradient", "skipped_steps"),
    "inf_loss": ("nonfinite_gradient", "skipped_steps"),
    "nonfinite_gradient": ("skipped_steps", "nan_loss", "nonfinite_weights", "nonfinite_outputs"),
    "dead_units": ("constant_outputs", "not_learning", "small_gradients", *_STALLED),
    "huge_steps": (*_STRAYED, "oscillating_loss", *_GROWTH, *_STUCK, *_STALLED),
    "accumulated_gradients": (*_STRAYED, "oscillating_loss", "huge_steps", *_GROWTH, *_STUCK, *_STALLED),
    "tiny_steps": ("not_learning", "frozen_outputs", "small_gradients"),
    "vanishing_in_layers": ("constant_outputs", "not_learning", "small_gradients", "vanishing_in_time"),
    "vanishing_in_time": ("not_learning", "small_gradients"),
    "large_gradients": ("gradient_spike", "always_clipping", "large_weights"),
    "constant_outputs": ("not_learning", "small_gradients"),
    "frozen_outputs": ("not_learning",),
    "oscillating_loss": ("not_learning", "unstable_after_progress"),
}
# What is not looked at in every step may seem to begin later than it did.
_SLOW = {"frozen_weights", "constant_inputs", "unscaled_data", "nonfinite_weights", "nonfinite_outputs", "dead_units"}
_SLOW |= {
    "rising_loss",
    "tiny_steps",
    "huge_steps",
    "accumulated_gradients",
    "steps_raise_loss",
    "constant_outputs",
    "frozen_outputs",
}
_RANK = {kind: i for i, kind in enumerate(EFFECTS)}


def link(findings: Iterable[Finding], slack: int) -> None:
    """Mark what follows from what; what is looked at every `slack` steps only may seem to begin later than it did."""
    began: dict[str, int] = {}
    for finding in findings:
        began[finding.kind] = min(began.get(finding.kind, finding.step), finding.step)
    causes: dict[str, str] = {}
    for kind in began:
        for cause, effects in EFFECTS.items():
            known = cause in began and kind in effects and _precedes(cause, kind, began, slack)
            if known and kind not in _chain(cause, causes):
                causes[kind] = cause
                break
    for finding in findings:
        finding.follows = causes.get(finding.kind, "")


def _precedes(cause: str, kind: str, began: dict[str, int], slack: int) -> bool:
    """Whether a cause began before what may follow from it; of two at about the same time the rank decides."""
    slack = slack if cause in _SLOW else 0
    if _RANK[cause] < _RANK.get(kind, len(_RANK)):
        return began[cause] <= began[kind] + slack
    return began[cause] + slack < began[kind]


def _chain(kind: str, causes: dict[str, str]) -> list[str]:
    """Return a kind, what it follows from, and so on."""
    chain = [kind]
    while chain[-1] in causes:
        chain.append(causes[chain[-1]])
    return chain
