"""The report page: complete, self-contained, well-formed, and safe."""

import base64
import csv
import io
import json
import re
import shlex
import tomllib
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from krscale.config import Experiment, load
from krscale.report import (
    Budgets,
    Cost,
    Curve,
    CurveSize,
    FrontTrial,
    MethodResult,
    ShownRun,
    Size,
    comparison_table,
    differences,
    draw_curves,
    find_pareto,
    write_csv,
    write_page,
)
from krscale.report.choice import Limits, choose
from krscale.report.findings import Importance, Insight, StudyInsight
from krscale.report.page import _answer
from krscale.report.reproduce import command_of, settings_of

VOID = {"meta", "link", "img", "br"}
PNG = b"\x89PNG\r\n\x1a\nnot really"


def result(val: float, *test: float, **best: object) -> MethodResult:
    return MethodResult.over_seeds(
        seeds=range(len(test)), val_accuracies=[val] * len(test), test_accuracies=test,
        num_trials=6, num_pruned=2, num_failed=1, best=best,
    )  # fmt: skip


def make(name: str = "digits", **changes: object) -> Curve:
    sizes = (
        CurveSize(
            capacity="1/16", width=3, num_parameters=2_965, flops=56_688, latency_ms=0.2,
            methods={
                "plain": result(0.90, 0.88, 0.90, **{"train.learning_rate": 0.123456}),
                "kr": result(0.965, 0.95, 0.95, **{"distill.granularity": 3}),
            },
        ),
        CurveSize(
            capacity="1/4", width=6, num_parameters=11_284, flops=219_360, latency_ms=0.3,
            methods={"plain": result(0.97, 0.96, 0.96), "kr": result(0.5)},
        ),
    )  # fmt: skip
    content = {
        "name": name, "commit": "0123456789abcdef-dirty",
        "data": {"source": "digits", "fingerprint": "d1", "num_train": 1_077, "num_test": 450},
        "teacher": {
            "model": "resnet", "width": 32, "num_parameters": 696_042, "flops": 10**7,
            "val_accuracy": 0.98, "test_accuracy": 0.989, "fingerprint": "t1",
        },
        "sizes": sizes, "pareto": find_pareto(sizes),
        "cost": Cost(num_trials=24, wall_seconds=200.4, trial_seconds=7_512.0),
    }  # fmt: skip
    return Curve(**(content | changes))


