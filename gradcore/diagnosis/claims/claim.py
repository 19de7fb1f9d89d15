"""A claim, its measurement, and a table of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gradcore._base.check import as_list

__all__ = ["Claim", "as_markdown"]


@dataclass(frozen=True)
class Claim:
    """A common claim, and what gradcore measures.

    Parameters
    ----------
    claim : str
        The claim, in one sentence.
    true : bool
        Whether the measurement confirms it.
    measured : dict of str to float
        The numbers that decide.
    why : str
        The reason, in one sentence.

    Examples
    --------
    >>> from gradcore.diagnosis.claims import Claim
    >>> print(Claim("1.5 a layer makes 6.4e5 over 50.", False, {"factor": 1.5**50}, "It is 6.4e8."))
    false: 1.5 a layer makes 6.4e5 over 50. (factor: 6.38e+08)
    """

    claim: str
    true: bool
    measured: dict[str, float]
    why: str

    def __str__(self) -> str:
        return f"{'true' if self.true else 'false'}: {self.claim} ({_numbers(self)})"


def as_markdown(claims: Iterable[Claim]) -> str:
    """Format claims as a Markdown table with a row each.

    Parameters
    ----------
    claims : iterable of Claim
        What to list, such as the result of `folk_claims`.

    Returns
    -------
    str
        The table, as in docs/claims.md.

    Raises
    ------
    TypeError
        If an entry is not a `Claim`.

    Examples
    --------
    >>> from gradcore.diagnosis.claims import Claim, as_markdown
    >>> print(as_markdown([Claim("Clipping helps.", True, {"loss": 0.5}, "It does.")]))
    | claim | | measured |
    |---|---|---|
    | Clipping helps. | true | loss: 0.5 |
    """
    claims = as_list("claims", claims, "an iterable of Claim")
    for i, claim in enumerate(claims):
        if not isinstance(claim, Claim):
            raise TypeError(f"claims[{i}]: expected a Claim, got {type(claim).__name__}")
    rows = [f"| {claim.claim} | {'true' if claim.true else 'false'} | {_numbers(claim)} |" for claim in claims]
    return "\n".join(["| claim | | measured |", "|---|---|---|", *rows])


def _numbers(claim: Claim) -> str:
    return "; ".join(f"{name}: {value:.3g}" for name, value in claim.measured.items())
