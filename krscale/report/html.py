"""HTML for a reader: one document without scripts, its figures inside, nothing loaded."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

Cell = tuple[str, str]
"""Class and text of a cell: `""`, `"text"` (to the left) or `"best"` (bold)."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #ddd; }
h3 { margin-top: 1.8rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 34rem);
        font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #eee;
         white-space: nowrap; }
th.text, td.text { text-align: left; }
td.best { font-weight: 700; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
.answer { background: #eef4fb; border-left: 4px solid #0072b2; padding: .6rem 1rem; }
.note { color: #555; font-size: .9rem; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole document; `parts` are HTML, made by the functions below."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def heading(level: int, text: str) -> str:
    """Return a heading of level 1 to 6."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; `kind` is `"answer"`, `"note"` or nothing."""
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """Return a list."""
    return "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>"


def code(text: str) -> str:
    """Return a block to copy."""
    return f"<pre>{escape(text)}</pre>"


def image(png: bytes, alt: str) -> str:
    """Return a picture that is part of the document."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt, quote=True)}">'


def table(
    headings: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str, num_text: int = 1
) -> str:
    """Return a table; the first `num_text` headings stand to the left."""
    head = "".join(
        f'<th scope="col"{" class=text" if number < num_text else ""}>{escape(text)}</th>'
        for number, text in enumerate(headings)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    kind, text = cell
    return f"<td{f' class={kind}' if kind else ''}>{escape(text)}</td>"
