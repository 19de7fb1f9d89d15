"""Measure common claims about gradients: `python bench/claims.py` prints docs/claims.md, in seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from gradcore.diagnosis.claims import Claim, as_markdown, folk_claims

HEAD = """# Common claims about exploding and vanishing gradients

Each row is measured by `gradcore.claims.folk_claims()`, whose claims also say why; `python bench/claims.py` writes this
page. A claim about all networks is false if one network contradicts it; that network is the one measured. A factor is
the norm of the gradient at the first step or layer over that at the last; "keeps" means within a factor of 10.
"""


def page(claims: tuple[Claim, ...]) -> str:
    return f"{HEAD}\n{as_markdown(claims)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the page to this file")
    out = parser.parse_args().out
    text = page(folk_claims())
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
