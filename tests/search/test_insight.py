"""Insight from a journal: what mattered, what came near the best, and who can open it."""

import json
from pathlib import Path

import optuna
import pytest
from ladder_play import METHODS, Ladder, experiment, play_all
from matplotlib.figure import Figure
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from running import in_process

from krscale.files import read_json
from krscale.report.convergence import trials_needed
from krscale.search.insight import find_insight
from krscale.search.insight_figure import draw_insight
from krscale.search.space.space import load_space
from krscale.setup.sizes import StudentSize

main = in_process("insight")
BEST_GRANULARITY = {"1/64": 2, "1/4": 5}


def write_journal(run: Path, num_trials: int = 24) -> None:
    """Write two sizes with their own best granularity; sparsity hardly matters, decay does not."""
    run.mkdir()
    storage = JournalStorage(JournalFileBackend(str(run / "journal.log")))
    for capacity, best in BEST_GRANULARITY.items():
        study = optuna.create_study(
            storage=storage, study_name=f"kr@{capacity}", direction="maximize",
            sampler=optuna.samplers.RandomSampler(seed=best),
        )  # fmt: skip
        for number in range(num_trials):
            trial = study.ask()
            granularity = trial.suggest_int("distill.granularity", 1, 6)
            sparsity = trial.suggest_float("distill.sparsity", 0.0, 0.9)
            trial.suggest_float("train.weight_decay", 1e-5, 1e-3, log=True)
            if granularity > 1:
                trial.suggest_float("distill.auxiliary_weight", 0.1, 2.0)
            value = 0.9 - 0.02 * abs(granularity - best) - 0.003 * sparsity
            if number == 0:
                trial.set_user_attr("interrupted", "the search was interrupted")
                study.tell(trial, state=TrialState.FAIL)
            elif number == 1:
                study.tell(trial, state=TrialState.FAIL)
            elif number == 2:
                trial.report(0.99, 1)  # an intermediate value is no result of a whole trial
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, value)
        finals = optuna.create_study(storage=storage, study_name=f"kr@{capacity} final")
        winner = max(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda t: t.value)
        for seed in range(2):
            finals.enqueue_trial(winner.params, user_attrs={"seed": seed})
            trial = finals.ask(winner.distributions)
            for epoch in (1, 2, 3):
                trial.report(0.25 * epoch + 0.1 * seed, epoch)
            finals.tell(trial, 0.85)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "found"
    write_journal(folder)
    return folder


def test_students_with_names_come_smallest_first(tmp_path: Path) -> None:
    sizes = [StudentSize(name, 2, number, 0) for name, number in
             (("tiny", 10), ("medium", 200), ("large", 3_000))]  # fmt: skip
    config = experiment(**{"search.trials_per_size": 1, "search.num_final_seeds": 1})
    play_all(Ladder(tmp_path / "journal.log", config, load_space(config, 6), sizes))
    found = find_insight(tmp_path)
    for method in found.methods:
        names = [study.capacity for study in found.of_method(method)]
        assert names == ["tiny", "medium", "large"]
    assert found.methods == list(METHODS)


def test_what_won_and_what_mattered_at_each_size(run: Path) -> None:
    insight = find_insight(run)
    assert [study.capacity for study in insight.studies] == ["1/64", "1/4"], "smallest first"
    for study in insight.studies:
        assert (study.num_complete, study.num_pruned, study.num_failed) == (21, 1, 1)
        best = BEST_GRANULARITY[study.capacity]
        assert study.best["distill.granularity"] == best
        assert study.near_best["distill.granularity"] == [best, best]
        assert study.best_accuracy == pytest.approx(0.9, abs=0.003)
        shares = study.importance.shares
        assert next(iter(shares)) == "distill.granularity"
        assert shares["distill.granularity"] > 0.9
        assert sum(shares.values()) == pytest.approx(1.0)
        assert study.importance.left_out == ("distill.auxiliary_weight",)
        assert len(study.settings) == 21
        assert len(study.best_so_far) == 23, "the interrupted trial does not count"
        assert study.best_so_far[:2] == (None, None), "neither a failed nor a stopped trial is"
        assert study.best_so_far[-1] == study.best_accuracy
        assert list(study.best_so_far[2:]) == sorted(study.best_so_far[2:])
        assert study.learning == pytest.approx((0.3, 0.55, 0.8)), "the mean over two seeds"


