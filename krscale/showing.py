"""Safe output of text: names of foreign files and classes cannot control the terminal.

A class may be named like any folder of images, so names may contain control codes of terminals,
characters that change the direction of text, and markup of the library that draws tables. All
printed text passes through this module.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_UNPRINTABLE = re.compile(
    # Control characters except tab and newline, characters that change the direction of text,
    # surrogates (which no UTF-8 file can contain), and noncharacters.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_LONGEST = 60
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    r"""Replace characters unsafe for a page or a terminal by the replacement character.

    Example:
        >>> printable("a\x1b[31mb")
        'a�[31mb'
    """
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def show(text: object = "", **options: Any) -> None:
    """Print a text after `printable`.

    Args:
        text: What to print.
        options: Keyword arguments of Python's `print`.
    """
    print(printable(str(text)), **options)


def terminal(**options: Any) -> Console:
    """Return rich's console for tables that contain foreign names.

    Args:
        options: Keyword arguments of `rich.console.Console`.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """Shows text literally, without markup or emoji, and after `printable`."""

        def render_str(self, text: str, **styles: Any) -> Text:
            return super().render_str(printable(text), **styles)

    return Plain(**{"markup": False, "emoji": False, "highlight": False, **options})


def clipped(text: str) -> str:
    """Return a name for a table cell, truncated to 60 characters."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def spreadsheet_text(text: str) -> str:
    """Return text for a cell of a CSV file that no spreadsheet interprets as a formula.

    Example:
        >>> spreadsheet_text("=1+1"), spreadsheet_text("kr")
        ("'=1+1", 'kr')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text
