"""Texts of errors: encodable as UTF-8, and the first line of another error."""

from __future__ import annotations

import os

from krscale.errors import UserError, first_line, utf8_text


def test_names_that_are_no_text_can_be_written_down() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert utf8_text(name) == "caf\\udce9.png"
    assert utf8_text("café") == "café"
    assert str(UserError(f"{name}: damaged")) == "caf\\udce9.png: damaged"
    assert UserError(3, name).args == (3, utf8_text(name))


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n no PNG \nmore")) == "no PNG "
    assert first_line(ValueError(" \n")) == first_line(ValueError()) == "ValueError"
