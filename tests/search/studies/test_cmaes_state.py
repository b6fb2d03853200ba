"""The state of CMA-ES in a journal: read as numbers, never unpickled."""

import contextlib
import os
import pickle

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from krscale.config import SearchConfig
from krscale.errors import UserError
from krscale.pickle_rules import RefusedError
from krscale.search.space.space import SearchSpace
from krscale.search.studies.cmaes_state import read_cma
from krscale.search.studies.samplers import make_sampler

cmaes = pytest.importorskip("cmaes")
SPACE = SearchSpace(
    "space.toml", {"plain": {name: FloatDistribution(0.0, 1.0) for name in ("x", "y")}}
)


def optimiser(steps=3):
    made = cmaes.CMA(mean=np.full(2, 0.5), sigma=0.2, bounds=np.array([[0.0, 1.0]] * 2), seed=1)
    for _ in range(steps):
        made.tell([(x, float((x**2).sum())) for x in (made.ask() for _ in range(6))])
    return made


CONTENT = pickle.dumps(optimiser())


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_state_is_read_as_pickle_reads_it(steps, protocol):
    content = pickle.dumps(optimiser(steps), protocol)
    found, expected = read_cma(content), pickle.loads(content)
    for each in (found, expected):
        each._rng = np.random.RandomState(3)
    points = [[each.ask() for _ in range(6)] for each in (found, expected)]
    assert np.array_equal(*points)
    for each in (found, expected):
        each.tell([(x, float(x.sum())) for x in points[0]])
    assert np.array_equal(found._C, expected._C)


class Runs:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def state(**changes):
    made = optimiser()
    for name, value in changes.items():
        setattr(made, name, value)
    return pickle.dumps(made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": 1}), "holds no optimiser"),
        (state(_n_dim=0), "no number of dimensions"),
        (state(_n_dim=10**6), "no number of dimensions"),
        (state(_popsize=10**9), "no population"),
        (state(_mean=np.zeros(3)), "_mean of another form"),
        (state(_mean=np.zeros(2, int)), "_mean of another form"),
        (state(_mean=1.0), "_mean of another form"),
        (state(_sigma="text"), "_sigma of another form"),
        (state(_bounds=np.zeros((3, 2))), "_bounds of another form"),
        (state(ask=1), "has other values"),
        (state(_rng2=np.random.RandomState(1)), "asks for numpy"),
        (CONTENT[:-40], "ends early|damaged"),
    ],
)
def test_other_states_are_refused(content, message):
    with pytest.raises(RefusedError, match=message):
        read_cma(content)


def test_a_search_goes_on_and_code_in_its_journal_never_runs(tmp_path):
    """Fails if the sampler's state in the journal, replaced as by an attacker, is unpickled."""
    path = tmp_path / "journal.log"
    config = SearchConfig.model_validate({"sampler": "cmaes", "trials_per_size": 40})

    def run(num_trials):
        study = optuna.create_study(
            study_name="s",
            storage=JournalStorage(JournalFileBackend(str(path))),
            sampler=make_sampler(config, SPACE, "plain", 0),
            load_if_exists=True,
        )
        for _ in range(num_trials):
            trial = study.ask(dict(SPACE.by_method["plain"]))
            study.tell(trial, trial.params["x"] ** 2)
        return study

    run(30)
    kept = [t for t in run(2).trials if any("cma:optimizer" in k for k in t.system_attrs)]
    assert len(kept) >= 2  # so that the state was read again at least once
    before = kept[-1].system_attrs["cma:optimizer:0"]
    content = path.read_text()
    forged = pickle.dumps(Runs(tmp_path / "canary")).hex() + "0" * (len(before) % 2)
    path.write_text(content.replace(before, forged))
    with pytest.raises(UserError, match=r"journal: trial \d+: .*it asks for \w+\.mkdir.*Another"):
        run(1)
    assert not (tmp_path / "canary").exists()
    path.write_text(content.replace(before, "no hexadecimal number"))
    with pytest.raises(UserError, match="it is damaged"):
        run(1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), max_size=3))
def test_damaged_states_are_read_or_refused(changes):
    content = bytearray(CONTENT)
    for place, value in changes:
        content[place] = value
    with contextlib.suppress(RefusedError):
        read_cma(bytes(content))
