"""Fields that no trial would use are refused."""

from pathlib import Path

import pytest

from krscale.config import field_paths, load
from krscale.errors import UserError
from krscale.search.space.space import load_space
from krscale.search.space.unused import IDLE_WITH

UNTIL = '"distill.auxiliary_until" = "default"'


def choices(field: str, listed: str) -> str:
    return f'"distill.{field}" = {{ type = "categorical", choices = {listed} }}'


def read(folder: Path, lines: list[str], settings: list[str]) -> None:
    path = folder / "space.toml"
    path.write_text("[kr]\n" + "\n".join(lines), encoding="utf-8")
    load_space(load(None, [f"search.space='{path}'", "search.methods=['kr']", *settings]), 6)


WHERE = '"distill.where_schedule" = "default"'
SPARSITY = '"distill.sparsity_schedule" = "default"'
AUXILIARY = '"distill.auxiliary_weight" = "default"'
INTERVAL = '"distill.auxiliary_interval" = { type = "int", low = 1, high = 4 }'
GRANULARITY = '"distill.granularity" = { type = "int", low = 1, high = 6 }'
WHEN = '"distill.auxiliary_weight" = { type = "default", when = { "distill.granularity" = %s } }'


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (
            [UNTIL, choices("auxiliary_schedule", '["constant"]')],
            [],
            "it is used with .*'coarsening'.*auxiliary_schedule is 'constant' where this is sea",
        ),
        (
            [
                choices("auxiliary_schedule", '["constant", "falling"]'),
                UNTIL.replace(
                    '"default"',
                    '{ type = "default", when = { "distill.auxiliary_schedule" = ["constant"] } }',
                ),
            ],
            [],
            "it is used with .* alone",
        ),
        ([WHERE], [], r"not used with distill.where_weight = 0.0, and .* in this experiment"),
        ([WHERE, choices("where_weight", "[0.0]")], ["distill.where_weight=1"], "not used with"),
        ([SPARSITY], ["distill.sparsity=0"], r"not used with distill.sparsity = 0.0"),
        ([AUXILIARY], ["distill.granularity=1"], r"not used with distill.granularity = 1 or 'netw"),
        ([AUXILIARY], ["distill.granularity=network"], r"distill.granularity is 'network' in this"),
        ([WHEN % "{ high = 1 }", GRANULARITY], [], "distill.granularity is 1 where this is search"),
        (
            [INTERVAL],
            ["distill.granularity=1"],
            "granularity is 1 in this experiment and distill.where_weight is 0.0 in this",
        ),
        (
            [INTERVAL],
            ["distill.auxiliary_weight=0"],
            "auxiliary_weight is 0.0 in this experiment and distill.where_weight is 0.0 in this",
        ),
    ],
)
def test_a_field_that_no_trial_would_use_is_refused(
    tmp_path: Path, lines: list[str], settings: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, lines, settings)
    assert "space.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "settings"),
    [
        ([UNTIL, choices("auxiliary_schedule", '["constant", "falling"]')], []),
        ([WHERE], ["distill.where_weight=1"]),
        ([WHERE, choices("where_weight", "[0.0, 1.0]")], ["distill.where_weight=1"]),
        ([SPARSITY, '"distill.sparsity" = "default"'], ["distill.sparsity=0"]),
        ([AUXILIARY, GRANULARITY], ["distill.granularity=1"]),
        ([WHEN % "{ high = 2 }", GRANULARITY], []),
        ([WHEN % "[1, 3]", GRANULARITY], []),
        ([INTERVAL], []),
        ([INTERVAL], ["distill.auxiliary_weight=0", "distill.where_weight=1"]),
        ([INTERVAL], ["distill.granularity=1", "distill.where_weight=1"]),
        ([INTERVAL, GRANULARITY], ["distill.granularity=1"]),
    ],
)
def test_a_field_that_some_trials_use_is_searched(
    tmp_path: Path, lines: list[str], settings: list[str]
) -> None:
    read(tmp_path, lines, settings)


def test_what_makes_fields_idle_are_fields() -> None:
    named = {path for ways in IDLE_WITH.values() for way in ways for path, _ in way}
    assert named | IDLE_WITH.keys() <= set(field_paths())