def test_few_trials_explain_nothing_and_say_so(tmp_path: Path) -> None:
    write_journal(tmp_path / "short", num_trials=8)
    for study in find_insight(tmp_path / "short").studies:
        assert study.importance.shares == {}
        assert study.importance.reason == "5 trials ran to their end; 8 are needed"
        assert study.best_accuracy is not None


def test_the_command_writes_data_and_figure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_json(run / "insight.json")
    assert (run / "insight.png").stat().st_size > 20_000
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "within half a point" in out
    assert "21 whole, 1 stopped, 1 failed" in out


def test_levels_of_granularity_are_drawn_in_their_order(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.create_study(storage=storage, study_name="kr@1/4", direction="maximize")
    for level in ("network", "layer"):
        study.enqueue_trial({"distill.granularity": level})
        trial = study.ask()
        trial.suggest_categorical("distill.granularity", ["network", "stage", "layer"])
        study.tell(trial, 0.5)
    insight = find_insight(tmp_path)
    assert [s.granularity for s in insight.studies[0].settings] == ["network", "layer"]
    assert draw_insight(insight, tmp_path / "insight.png")


def test_no_figure_without_granularity_and_sparsity(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.create_study(storage=storage, study_name="plain@1/4", direction="maximize")
    study.tell(study.ask(), 0.5)
    assert not draw_insight(find_insight(tmp_path), tmp_path / "insight.png")
    assert not (tmp_path / "insight.png").exists()


def test_a_folder_without_a_search_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no search was run here" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # warnings of another program
def test_optuna_dashboard_opens_the_journal_as_it_is(run: Path) -> None:
    from optuna_dashboard import wsgi

    app = wsgi(JournalStorage(JournalFileBackend(str(run / "journal.log"))))
    status: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "localhost",
        "SERVER_PORT": "80", "wsgi.url_scheme": "http",
    }  # fmt: skip
    body = b"".join(app(environ, lambda code, headers, *_: status.append(code)))
    assert status[0].startswith("200")
    names = {study["study_name"] for study in json.loads(body)["study_summaries"]}
    assert names == {"kr@1/64", "kr@1/64 final", "kr@1/4", "kr@1/4 final"}


def test_of_equally_accurate_trials_the_star_is_the_winner(tmp_path: Path, monkeypatch) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.create_study(storage=storage, study_name="kr@1/4", direction="maximize")
    for granularity, sparsity, loss in ((1, 0.1, 0.3), (2, 0.4, 0.2), (3, 0.7, 0.5)):
        study.enqueue_trial({"distill.granularity": granularity, "distill.sparsity": sparsity})
        trial = study.ask()
        trial.suggest_int("distill.granularity", 1, 3)
        trial.suggest_float("distill.sparsity", 0.0, 0.9)
        trial.set_user_attr("val/loss", loss)
        study.tell(trial, 0.9)
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **o: (figures.append(self), save(self, *given, **o))
    )
    insight = find_insight(tmp_path)
    assert insight.studies[0].best == {"distill.granularity": 2, "distill.sparsity": 0.4}
    assert draw_insight(insight, tmp_path / "insight.png")
    star = figures[0].axes[0].collections[-1].get_offsets()
    assert star.tolist() == [[0.4, 2.0]], "the trial that the table names"


def test_half_a_point_below_the_best_is_near_it_whatever_rounding_leaves(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    # Half a point is one of 200 images; these are the accuracies where floats disagree.
    pairs = [(k - 1, k) for k in range(1, 201) if (k - 1) / 200 < k / 200 - 0.005][:4]
    assert pairs
    for number, pair in enumerate(pairs):
        study = optuna.create_study(
            storage=storage, study_name=f"kr@{1 + number}/200", direction="maximize"
        )
        for right in pair:
            study.enqueue_trial({"distill.granularity": right})
            trial = study.ask()
            trial.suggest_int("distill.granularity", 0, 200)
            study.tell(trial, right / 200)
    studies = find_insight(tmp_path).studies
    assert [study.near_best["distill.granularity"] for study in studies] == [
        [less, more] for less, more in pairs
    ]
    assert {trials_needed(study) for study in studies} == {1}
