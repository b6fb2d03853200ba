"""The experiment file: read, overridden, refused with one clear error per mistake."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krscale.config import (
    Experiment,
    field_paths,
    load,
    nearest_fields,
    parse_capacity,
    validate,
    with_values,
)
from krscale.errors import UserError


def toml(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_embedded_experiment() -> None:
    assert load() == Experiment()
    assert len(load().ladder.capacities) >= 4


def test_file_then_overrides(tmp_path: Path) -> None:
    path = toml(tmp_path, 'name = "a"\n[train]\nnum_epochs = 7\nlearning_rate = 1e-3\n')
    found = load(
        path, ["train.num_epochs=9", "search.methods=['kd', 'kr']", "student.model=resnet"]
    )
    assert found.name == "a"
    assert found.train.num_epochs == 9
    assert found.train.learning_rate == 0.001
    assert found.search.methods == ("kd", "kr")


def test_every_field_path_can_be_overridden() -> None:
    content = load().model_dump(mode="python")
    for dotted in field_paths():
        value = content
        for name in dotted.split("."):
            value = value[name]
        assert with_values(load(), {dotted: value}, "test") == load(), dotted


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.num_epoch=3", ["--set train.num_epoch", "Did you mean 'train.num_epochs'"]),
        ("distil.method=kr", ["unknown key 'distil'", "Did you mean 'distill'"]),
        ("train.num_epochs=0", ["--set train.num_epochs", "greater than or equal to 1", "got 0"]),
        ("train.num_epochs=1.5", ["valid integer", "got 1.5"]),
        ("train.device=gpu", ["'auto', 'cpu' or 'cuda'", "got 'gpu'"]),
        ("distill.granularity=0", ["at least 1", "got 0"]),
        ("distill.granularity=stages", ["'network', 'stage' or 'layer'", "got 'stages'"]),
        ("distill.sparsity=1.0", ["less than 1", "got 1.0"]),
        ("ladder.capacities=['2']", ["(0, 1]"]),
        ("ladder.capacities=['1/4', '1/2', '0.25']", ["'1/4' and '0.25' are the same"]),
        ("ladder.capacities=['2/8', '1/4']", ["'2/8' and '1/4' are the same"]),
        ("ladder.capacities=['1/4', '1/4']", ["'1/4' is named twice"]),
        ("ladder.capacities=[' 1/4']", ["' 1/4' is not a fraction"]),
        ("ladder.capacities=[0.25]", ["expected text in quotes, e.g. '0.25'", "got 0.25"]),
        ("search.methods=['kd', 'kr', 'kd']", ["'kd' is named twice"]),
        ("search.methods=['kr+dkd+dkd']", ["'kr+dkd+dkd' names 'dkd' twice"]),
        (
            "search.methods=['kr+kd+dkd', 'kd', 'kr+dkd+kd']",
            ["'kr+kd+dkd' and 'kr+dkd+kd' are the same"],
        ),
        (
            "search.methods=plain,kr",
            ["expected a list, e.g. --set \"search.methods=['plain', 'kr']\"", "got 'plain,kr'"],
        ),
        ("train.optimiser=sgd", ["Did you mean 'train.optimizer'"]),
        ("train.scheduler=cosine", ["Did you mean 'train.schedule'"]),
        ("train.ema=0.99", ["Did you mean 'train.ema_decay'"]),
        ("teacher.checkpoint=w.pt", ["Did you mean 'teacher.weights'"]),
        ("student.arch=resnet", ["Did you mean 'student.model'"]),
        ("ladder.sizes=['1/4']", ["Did you mean 'ladder.capacities'"]),
        (f"storage_path={__file__}", ["--set storage_path", "test_reading.py is a file"]),
        ("storage_path=s3://KEY:S3CRET@bucket", ["--set storage_path", "AWS_SECRET_ACCESS_KEY"]),
        (f"storage_path={__file__}/runs", ["test_reading.py is a file; a folder is needed"]),
        ("search.methods=[plain, kr]", ["--set \"search.methods=['plain', 'kr']\""]),
        ("search.methods=kr", ["--set \"search.methods=['kr']\""]),
        ("search.methods=3", ["--set \"search.methods=['plain', 'kd', 'kr']\""]),
        ("data.files.raw_shape=3,32,32", ['--set "data.files.raw_shape=[3, 32, 32]"']),
        ("teacher.options=num_blocks=2", ["expected a table of names and values", "{num_blocks"]),
        ("data.files=3", ["data.files is a section, not a value; it has: image_column, "]),
        ("train.optimizer=adam", ["defaults: train.learning_rate must be given"]),
        ("train.gradient_accumulation=65", ["(train.global_batch_size) would be empty."]),
        ("optimizer=adam", ["Did you mean 'train.optimizer'"]),
        ("distill.posterior.xyz=1", ["distill.posterior has: kd, dkd, dist, "]),
        ("distill.posteriors.kd=1", ["--set distill.posteriors.kd", "'distill.posterior'?"]),
        ("train.epochs=3", ["Did you mean 'train.num_epochs'?"]),
        ("train.batch_size=3", ["Did you mean 'train.global_batch_size'?"]),
        ("train.lr=3", ["Did you mean 'train.learning_rate'?"]),
        ("store.topk=3", ["Did you mean 'store.top_k'?"]),
        ("search.num_epochs=3", ["'teacher.num_epochs' or 'train.num_epochs'?"]),
        ("num_epochs=3", ["'teacher.num_epochs' or 'train.num_epochs'?"]),
        ("train.trials_per_size=3", ["Did you mean 'search.trials_per_size'?"]),
        ("distill.kr_weight=nan", ["finite"]),
        ("name=../elsewhere", ["--set name", "got '../elsewhere'"]),
        ("train=3", ["--set train"]),
        ("train.num_epochs", ["expected key.path=value"]),
        ("train.num_epochs.x=3", ["--set train.num_epochs.x=3"]),
        ("distill.capacity=smal", ["--set distill.capacity: 'smal' is no student"]),
        ("data.files.num_channels=true", ["data.files.num_channels: expected 1 or 3 (got True)"]),
        ("data.files.num_channels=1.0", ["expected 1 or 3 (got 1.0)"]),
        ("data.files.num_channels=2", ["input should be 1 or 3 (got 2)"]),
        ("train.optimizer_options=3", ["{betas = "]),
        ("name.x=1", ["--set name.x: expected text in quotes (got {"]),
    ],
)
def test_mistakes_are_named(override: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(None, ["train.num_epochs=5", override])
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


ARE_NO_SETS = {
    "data.files.raw_shape": ["data.files.raw_shape=[3, 32, 32]"],
    **{
        f"{network}.preprocessing.{name}": [
            f"{network}.preprocessing.mean=[0.5, 0.5, 0.4]",
            f"{network}.preprocessing.std=[0.2, 0.2, 0.3]",
            f"{network}.preprocessing.input_size=[32, 32]",
        ]
        for network in ("teacher", "student")
        for name in ("mean", "std", "input_size")
    },
}
"""Ordered lists of numbers, in which a value may occur twice, with settings in which one does."""
OF_TABLES = {"ladder.students"}
"""Lists of tables, each with a name."""
RISING = {"teacher.stage_ends", "student.stage_ends"}
"""Lists of increasing numbers; see test_found_taps.py."""


def value_of(content: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        content = content[name]
    return content


LISTS = [
    dotted
    for dotted in field_paths()
    if isinstance(value_of(load().model_dump(mode="python"), dotted), tuple)
]


@pytest.mark.parametrize("dotted", LISTS)
def test_every_list_is_a_set_and_has_a_member_where_one_is_needed(dotted: str) -> None:
    """Fail if a list is added to the config without deciding what repeated values mean."""
    default = value_of(load().model_dump(mode="python"), dotted)
    member = "{name = 'a', model = 'resnet'}" if dotted in OF_TABLES else None
    twice = [*(default or ("a",)), (default or ("a",))[0]]
    if member:
        twice = f"[{member}, {member}]"
    if dotted in ARE_NO_SETS:
        assert load(None, ARE_NO_SETS[dotted])
    elif dotted not in RISING:
        with pytest.raises(UserError, match=rf"^--set {dotted}: .* is named twice"):
            load(None, [f"{dotted}={twice}"])
    if default:
        with pytest.raises(UserError, match=rf"^--set {dotted}: at least one is needed"):
            load(None, [f"{dotted}=[]"])
    else:
        assert load(None, [f"{dotted}=[]"]) == load(), "empty means that krscale chooses"


def test_the_lists_are_those_we_know() -> None:
    assert {"search.methods", "ladder.capacities", "student.taps", *ARE_NO_SETS} < set(LISTS)


def test_a_list_in_a_file_is_shown_as_a_file_has_it(tmp_path: Path) -> None:
    path = toml(tmp_path, '[search]\nmethods = "plain, kr"\n')
    with pytest.raises(UserError, match=r"expected a list, e.g. methods = \['plain', 'kr'\] "):
        load(path)


def test_no_field_is_suggested_for_the_name_of_its_section() -> None:
    """The shared prefix `train.` does not make a name similar to `train.compile`."""
    for dotted in field_paths():
        section = dotted.rpartition(".")[0]
        found = nearest_fields(f"{section}.xyzzyxyzzy" if section else "xyzzyxyzzy", field_paths())
        assert found == []
        assert nearest_fields(dotted, field_paths()) == [dotted]


def test_every_mistake_of_a_file_is_listed_once(tmp_path: Path) -> None:
    path = toml(tmp_path, '[train]\nnum_epochs = "many"\nlerning_rate = 1\n')
    with pytest.raises(UserError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(str(path)) for line in lines)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    toml(tmp_path, "x = ")
    with pytest.raises(UserError, match=r"not a readable TOML"):
        load(tmp_path / "experiment.toml")
    with pytest.raises(UserError, match=r"no such file.*Did you mean .*experiment\.toml"):
        load(tmp_path / "experimnt.toml")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev")
def test_what_is_no_file_or_has_no_end_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    sparse = tmp_path / "sparse.toml"
    sparse.touch()
    os.truncate(sparse, 10**13)
    named = {
        tmp_path / "pipe.toml": "a named pipe",
        tmp_path: "a folder",
        Path("/dev/zero"): "a device",
        sparse: r"more than 4,194,304 bytes",
    }
    for path, words in named.items():
        with pytest.raises(UserError, match=f"not a readable TOML file: .*{words}"):
            load(path)


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_what_a_shell_gives_as_a_file_is_read(folder: str) -> None:
    """Process substitution in bash and zsh: `krscale tune <(sed ... jobs/digits.toml)`."""
    if not Path(folder).exists():
        pytest.skip(f"no {folder}")
    read, write = os.pipe()
    try:
        os.write(write, b'name = "piped"\n')
        os.close(write)
        assert load(Path(f"{folder}/{read}")).name == "piped"
    finally:
        os.close(read)


def test_fingerprint_covers_results_and_not_places() -> None:
    base = load()
    same = load(None, ["storage_path=/elsewhere", "tracking.uri=http://h:1", "cluster.num_cpus=3"])
    assert same.fingerprint() == base.fingerprint()
    assert load(None, ["train.seed=1"]).fingerprint() != base.fingerprint()


def test_storage_path_is_absolute_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load(None, ["storage_path=here"])
    monkeypatch.chdir("/")
    assert found.run_path == tmp_path / "here" / "digits"


def test_storage_path_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", "/somewhere")
    assert load().run_path == Path("/somewhere/digits")


@pytest.mark.parametrize(("text", "share"), [("1/16", 0.0625), ("0.05", 0.05), ("1", 1.0)])
def test_parse_capacity(text: str, share: float) -> None:
    assert parse_capacity(text) == share


@pytest.mark.parametrize("text", ["0", "-1/4", "3/2", "1/0", "sixteenth", ""])
def test_parse_capacity_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"fraction|\(0, 1\]"):
        parse_capacity(text)


def test_jobs_that_ship_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = load("jobs/digits.toml")
    monkeypatch.chdir(tmp_path)
    assert load("jobs/digits.toml").search == here.search  # storage_path depends on the cwd
    with pytest.raises(UserError, match=r"digit\.toml: no such file\. Did you mean .*digits\.toml"):
        load("jobs/digit.toml")
    (tmp_path / "jobs").mkdir()  # the user's own folder takes precedence
    with pytest.raises(UserError, match=r"jobs/digits\.toml: no such file"):
        load("jobs/digits.toml")
    with pytest.raises(UserError, match=r"digits\.toml: no such file"):
        load("digits.toml")


@pytest.mark.parametrize(
    "text", ["s3:/b/p", "s3//b/p", "S3;//b", " s3://b/p", "'s3://b/p'", '"other://b"', "gs:b"]
)
def test_a_mistyped_uri_is_no_folder(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container would keep its results in a folder of this name, and lose them with itself."""
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", text)
    with pytest.raises(UserError, match=r"storage_path: a URI begins with its scheme, a colon"):
        load()


