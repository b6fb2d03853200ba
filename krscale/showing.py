"""Text for people: names of strangers' files and classes cannot move a cursor or turn a line round.

A class may be called whatever the folder of its images is called: codes that a terminal obeys,
characters that turn the direction of text, markup of the library that draws tables. All that is
printed goes through here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_UNPRINTABLE = re.compile(
    # Control characters but tab and newline, what turns the direction of text, halves of pairs
    # (which no file in UTF-8 can hold), and what is no character at all.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_LONGEST = 60
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    r"""Replace what a page or a terminal should not get by the sign for an unknown character.

    Example:
        >>> printable("a\x1b[31mb")
        'a�[31mb'
    """
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def show(text: object = "", **options: Any) -> None:
    """Print a text, `printable`.

    Args:
        text: What to print.
        options: Of Python's `print`.
    """
    print(printable(str(text)), **options)


def terminal(**options: Any) -> Console:
    """Return rich's console for tables of names that are not ours.

    Args:
        options: Of `rich.console.Console`.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """Shows text as it is: without markup or emoji in it, and `printable`."""

        def render_str(self, text: str, **styles: Any) -> Text:
            return super().render_str(printable(text), **styles)

    return Plain(**{"markup": False, "emoji": False, "highlight": False, **options})


def clipped(text: str) -> str:
    """Return a name for a cell of a table, its end left out beyond 60 characters."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def spreadsheet_text(text: str) -> str:
    """Return text for a cell of a CSV file that no spreadsheet takes for a formula.

    Example:
        >>> spreadsheet_text("=1+1"), spreadsheet_text("kr")
        ("'=1+1", 'kr')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text
