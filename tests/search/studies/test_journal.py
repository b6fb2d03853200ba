"""The journal after its writer was killed at the worst moments."""

import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from running import bounded_memory

from krscale.errors import DamagedFileError
from krscale.search.studies import opening, pruners, retries, transfer
from krscale.search.studies import study as study_module
from krscale.search.studies.journal import Journal, refuse_lost_journal
from krscale.search.studies.journal_check import ATTRIBUTES, check_journal, encode_line


def study(journal: Journal) -> optuna.Study:
    return optuna.create_study(storage=journal.storage, study_name="kr@1/16", load_if_exists=True)


def test_every_attribute_has_its_type() -> None:
    names = (opening._SPACE, opening.VERSION, pruners.STOPPED, transfer.TRANSFERRED_FROM)
    names += (opening.IN_USE, opening.TRAINING, study_module.GIVEN_UP, study_module.SPENT_SECONDS)
    assert {*names, *(study_module.FORBIDDEN, study_module.LOST, study_module.ENDED_BY)} < {
        *ATTRIBUTES
    }
    kept = (retries.INTERRUPTED, retries.RETRY_OF, retries.CONTINUES, retries.ALONE, retries.SEED)
    assert {*kept, retries.NUM_LOST, retries.LAST_EPOCH} < {*ATTRIBUTES}


def test_optuna_itself_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    found = study(Journal(path))
    trial = found.ask()
    trial.report(0.5, 1)
    found.tell(trial, 0.25)
    plain = JournalStorage(JournalFileBackend(str(path)))
    read = optuna.load_study(study_name="kr@1/16", storage=plain).trials
    assert [(t.value, t.intermediate_values) for t in read] == [(0.25, {1: 0.5})]


def test_half_a_line_and_a_lock_are_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    found = study(Journal(path))
    found.tell(found.ask(), 1.0)
    with path.open("a") as file:
        file.write('{"op_code":4,"wor')
    Path(f"{path}.lock").symlink_to(path)  # Optuna's own lock, whose holder died
    again = study(Journal(path))
    again.tell(again.ask(), 2.0)
    assert [t.value for t in study(Journal(path)).trials] == [1.0, 2.0]


@pytest.mark.parametrize("begun", [True, False])
def test_a_journal_that_has_grown_beyond_any_is_not_read(tmp_path: Path, *, begun: bool) -> None:
    """It is read neither to drop its last line nor to find out whether it has a first one."""
    path = tmp_path / "journal.log"
    if begun:
        study(Journal(path))
    else:
        path.touch()
    os.truncate(path, 10**12)
    (tmp_path / "curve.json").touch()
    with bounded_memory():
        if not begun:
            with pytest.raises(DamagedFileError, match="though a search has run here"):
                refuse_lost_journal(tmp_path)
        with pytest.raises(DamagedFileError, match="it has 1,000,000,000,000 bytes"):
            Journal(path)


def named(name: str) -> dict[str, Any]:
    return {"op_code": 0, "study_name": name, "directions": [2]}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"op_code": 5, "trial_id": 0, "param_name": None}, "param_name = None is not text"),
        ({"op_code": 6, "trial_id": 0, "values": [[0.5]]}, "values = .* is not numbers"),
        ({"op_code": 6, "trial_id": 0, "values": 0.5}, "values = 0.5 is not numbers"),
        (
            {"op_code": 6, "trial_id": 0, "values": None, "state": "1"},
            "state = '1' is not a number",
        ),
        ({"op_code": 7, "trial_id": 0, "step": 1.5}, "step = 1.5 is not a number"),
        ({"op_code": 7, "trial_id": 0, "intermediate_value": {}}, "value = {} is not a number"),
        ({"op_code": 5, "trial_id": 0, "param_value_internal": [1]}, "internal = .* not a number"),
        ({"op_code": 0, "study_name": None}, "study_name = None is not text"),
        ({"op_code": 0, "study_name": "one"}, "its field 'directions' is missing"),
        ({"op_code": 0, "directions": [2]}, "its field 'study_name' is missing"),
        ({"op_code": 0, "study_name": "kr@1/4", "directions": []}, r"directions = \[\] is not"),
        ({"op_code": 6, "trial_id": 0, "state": 1, "values": [0.5, 0.5]}, "2 values, .* 1 obj"),
        ({"op_code": 6, "trial_id": 0, "state": 1, "values": None}, "0 values, .* 1 objectives"),
        (named("plain@"), "'plain@' is the name of no study"),
        (named("one"), "'one' is the name of no study"),
        (named("kr@1/0 final #2"), "'1/0' is not a fraction"),
        ({"op_code": 1}, "study_id"),
        ({"op_code": 2, "study_id": 0, "user_attr": {"ended_by": {}}}, "ended_by = {} is not what"),
        ({"op_code": 2, "study_id": 0, "user_attr": {"lost_students": 3}}, "lost_students = 3"),
        ({"op_code": 2, "study_id": 0, "user_attr": []}, "its user_attr is no table"),
        ({"op_code": 4, "study_id": 0, "user_attrs": {"seed": True}}, "seed = True is not what"),
        ({"op_code": 8, "trial_id": 0, "user_attr": {"num_lost": "1"}}, "num_lost = '1'"),
        ({"op_code": 8, "trial_id": 0, "user_attr": {"val/accuracy": None}}, "accuracy = None"),
    ],
)
def test_an_entry_that_names_nothing_is_a_damaged_line(
    entry: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "journal.log"
    entries = (
        {"op_code": 0, "worker_id": "w", "study_name": "kr@1/16", "directions": [2]},
        {"op_code": 4, "worker_id": "w", "study_id": 0},
        {"worker_id": "w", **entry},
    )
    path.write_bytes(b"".join(map(encode_line, entries)))
    with pytest.raises(DamagedFileError, match=f"line 3.*{said}"):
        check_journal(path)


def test_a_study_of_another_program_may_have_been_deleted(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    entries = (
        {"op_code": 0, "worker_id": "w", "study_name": "mine", "directions": [2]},
        {"op_code": 1, "worker_id": "w", "study_id": 0},
        {"op_code": 0, "worker_id": "w", "study_name": "kr@1/16", "directions": [2]},
    )
    path.write_bytes(b"".join(map(encode_line, entries)))
    check_journal(path)
    path.write_bytes(encode_line(entries[0]) + encode_line(entries[2]))
    with pytest.raises(DamagedFileError, match="line 1 of 2: 'mine' is the name of no study"):
        check_journal(path)
