"""Small tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def html_table(rows: Iterable[Sequence[Any]], *, header: Sequence[str] = (), caption: str = "") -> str:
    """Return an HTML table. The first cell of each row names the row; every cell is escaped."""
    lines = [f"<caption>{escape(caption)}</caption>"] if caption else []
    if header:
        lines.append(f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr>")
    for first, *others in rows:
        cells = "".join(f'<td style="text-align: left">{escape(str(cell))}</td>' for cell in others)
        lines.append(f'<tr><th style="text-align: left">{escape(str(first))}</th>{cells}</tr>')
    return f"<table>{''.join(lines)}</table>"