class Reader(HTMLParser):
    """Collects text and what the page loads; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if "style" not in self.open:
            self.words.append(data)


def page(tmp_path, *runs: ShownRun, overlay: bytes | None = None) -> Reader:
    path = tmp_path / "report.html"
    write_page(runs, path, overlay)
    return Reader(path.read_text(encoding="utf-8"))


def test_page_answers_and_explains(tmp_path) -> None:
    settings = ["search.trials_per_size=6", "search.num_final_seeds=2", "train.num_epochs=16"]
    experiment = load(None, settings)
    environment = {"packages": {"torch": "2.13.0"}, "python": "3.11", "platform": "Linux"}
    found = page(tmp_path, ShownRun(make(), PNG, experiment, environment)).text
    for expected in (
        "The teacher has 696,042 parameters and answers 98.9 % of the test images correctly.",
        "The most accurate student on validation is plain at 1/4 of the teacher's size, 11,284",
        "The smallest one within 1 percentage point of it on validation is kr at 1/16",
        "Images: digits; 1,077 for train, 450 for test.",
        "Budget: 6 trials of up to 16 epochs",
        "again with 2 fresh seeds",
        "kr: Knowledge Representing",
        "The 450 test images are a sample besides: on others like them an accuracy may be off by",
        "89.0 ± 12.7",  # mean of 88 and 90; t(0.975, 1) * sqrt(2) / sqrt(2) = 12.706 points
        "24 trials, of which early stopping ended 8 and 4 failed; then 6 final trainings.",
        "Together 2 h 5 min of training, within 3 min 20 s",
        "0.123",
        "With krscale at commit 0123456789abcdef-dirty:",
        "--set search.trials_per_size=6",
        "Fingerprints: data d1, teacher t1.",
        "Made with: torch 2.13.0, Python 3.11, Linux.",
    ):
        assert expected in found, expected


def test_of_equally_good_students_the_page_names_the_one_that_pick_takes() -> None:
    """Fails if the page takes the first method of the search, and `krscale pick` another."""
    (_, size) = make().sizes
    tie = {"plain": result(0.97, 0.96, 0.96), "kr": result(0.97, 0.95, 0.95)}
    sizes = (size.model_copy(update={"methods": tie}),)
    curve = make(sizes=sizes, pareto=find_pareto(sizes))
    picked = choose(curve, Limits(num_parameters=10**9)).picked
    assert picked.method == "kr"
    assert "The most accurate student on validation is kr at 1/4" in _answer(curve)


def test_one_seed_has_no_interval_to_explain(tmp_path) -> None:
    (_, size) = make().sizes
    sizes = (size.model_copy(update={"methods": {"plain": result(0.97, 0.96)}}),)
    one = make(sizes=sizes, pareto=find_pareto(sizes))
    assert "How sure: one seed does not show how far seeds differ. The 450 test images" in (
        page(tmp_path, ShownRun(one, PNG, None, {})).text
    )
    assert (
        "How sure: ± is between seeds. The" in page(tmp_path, ShownRun(make(), PNG, None, {})).text
    )


def test_no_command_is_told_for_networks_that_were_given_as_objects(tmp_path) -> None:
    """The command named `object:...`, which only the call of `krscale.search` can build."""
    students = "ladder.students=[{name = 'tiny', model = 'object:tiny.Net'}]"
    for settings, names in (
        (["teacher.model=object:teacher.Net"], "object:teacher.Net"),
        (["teacher.model=object:teacher.Net", students], "object:teacher.Net, object:tiny.Net"),
    ):
        found = page(tmp_path, ShownRun(make(), PNG, load(None, settings), {})).text
        assert (
            f"The command is not known: krscale.search was given networks as Python objects "
            f"({names}), which no command can name. The same call runs the search again." in found
        )
        assert "--set" not in found


def test_the_budget_is_that_of_the_curve(tmp_path) -> None:
    """An extension that could not begin changes the experiment, and leaves the curve."""
    budgets = Budgets(
        trials_per_size=6, num_final_seeds=2, max_wall_seconds=0.0, max_epochs=0,
        target_accuracy=0.0,
    )  # fmt: skip
    experiment = load(None, ["search.trials_per_size=14", "search.num_final_seeds=5"])
    found = page(tmp_path, ShownRun(make(budgets=budgets), PNG, experiment, {})).text
    assert "Budget: 6 trials of up to" in found
    assert "again with 2 fresh seeds" in found


def study(method: str, capacity: str, **changes: object) -> StudyInsight:
    content = {
        "method": method, "capacity": capacity, "num_complete": 3, "num_pruned": 2,
        "num_failed": 1, "best_accuracy": 0.965, "best": {}, "near_best": {}, "settings": (),
        "importance": Importance(shares={}, num_trials=3, reason="too few"),
    }  # fmt: skip
    return StudyInsight(**(content | changes))


def rows_of(text: str, title: str) -> list[list[str]]:
    """Return the cells of the table under a heading, read by regular expressions."""
    section = text.split(f">{title}</h2>")[1].split("<h2>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


WHERE = "Which granularity and sparsity won where"
LONG_ENOUGH = "Convergence: was it long enough?"


def test_which_granularity_and_sparsity_won_where(tmp_path) -> None:
    near = {"distill.granularity": [2, 5], "distill.sparsity": [0.25, 0.25]}
    insight = Insight(name="digits", studies=(study("kr", "1/16", near_best=near),))
    run = ShownRun(make(), PNG, None, {}, insight=insight, insight_figure=PNG)
    found = page(tmp_path, run)
    text = (tmp_path / "report.html").read_text()
    assert rows_of(text, WHERE) == [
        ["size", "method", "granularity", "near-best granularity", "sparsity",
         "near-best sparsity", "whole trials"],
        ["1/16", "kr", "3", "2 to 5", "-", "0.25", "3"],
    ]  # fmt: skip
    assert "Granularity is the number of groups" in found.text
    assert sum(tag == "img" for tag, _ in found.tags) == 2, "the curve and the trials"
    assert rows_of(text, "The other settings of the winners")[1] == ["1/16", "plain", "0.123"]


def test_a_run_without_insight_has_its_winners_and_says_how_to_know_more(tmp_path) -> None:
    found = page(tmp_path, ShownRun(make(), PNG, None, {}, insight_problem="Do krscale insight."))
    assert rows_of((tmp_path / "report.html").read_text(), WHERE) == [
        ["size", "method", "granularity", "sparsity"], ["1/16", "kr", "3", "-"],
    ]  # fmt: skip
    assert found.text.count("Do krscale insight.") == 2, "settings and convergence"
    sizes = tuple(r.model_copy(update={"methods": {"plain": result(0.5)}}) for r in make().sizes)
    assert WHERE not in page(tmp_path, ShownRun(make(sizes=sizes, pareto=()), PNG, None, {})).text


def test_convergence_of_the_search_and_of_the_trainings(tmp_path, monkeypatch) -> None:
    insight = Insight(
        name="digits",
        studies=(
            study(
                "kr", "1/16", best_so_far=(None, 0.90, 0.96, 0.961, 0.964),
                # Near its final value after two epochs, but not for good.
                learning=(0.5, 0.96, 0.7, 0.955, 0.96),
            ),
            study("plain", "1/4", best_so_far=(None, None)),
        ),
    )  # fmt: skip
    legends = []
    legend = Figure.legend
    monkeypatch.setattr(
        Figure,
        "legend",
        lambda self, *given, **o: (legends.append(given), legend(self, *given, **o)),
    )
    page(tmp_path, ShownRun(make(), PNG, None, {}, insight=insight))
    text = (tmp_path / "report.html").read_text()
    assert rows_of(text, LONG_ENOUGH) == [
        ["size", "method", "trials", "epochs"],
        ["1/4", "plain", "-", "-"],
        ["1/16", "kr", "3 of 5", "4 of 5"],
    ]
    section = text.split(LONG_ENOUGH)[1]
    picture = base64.b64decode(re.search(r"base64,([^\"]*)", section)[1])
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5_000
    assert legends[0][1] == ["kr", "plain"], "plain has no line at the first size"


def test_sizes_of_searched_architectures_stand_beside_their_accuracies(tmp_path) -> None:
    own = Size(width=3, num_parameters=46_900, flops=853_000, latency_ms=0.84)
    first, second = make().sizes
    methods = {**first.methods, "kr": first.methods["kr"].model_copy(update={"size": own})}
    sizes = (first.model_copy(update={"methods": methods}), second)
    write_page([ShownRun(make(sizes=sizes), PNG, None, {})], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert rows_of(text, "Every student")[1:] == [
        ["1/16", "2,965", "56,688", "0.20", "89.0 ± 12.7", ""],
        ["1/16", "46,900", "853,000", "0.84", "", "95.0 ± 0.0*"],
        ["1/4", "11,284", "219,360", "0.30", "96.0 ± 0.0*", "-"],
    ]
    assert "1/16 (2.96k to 46.9k parameters)" in text
    assert "Size in several rows" in text


def test_page_shows_the_front_of_a_search_with_several_objectives(tmp_path) -> None:
    curve = make()
    assert "The front of every study" not in page(tmp_path, ShownRun(curve, PNG, None, {})).text
    found = FrontTrial(
        number=3, objectives={"val/accuracy": 0.912, "latency_ms": 0.4321},
        settings={"student.options.num_blocks": 2},
    )  # fmt: skip
    small = curve.sizes[0]
    methods = {**small.methods, "kr": small.methods["kr"].model_copy(update={"front": (found,)})}
    several = curve.model_copy(
        update={"sizes": (small.model_copy(update={"methods": methods}), *curve.sizes[1:])}
    )
    text = page(tmp_path, ShownRun(several, PNG, None, {})).text
    assert "The front of every study" in text
    assert "1/16 kr 91.2 0.43 num_blocks=2" in text


def test_page_loads_nothing_and_runs_nothing(tmp_path) -> None:
    reader = page(tmp_path, ShownRun(make(), PNG, None, {}, "it is gone."), overlay=None)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "iframe", "object", "video", "audio", "base"}
    sources = [a[n] for _, a in reader.tags for n in ("src", "href", "srcset") if n in a]
    assert len(sources) == 2
    assert all(source.startswith("data:") for source in sources)
    (picture,) = (a for tag, a in reader.tags if tag == "img")
    assert base64.b64decode(picture["src"].partition(",")[2]) == PNG
    assert picture["alt"]
    text = (tmp_path / "report.html").read_text()
    assert "url(" not in text
    assert "@import" not in text
    assert "The command is not known: it is gone." in reader.text


def test_names_cannot_break_out(tmp_path) -> None:
    evil = '<script>alert("x")</script>&amp;'
    run = ShownRun(make(evil, commit=evil), PNG, None, {"packages": {evil: evil}}, evil)
    reader = page(tmp_path, run, run, overlay=PNG)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count(evil) >= 6


HOSTILE = {
    "a script": "<script>window.x = 1</script>",
    "an attribute": '" onerror="alert(1)" x="',
    "another one": "' onmouseover='alert(1)",
    "the end of a tag": "--></style></title></table>",
    "a template": "{{ 7 * 7 }}{% raw %}{# #}",
    "an entity": "&lt;b&gt; &amp; &#60;",
    "control characters": "a\x00b\x08c\x1b[31md\x7fe\x85",
    "turned text": "a\u202egnp.exe\u2066",
    "half a pair": "a\ud800b\uffff",
    "lines": "a\nb\r\nc\td",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_every_value_is_escaped(tmp_path, text) -> None:
    """A hostile text in every field that a page shows, beside a harmless one for comparison."""

    def tags_with(text: str) -> tuple[list[tuple[str, list[str]]], Reader]:
        sizes = tuple(
            size.model_copy(
                update={
                    "capacity": text,
                    "methods": {
                        text: result(0.9, 0.9, **{text: text, "distill.granularity": text}),
                        "kr": result(0.8, 0.8).model_copy(
                            update={
                                "front": (
                                    FrontTrial(
                                        number=1, objectives={"val/accuracy": 0.5},
                                        settings={"student.options.x": text},
                                    ),
                                ),
                                "ended_by": text,
                            }
                        ),
                    },
                }
            )
            for size in make().sizes
        )  # fmt: skip
        curve = make(text, commit=text, sizes=sizes, pareto=find_pareto(sizes)).model_copy(
            update={
                "data": {"source": text, "fingerprint": text},
                "teacher": {**make().teacher, "model": text, "fingerprint": text},
            }
        )
        near = {"distill.granularity": [text]}
        insight = Insight(name=text, studies=(study(text, text, near_best=near),))
        environment = {"packages": {text: text}, "python": text, "platform": text}
        known = ShownRun(curve, PNG, None, environment, text, insight, PNG, text)
        unknown = ShownRun(curve, PNG, None, {}, text, insight_problem=text)
        found = page(tmp_path, known, unknown, overlay=PNG)
        return [(tag, sorted(attributes)) for tag, attributes in found.tags], found

    expected, _ = tags_with("harmless")
    tags, found = tags_with(text)
    assert tags == expected, "no text adds a tag or an attribute"
    written = (tmp_path / "report.html").read_bytes().decode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\uffff]", written)
    if text.isprintable():
        assert found.text.count(re.sub(r"\s+", " ", text)) >= 20
    else:
        assert found.text.count("\N{REPLACEMENT CHARACTER}") >= 20


def test_search_without_a_finished_training(tmp_path) -> None:
    sizes = tuple(r.model_copy(update={"methods": {"kr": result(0.5)}}) for r in make().sizes)
    curve = make(sizes=sizes, pareto=(), cost=None)
    found = page(tmp_path, ShownRun(curve, PNG, None, {})).text
    assert "No training of this search was finished." in found
    assert "Together" not in found


def test_several_runs_say_why_they_differ(tmp_path) -> None:
    other = make("other", data={"source": "glyphs", "fingerprint": "d2"}, commit="0123456789abcdef")
    lines = differences([make(), other])
    assert lines == [
        "different data: digits d1, other d2",
        "different commits of krscale: digits 01234567-dirty, other 01234567",
    ]
    assert differences([make(), make("again")]) == []
    runs = [ShownRun(curve, PNG, None, {}) for curve in (make(), other)]
    found = page(tmp_path, *runs, overlay=PNG)
    assert all(line in found.text for line in lines)
    assert "Run digits" in found.text
    assert "Run other" in found.text
    assert sum(tag == "img" for tag, _ in found.tags) == 3


def test_one_trial_of_one_epoch_with_one_seed_is_no_plural(tmp_path) -> None:
    experiment = load(None, ["search.trials_per_size=1", "train.num_epochs=1",
                             "search.num_final_seeds=1", "search.grace_epochs=1"])  # fmt: skip
    size = make().sizes[0]
    once = size.methods["kr"].model_copy(
        update={"num_trials": 1, "seeds": (0,), "val_accuracies": (0.5,), "test_accuracies": (0.5,)}
    )
    curve = make(sizes=(size.model_copy(update={"methods": {"kr": once}}),))
    found = page(tmp_path, ShownRun(curve, PNG, experiment, {})).text
    assert "Budget: 1 trial of up to 1 epoch for each way" in found
    assert "with 1 fresh seed, and these" in found
    assert "1 trial, of which early stopping ended" in found
    assert "then 1 final training." in found


def test_the_page_says_what_was_planned_only_where_it_was_done(tmp_path) -> None:
    experiment = load(None, ["search.num_final_seeds=2"])
    same = "Every size and way of training got the same number of trials."
    found = page(tmp_path, ShownRun(make(), PNG, experiment, {})).text
    assert same in found
    assert "with 2 fresh seeds (kr at 1/4 with none), and these" in found
    size = make().sizes[0]
    fewer = result(0.9, 0.9).model_copy(update={"num_trials": 3})
    for methods, said in (
        (size.methods, "with 2 fresh seeds, and these"),
        ({**size.methods, "kr": fewer}, "with 2 fresh seeds (kr at 1/16 with 1), and these"),
    ):
        curve = make(sizes=(size.model_copy(update={"methods": methods}),))
        found = page(tmp_path, ShownRun(curve, PNG, experiment, {})).text
        assert said in found
        assert (same in found) == (methods is size.methods)
    assert "best. All choices were made on validation images" in found


def test_runs_with_other_training_seeds_and_budgets_say_so() -> None:
    budgets = {"trials_per_size": 6, "num_final_seeds": 2, "max_wall_seconds": 0.0,
               "max_epochs": 0, "target_accuracy": 0.0}  # fmt: skip
    sizes = tuple(
        size.model_copy(update={"methods": {"plain": result(0.9, 0.9, 0.9, 0.9)}})
        for size in make().sizes
    )
    longer = make("longer", sizes=sizes, budgets=Budgets(**{**budgets, "max_epochs": 40}))
    short = make(budgets=Budgets(**budgets))
    asked = [load(None, [f"train.num_epochs={epochs}"]) for epochs in (2, 12)]
    lines = differences([short, longer], asked)
    assert lines == [
        "different numbers of epochs per training: digits 2, longer 12",
        "different numbers of seeds per student: digits 2, longer 3",
        "different budgets of the search: digits without limits, longer max_epochs 40",
    ]
    caption = str(comparison_table([short, longer], experiments=asked, ascii_only=True).caption)
    assert "+- 95 % interval over 2-3 seeds; bold: best of its size" in caption
    assert all(line in caption for line in lines)
    assert differences([make(), make("old")], [None, asked[0]]) == []


def test_data_without_a_fingerprint_are_not_known_to_be_the_same() -> None:
    old, older = (make(name, data={"source": "x"}) for name in ("old", "older"))
    said = "not known whether the data differ: no fingerprint in "
    assert differences([old, older]) == [f"{said}old and older"]
    assert differences([make(), old]) == [f"{said}old"]
    assert differences([make(), old, make("c", data={"source": "x", "fingerprint": "d2"})]) == [
        "different data: digits d1, old not known, c d2"
    ]


def test_table_of_several_runs_fits_a_terminal() -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table([make(), make("other")], ascii_only=True))
    lines = console.export_text().splitlines()
    rows = [line.split() for line in lines if "k  " in line]
    assert [row[0] for row in rows] == ["digits", "1/4", "other", "1/4"]
    assert rows[0][1:] == ["1/16", "2.96k", "56.7k", "0.20", "89.0+-12.7", "95.0+-0.0*"]
    assert rows[1][-2:] == ["96.0+-0.0*", "-"]
    assert max(map(len, lines)) <= 80


def test_csv_has_a_row_per_student(tmp_path) -> None:
    write_csv([make(), make("other")], tmp_path / "curve.csv")
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    first = rows[1]
    assert (first["run"], first["capacity"], first["method"]) == ("digits", "1/16", "kr")
    assert (first["on_front"], rows[0]["on_front"]) == ("1", "0")
    assert float(first["test_accuracy"]) == 0.95
    assert float(rows[0]["test_half_width"]) == pytest.approx(0.12706, abs=1e-4)
    assert json.loads(first["settings"]) == {"distill.granularity": 3}
    assert rows[3]["test_accuracy"] == ""
    assert rows[4]["run"] == "other"


def test_overlay_is_a_picture_even_without_points(tmp_path) -> None:
    empty = make("empty", sizes=(), pareto=())
    draw_curves([make(), make("b"), empty], tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


SETTINGS = [
    'name="mine"', "train.num_epochs=3", "ladder.capacities=['1/8', '1/2']",
    "student.options={num_blocks = 3}", "student.taps=['stages.0.0']", "views.flip=true",
    "distill.granularity='layer'", "distill.posterior={dkd = 0.5}", "train.weight_decay=1e-05",
]  # fmt: skip


@pytest.mark.parametrize("name", ["😀", "ü", "\x7f", "👨‍👩‍👧", "\U000e0041", 'a"\\b', "\t\u2028"])
def test_command_gives_any_text_again(name) -> None:
    source = Experiment().model_dump()
    source["data"] |= {"source": "image_folder", "path": f"/data/{name}"}
    source["student"]["options"] = {name: [name]}
    experiment = Experiment.model_validate(source)
    settings = settings_of(experiment)
    assert all(setting.isprintable() for setting in settings)
    assert load(None, settings).data.path == experiment.data.path
    assert load(None, settings).student.options == {name: [name]}


def test_command_gives_the_same_experiment_again() -> None:
    experiment = load(None, [*SETTINGS, "storage_path=/elsewhere", "tracking.enabled=false"])
    again = load(None, settings_of(experiment))
    assert again.fingerprint() == experiment.fingerprint()
    assert len(settings_of(experiment)) == len(SETTINGS)
    words = shlex.split(command_of(experiment).replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "krscale.tune"]
    assert words[3::2] == ["--set"] * len(SETTINGS)
    assert words[4::2] == settings_of(experiment)
    assert settings_of(Experiment()) == []
    for setting in settings_of(experiment):
        tomllib.loads(f"value = {setting.partition('=')[2]}")


def test_a_student_one_point_below_the_best_is_enough_whatever_rounding_leaves() -> None:
    sizes = make().sizes
    for best in range(1, 101):
        accuracies = ((best - 1) / 100, best / 100)
        found = tuple(
            size.model_copy(update={"methods": {"plain": result(accuracy, 0.5)}})
            for size, accuracy in zip(sizes, accuracies, strict=True)
        )
        answer = _answer(make(sizes=found, pareto=find_pareto(found)))
        assert "smallest one within 1 percentage point of it" in answer, best