@pytest.mark.parametrize("text", ["s3/b", "runs//b", "./s3//b", "./ s3:/b", "files"])
def test_a_folder_may_be_called_like_a_scheme(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", text)
    assert load().storage_path == str(tmp_path / text)


@pytest.mark.parametrize("uri", ["s3://KEY:S3CRET@bucket", "s3://b?secret_key=S3CRET"])
def test_credentials_of_a_storage_are_not_repeated(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        load(overrides=[f"storage_path={uri}"])
    assert "S3CRET" not in str(caught.value)


def test_lists_within_lists_without_end(tmp_path: Path) -> None:
    nested = "[" * 100_000
    with pytest.raises(UserError, match=r"experiment\.toml: not a readable TOML file"):
        load(toml(tmp_path, f"name = {nested}"))
    with pytest.raises(UserError, match="name"):
        load(overrides=[f"name={nested}"])


@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "a = {{{} = 1}}", "[[{}]]"])
@pytest.mark.parametrize(
    "part", ["a.", '"a" . ', "'b'.", '"a b".', "'#=['.", "''.", r'"a\"b".', "a" * 150 + "."]
)
def test_keys_of_parts_without_end(form: str, part: str, tmp_path: Path) -> None:
    """Python's TOML reader needs gigabytes of memory for such a key of 100 kilobytes."""
    path = toml(tmp_path, form.format(part * 20_000 + "a"))
    with pytest.raises(UserError, match=r"not a readable TOML file: a key of more than 100 parts"):
        load(path)


