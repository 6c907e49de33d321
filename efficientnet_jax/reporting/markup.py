"""Pieces of HTML that need nothing but themselves: text is escaped, pictures are inside, nothing is fetched and nothing executed."""

from __future__ import annotations

import base64
import csv
import html
import os
from typing import Any

TABLE_ROWS = 50  # of a CSV file; the file has the rest
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #999; }
img { max-width: 100%; } figure { margin: 1rem 0; } figcaption, .note { color: #555; font-size: 0.9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.15rem 1.2rem 0.15rem 0; border-bottom: 1px solid #ddd; white-space: nowrap; } th { border-color: #999; }
@media print { details { display: block; } }
"""
# The browser itself refuses whatever is not in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: list[str]) -> str:
    """A whole page."""
    page = [
        '<!doctype html>', '<html lang="en">', '<head>', '<meta charset="utf-8">', f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width">', f'<title>{escape(title)}</title>', f'<style>{STYLE}</style>', '</head>',
        '<body>', *body, '</body>', '</html>',
    ]  # fmt: skip
    return '\n'.join(page) + '\n'


def section(heading: str, *parts: str) -> list[str]:
    """A heading and what is below it; nothing when there is nothing."""
    parts = [part for part in parts if part]
    return [f'<h2>{escape(heading)}</h2>', *parts] if parts else []


def picture(path: str, caption: str) -> str:
    """A PNG as part of the page."""
    with open(path, 'rb') as f:
        data = base64.b64encode(f.read()).decode()
    return f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'


def table(rows: list[dict[str, Any]]) -> str:
    """Rows that need not have the same columns."""
    if not rows:
        return ''
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = ''.join(f'<th>{escape(name)}</th>' for name in names)
    lines = [''.join(f'<td>{escape(row.get(name, ""))}</td>' for name in names) for row in rows]
    return '\n'.join(['<div class="wide"><table>', f'<tr>{head}</tr>', *[f'<tr>{line}</tr>' for line in lines], '</table></div>'])


def csv_table(path: str) -> str:
    """The first TABLE_ROWS rows of a CSV file, folded."""
    with open(path, newline='') as f:
        rows = list(csv.DictReader(f))
    more = f'<p class="note">{len(rows) - TABLE_ROWS} more rows in {escape(path)}.</p>' if len(rows) > TABLE_ROWS else ''
    shown = [{name: short(number(value)) for name, value in row.items()} for row in rows[:TABLE_ROWS]]
    return folded(os.path.basename(path), table(shown) + more)


def folded(summary: str, content: str) -> str:
    """Content behind a line to click on; nothing for no content."""
    return f'<details><summary>{escape(summary)}</summary>{content}</details>' if content else ''


def escape(text) -> str:
    """Text that HTML shows as it is."""
    return html.escape(str(text))


def short(value) -> Any:
    """Floats with six digits, all else as it is."""
    return f'{value:.6g}' if isinstance(value, float) else value


def number(text: str) -> int | float | str:
    """What a cell of a CSV file says; exact integers stay exact."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
