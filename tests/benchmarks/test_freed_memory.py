"""What the page says of the memory that a step frees."""

import freed_memory
from freed_memory import freed_memory_table

from krscale.allocator import VARIABLES, set_by_user


def test_ways_differ_in_who_has_set_malloc() -> None:
    default, kept, pages = freed_memory.WAYS.values()
    assert set_by_user(default)
    assert set_by_user(pages)
    assert kept == VARIABLES
    assert not set_by_user(kept)


def test_each_round_is_compared_with_its_own() -> None:
    default, kept, pages = freed_memory.WAYS
    one = {"system_seconds": 1.0, "megabytes": 900.4}
    found = freed_memory._summed_up(
        {
            default: [{"seconds": 2.0, **one}, {"seconds": 4.0, **one}],
            kept: [{"seconds": 1.0, **one}, {"seconds": 3.0, **one, "megabytes": 1200.0}],
            pages: [{"seconds": 2.0, **one}, {"seconds": 4.0, **one}],
        }
    )
    assert found[kept] == {"seconds": 2.0, "ratio": 0.625, "system_seconds": 1.0, "megabytes": 1200}
    table = freed_memory_table(
        {
            "command": "c", "commit": "0" * 40, "machine": "m", "system": "Linux 1",
            "load_before_and_after": [0.1, 1.0], "rows": [{"width": 64, "ways": found}],
        }
    )  # fmt: skip
    assert "| width 64, kept | 2.0 | 0.625 | 1.0 | 1,200 |" in table
    assert "| width 64, as by default | 3.0 | 1.0 | 1.0 | 900 |" in table
