"""Where the number of a trial's workers may vary, and where it must not."""

import pytest

from krscale.config import load
from krscale.errors import UserError
from krscale.methods import METHODS, compares_samples
from krscale.runs.distill import distil
from krscale.setup.methods import check_methods


def test_methods_that_compare_samples_are_refused_where_the_number_of_workers_varies() -> None:
    assert {name for name in METHODS if compares_samples(name)} == {"dist", "pkt", "crd", "rkd"}
    for method in (*METHODS, "kr+kd+dist"):
        chosen = [f"search.methods=['plain', '{method}']"] if method != "plain" else []
        check_methods(load(None, [*chosen, "train.num_workers=2", "train.max_workers=2"]))
        varying = load(None, [*chosen, "train.num_workers=2", "train.max_workers=3"])
        if compares_samples(method):
            with pytest.raises(UserError, match="would be between 2 and 3; set it to 0"):
                check_methods(varying)
        else:
            check_methods(varying)


def test_fewer_than_the_least_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.max_workers: 2 is less than .* = 3"):
        load(None, ["train.num_workers=3", "train.max_workers=2"])


def test_one_student_has_a_fixed_number() -> None:
    with pytest.raises(UserError, match=r"this command trains on train\.num_workers = 1\."):
        distil(load(None, ["train.max_workers=2"]), as_json=True, quiet=True)
