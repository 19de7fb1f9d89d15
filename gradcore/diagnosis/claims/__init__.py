"""Common claims about exploding and vanishing gradients, and what measurements say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gradcore.diagnosis.claims import deep, optimizing, recurrent
from gradcore.diagnosis.claims.claim import Claim, as_markdown

__all__ = ["Claim", "as_markdown", "folk_claims"]


def folk_claims() -> tuple[Claim, ...]:
    """Measure common claims about exploding and vanishing gradients.

    Every number is computed in the call, by forward and backward passes, clipping or decompositions, from fixed seeds
    and in float64 unless the claim is about float32. It takes a few seconds. A universal claim is false if one
    network contradicts it; that network is the one measured. "Keeps" means within a factor of 10 from end to end.

    Returns
    -------
    tuple of Claim
        The claims, each with its measurement.

    References
    ----------
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013 (singular values, and
    norm clipping); Glorot and Bengio, 2010, and He et al., 2015 (initialization); Yang et al., "A mean field theory of
    batch normalization", 2019.

    Examples
    --------
    >>> from gradcore.diagnosis.claims import folk_claims
    >>> for claim in folk_claims()[:2]:
    ...     print(claim)
    true: Growing by 1.1 a step, a gradient has grown 14,000 times after 100 steps. (factor: 1.38e+04)
    false: Growing by 1.5 a layer, a gradient has grown 6.4e5 times after 50 layers. (factor: 6.38e+08)
    """
    return tuple(claim for part in PARTS for claim in part())


PARTS: tuple[Callable[[], Iterator[Claim]], ...] = (
    deep.growth,
    recurrent.eigenvalues,
    recurrent.singular_values,
    recurrent.gates,
    deep.initializers,
    deep.residuals,
    deep.normalizations,
    deep.transformers,
    optimizing.clipping,
    optimizing.half_precision,
    optimizing.spikes,
)
