"""Settings by keyword: where they go, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from krscale.config.flat import put_settings
from krscale.errors import UserError


def test_names_and_paths_go_to_their_sections() -> None:
    train = {"seed": 3}
    content: dict[str, Any] = {"train": train}
    put_settings(
        content,
        {"search.methods": ("kr",)},
        {"views.flip": True, "teacher.options.num_blocks": 3},
        {"num_epochs": 4, "capacities": ("1/4",), "name": "run", "granularity": 2, "sampler": "gp"},
    )
    assert content == {
        "name": "run",
        "train": {"seed": 3, "num_epochs": 4},
        "ladder": {"capacities": ("1/4",)},
        "distill": {"granularity": 2},
        "search": {"methods": ("kr",), "sampler": "gp"},
        "views": {"flip": True},
        "teacher": {"options": {"num_blocks": 3}},
    }
    assert train == {"seed": 3}, "what was given is left as it is"


@pytest.mark.parametrize(
    ("settings", "fields", "said"),
    [
        ([1], {}, "settings: a dictionary of dotted paths is needed, such as"),
        ({3: 4}, {}, "settings: a dictionary of dotted paths is needed, such as"),
        ({}, {"epochs": 3}, "search: unknown setting 'epochs'. Did you mean 'num_epochs'"),
        ({}, {"seed": 3}, "'seed' may be search.seed or train.seed; write settings="),
        ({}, {"method": "kr"}, "unknown setting 'method'"),
        ({"train.epochs": 3}, {}, "unknown setting 'train.epochs'. Did you mean 'train.num_epochs"),
        ({"train": {}}, {}, "unknown setting 'train'"),
        ({"train.num_epochs": 3}, {"num_epochs": 3}, "train.num_epochs is given twice"),
        ({"search.methods": ["kd"]}, {}, "search.methods is given twice"),
        ({"search.methods.x": 1}, {}, "search.methods.x: 'methods' is a value, not a table"),
    ],
)
def test_what_is_wrong_is_said(settings: Any, fields: Any, said: str) -> None:
    content: dict[str, Any] = {"search": {"methods": ("kd",)}}
    with pytest.raises(UserError, match=said):
        put_settings(content, {"search.methods": ("kr",)}, settings, fields)