def test_a_long_file_without_such_a_key_is_read_at_once(tmp_path: Path) -> None:
    names = ", ".join(f'"class.{number}.of.many"' for number in range(2_000))
    long = [".".join("x" * 150), "x" * 10**5]
    path = toml(tmp_path, f'[data.files]\nclasses = [{names}, "{long[0]}", "{long[1]}"]\n')
    assert load(path).data.files.classes[-2:] == tuple(long)


@pytest.mark.parametrize(
    "setting",
    [
        "teacher.width=1000001",
        "student.width_multiple=1025",
        "teacher.preprocessing.input_size=16385",
        "student.preprocessing.input_size=[8, 16385]",
        "data.files.image_size=16385",
        f"teacher.width={10**30}",
    ],
)
def test_sizes_that_no_machine_can_hold_are_out_of_range(setting: str) -> None:
    name = setting.partition("=")[0]
    with pytest.raises(UserError, match=rf"--set {name}.*less than or equal to"):
        load(None, [setting])


def test_values_of_numpy_and_pathlib_are_taken_as_they_are_meant(tmp_path: Path) -> None:
    given = {
        "storage_path": tmp_path / "runs",
        "train": {"num_epochs": np.int64(3), "learning_rate": np.float32(0.5)},
        "teacher": {"preprocessing": {"mean": [np.float64(0.5)], "std": (np.float64(0.25),)}},
    }
    found = validate(given, "here")
    assert found.storage_path == str(tmp_path / "runs")
    assert (found.train.num_epochs, found.train.learning_rate) == (3, 0.5)
    assert found.teacher.preprocessing.std == (0.25,)
    for wrong in (np.float64(2.5), np.zeros(2), np.str_("3"), np.bool_(True)):
        with pytest.raises(UserError, match="num_epochs"):
            validate({"train": {"num_epochs": wrong}}, "here")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.num_epochs=3\nseed=4", "--set train.num_epochs: it takes one value"),
        ("train.num_epochs=3\n[data]", "--set train.num_epochs: it takes one value"),
    ],
)
def test_an_override_has_one_value(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(overrides=[override])


def test_a_table_for_a_section_sets_its_fields_and_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text("[train]\nlearning_rate = 0.3\n[distill.posterior]\nkd = 2.0\n")
    found = load(file, ["train={num_epochs=3}", "distill={posterior={dkd=3.0}}"])
    assert (found.train.num_epochs, found.train.learning_rate) == (3, 0.3)
    assert (found.distill.posterior.kd, found.distill.posterior.dkd) == (2.0, 3.0)
    with pytest.raises(UserError, match="--set views: an empty table sets no field"):
        load(file, ["views={}"])
    with pytest.raises(UserError, match=r"Did you mean 'train\.num_epochs'"):
        load(file, ["train={num_epoch=3}"])


def test_tables_that_are_values_and_lists_of_lines_are_taken() -> None:
    found = load(overrides=["teacher.options={num_blocks=2}", 'data.files.classes=["a",\n"b"]'])
    assert found.teacher.options == {"num_blocks": 2}
    assert found.data.files.classes == ("a", "b")


@pytest.mark.parametrize(
    "dotted",
    ["search.max_wall_seconds", "search.stall_seconds", "search.gpus_per_trial",
     "train.learning_rate", "search.target_accuracy", "data.val_fraction", "views.jitter",
     "distill.temperature", "distill.sparsity", "distill.auxiliary_until", "store.max_error",
     "data.glyphs.noise", "train.warmup_epochs"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["true", "'0.2'", "nan"])
def test_numbers_are_numbers(dotted: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--set {dotted}: "):
        load(overrides=[f"{dotted}={value}"])


@pytest.mark.parametrize("value", ["yes", "'no'", "1", "0", "1.0"])
def test_switches_are_true_or_false(value: str) -> None:
    with pytest.raises(UserError, match=r"--set views\.flip: expected true or false"):
        load(overrides=[f"views.flip={value}"])


@pytest.mark.parametrize("section", ["teacher", "train"])
def test_seeds_of_trainings_are_those_that_torch_takes(section: str) -> None:
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(UserError, match=f"--set {section}.seed: "):
            load(overrides=[f"{section}.seed={seed}"])


@pytest.mark.parametrize("section", ["data", "data.glyphs", "views", "search"])
def test_seeds_that_are_hashed_have_no_bound(section: str) -> None:
    load(overrides=[f"{section}.seed={2**64}"])


def test_a_warm_up_that_never_ends() -> None:
    with pytest.raises(UserError, match="the learning rate would never reach its peak"):
        load(overrides=["train.warmup_epochs=20"])
    assert load(overrides=["train.warmup_epochs=12"]).train.warmup_epochs == 12


@pytest.mark.parametrize(
    ("text", "meant"), [(".1", "0.1"), ("1.", "1.0"), ("+.5", "0.5"), ("01", "1.0"), ("0,1", "0.1")]
)
def test_a_number_as_other_languages_write_it(text: str, meant: str, tmp_path: Path) -> None:
    """TOML needs a digit on both sides of the point; the error does not mention absent quotes."""
    with pytest.raises(UserError, match=rf'e\.g\. --set "train\.learning_rate={meant}" \(got'):
        load(overrides=[f"train.learning_rate={text}"])


@pytest.mark.parametrize("text", ["'0.1'", '"1e-3"', "abc", ".inf", "1,000.5"])
def test_what_is_no_number_at_all(text: str) -> None:
    with pytest.raises(UserError, match=r"learning_rate: expected a number, without quotes"):
        load(overrides=[f"train.learning_rate={text}"])


def test_a_job_with_a_warm_up_is_tried_for_a_few_epochs(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text("[train]\nwarmup_epochs = 5\n")
    assert load(file, ["train.num_epochs=2"]).train.num_epochs == 2


@pytest.mark.parametrize("value", ["", "s3:/bucket", "S3:bucket", "memory:/runs", "oss:/b", " "])
def test_a_storage_that_names_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--set storage_path: "):
        load(overrides=[f"storage_path='{value}'"])
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", value)
    if value:
        with pytest.raises(UserError, match=r"\$KRSCALE_STORAGE_PATH: storage_path: "):
            load()
    else:  # compose files set a variable that is not given to an empty string
        assert Path(load().storage_path).name == "runs"


def test_text_as_windows_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('name = "size"\n', encoding="utf-8-sig")
    assert load(file).name == "size"
    for encoding, said in (("utf-16", "in UTF-16; save it as UTF-8"), ("latin-1", "line 2 is not")):
        file.write_text('name = "size"\n# Größe\n', encoding=encoding)
        with pytest.raises(UserError, match=said):
            load(file)


@pytest.mark.parametrize("dotted", ["teacher.model", "student.model"])
def test_what_follows_from_a_wrong_value_is_no_mistake_of_its_own(dotted: str) -> None:
    with pytest.raises(UserError) as caught:
        load(overrides=[f"{dotted}=3"])
    assert str(caught.value) == f"--set {dotted}: expected text in quotes, e.g. '3' (got 3)."


def test_an_empty_text_is_no_experiment() -> None:
    with pytest.raises(UserError, match=r"EXPERIMENT\.toml: expected a file, got an empty text"):
        load("")
