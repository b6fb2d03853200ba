"""Networks of the user's own from the config to a training: taken as they are, or refused early."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from odd_networks import Net
from safetensors.torch import save_file

from krscale.config import Experiment, load, with_values
from krscale.data import open_data
from krscale.errors import UserError
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup.build import Assets, build_training, trial_experiment
from krscale.setup.networks import Networks
from krscale.setup.plan import describe
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.sizes import ladder_sizes
from krscale.setup.teacher import open_teacher
from krscale.setup.weights import check_weights, load_student_weights

OWN = ("teacher.model=odd_networks:Net", "teacher.options={}", "teacher.width=300")
LADDER = (
    "ladder.students=[{name='wide', model='odd_networks:Net', width=6, options={form='dict'}}, "
    "{name='narrow', model='resnet', options={num_blocks=1}, width=1, weights='%s'}]"
)


def experiment(*settings: str) -> Experiment:
    small = ("views.num_views=1", "search.methods=['kr']", "ladder.capacities=['1/4', '1/2']")
    return load(None, [*small, *OWN, *settings])


@dataclass(frozen=True)
class Digits:
    num_classes: int = 10
    image_shape: tuple[int, int, int] = (1, 8, 8)
    num_train: int = 1077


def resolved(*settings: str) -> tuple[Networks, tuple[str, ...]]:
    """Do what a plan and a start do first, except for the data and the sizes of the ladder."""
    networks = Networks.resolve(experiment(*settings), Digits())
    networks.check()
    return networks, check_weights(networks)


def refused(*settings: str) -> str:
    with pytest.raises(UserError) as caught:
        resolved(*settings)
    return str(caught.value)


@pytest.mark.parametrize(
    "form", ["dict", "dataclass", "positions", "looks at values", "logarithms"]
)
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_what_gives_logits_is_taken(network: str, form: str) -> None:
    settings = (f"{network}.model=odd_networks:Net", f"{network}.options={{form='{form}'}}")
    networks, notes = resolved(*settings)
    assert networks.teacher.num_taps == 2
    assert networks.teacher.stage_shapes == ((300, 8, 8),)
    assert notes == ()


@pytest.mark.parametrize("network", ["teacher", "student"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["options={form='three'}"], "{}: the network gives 3 logits, the data have 10 classes"),
        (["options={form='pair'}"], "{}.output_key: the network returns '0' [2, "),
        (["options={form='text'}"], "{}: the network returns str"),
        (["options={form='probabilities'}"], "{}: in eval mode the network gives probabilities"),
        (["options={form='shares'}"], "{}: all its outputs lie between 0 and 1 whatever its"),
        (["model=odd_networks:scripted"], "{}.model: odd_networks:scripted: this is a program"),
        (["model=odd_networks:exported"], "{}.model: odd_networks:exported: this is a program"),
        (["options={form='dropout'}"], "{}: in eval mode the network gives the same images other"),
        (["options={form='batch'}"], "{}: in eval mode the network gives an image other outputs"),
        (["options={form='in place'}"], "{}: the network changes the images that it is given"),
        (["options={form='squeeze'}"], "{}: for one image by itself the network gives [10], and"),
        (["options={form='crash'}"], "{}: the network does not run on images of shape [1, 8, 8]"),
        (["output_key=logits"], "{}.output_key: 'logits' is set, but the network returns"),
        (["options={from='dict'}"], "{}.options: unknown option of odd_networks:Net 'from'"),
        (["taps=['frist']"], "{}.taps: unknown tap 'frist'. Did you mean 'first'?"),
        (["model=odd_networks:nett"], "{}.model: unknown callable of odd_networks 'nett'"),
    ],
)
def test_what_does_not_is_refused_by_the_plan(
    network: str, settings: list[str], message: str
) -> None:
    both = [f"{network}.model=odd_networks:Net", f"{network}.options={{}}"]
    found = refused(*both, *(f"{network}.{setting}" for setting in settings))
    assert message.format(network) in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["teacher.weights_key=ema"], "teacher.weights_key: 'ema' chooses among the weights of a"),
        (["teacher.weights_key=ema", "teacher.weights=own"], "teacher.weights names none"),
        (["student.tap_layout=channels_last"], "student.tap_layout: 'channels_last' is set, but"),
    ],
)
def test_settings_that_would_mean_nothing_are_refused(settings: list[str], message: str) -> None:
    assert message in refused(*settings)


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_taps_out_of_depth_order_are_refused(network: str) -> None:
    of_zoo, taps = f"{network}.model=resnet", ["stages.0.0", "stages.1.0"]
    assert resolved(of_zoo, f"{network}.options={{}}", f"{network}.taps={taps}")
    found = refused(of_zoo, f"{network}.options={{}}", f"{network}.taps={taps[::-1]}")
    assert found.startswith(f"{network}.taps: tap 'stages.1.0' is named before 'stages.0.0'")


def test_a_plan_refuses_it_too() -> None:
    with pytest.raises(UserError, match="student: the network gives 3 logits"):
        describe(experiment("student.model=odd_networks:Net", "student.options={form='three'}"))


def test_a_student_that_ignores_its_dial_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        describe(experiment("student.model=odd_networks:fixed", "student.options={}"))
    found = str(caught.value)
    assert "student.model: 'odd_networks:fixed' has " in found
    assert "parameters at every width; it ignores its capacity dial" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_ema": Net(10).state_dict()}, "teacher.weights_key says which to take"),
        (Net(7, width=300).state_dict(), "'head' tells 7 classes apart, the data have 10"),
        ({"head.bias": torch.full((10,), torch.nan)}, "missing: first.0.weight"),
        (
            Net(10, width=300, form="NaN").state_dict(),
            "NaN or infinity in head.bias. The training they come from has failed",
        ),
        ({"epoch": 3}, "not a state dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_plan(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    torch.save(content, tmp_path / "w.ckpt")
    found = refused(f"teacher.weights={tmp_path / 'w.ckpt'}")
    assert found.startswith("teacher.weights: ")
    assert message in found


def test_a_teacher_with_weights_need_not_run_in_train_mode(tmp_path: Path) -> None:
    torch.save(Net(10, width=300).state_dict(), tmp_path / "w.pt")
    weights = f"teacher.weights={tmp_path / 'w.pt'}"
    resolved("teacher.options={form='eval only'}", weights)
    assert "in train mode: ValueError" in refused("teacher.options={form='eval only'}")


def test_a_teacher_whose_outputs_are_not_finite_does_not_teach(tmp_path: Path) -> None:
    chosen = experiment(
        f"storage_path={tmp_path}", "teacher.weights=own", "teacher.options={form='overflow'}"
    )
    with (
        Progress(quiet=True, planned={}) as progress,
        pytest.raises(UserError, match=r"teacher: .*NaN or inf"),
    ):
        prepare(chosen, progress)
    assert not list(tmp_path.glob("cache/stores/*"))


@pytest.mark.parametrize("weights", ["", "teacher.weights=own"])
def test_weights_that_a_network_is_built_with_must_be_finite(weights: str) -> None:
    settings = ["teacher.options={form='NaN'}", *([weights] if weights else [])]
    assert "teacher: the weights hold NaN or infinity: head.bias" in refused(*settings)
    student = ("student.model=odd_networks:Net", "student.options={form='NaN'}")
    assert "student: the weights hold NaN or infinity: head.bias" in refused(*student)


def test_a_teacher_that_loads_weights_is_told_from_one_that_draws_them(tmp_path: Path) -> None:
    save_file(Net(10).state_dict(), tmp_path / "net.safetensors")
    loads = ("teacher.model=odd_networks:trained",
             f"teacher.options={{path='{tmp_path / 'net.safetensors'}'}}")  # fmt: skip
    _, notes = resolved(*loads)
    assert "odd_networks:trained gives the same weights whatever the seed" in notes[0]
    assert "the data's mean and std (teacher.preprocessing); teacher.weights = 'own'" in notes[0]
    assert resolved(*loads, "teacher.weights=own")[1] == ()
    assert resolved()[1] == ()


def test_a_student_that_loads_weights_is_noted(tmp_path: Path) -> None:
    save_file(Net(10).state_dict(), tmp_path / "net.safetensors")
    options = f"{{path='{tmp_path / 'net.safetensors'}'}}"
    student = "name='loads', model='odd_networks:trained'"
    for settings, where in (
        (("student.model=odd_networks:trained", f"student.options={options}"), "student"),
        ((f"ladder.students=[{{{student}, options={options}}}]",), "ladder.students.loads"),
    ):
        _, notes = resolved(*settings)
        assert f"{where}: odd_networks:trained gives the same weights whatever" in notes[0]
        assert f"({where}.preprocessing)" in notes[0]
    replaced = f"{{{student}, options={options}, weights='{tmp_path / 'net.safetensors'}'}}"
    assert resolved(f"ladder.students=[{replaced}]")[1] == ()
    kept = f"{{{student}, options={options}, weights='own'}}"
    networks, notes = resolved(f"ladder.students=[{kept}]")
    assert notes == ()
    chosen = with_values(networks.experiment, {"distill.capacity": "loads"}, "test")
    load_student_weights(chosen, Net(10))  # there is no file to read


def test_what_was_dropped_of_weights_is_noted(tmp_path: Path) -> None:
    state = {f"net.{name}": value for name, value in Net(10, width=300).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.ckpt")
    _, notes = resolved(f"teacher.weights={tmp_path / 'w.ckpt'}")
    assert "without their beginning 'net.'" in " ".join(notes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Prepared]:
    """A teacher that loads its own weights, and a ladder of two students."""
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(1)
    save_file(Net(10).state_dict(), folder / "net.safetensors")
    student = {f"module.{k}": v for k, v in narrow().state_dict().items()}
    torch.save({"net": student}, folder / "narrow.pt")
    chosen = experiment(
        f"storage_path={folder}",
        "teacher.model=odd_networks:trained",
        f"teacher.options={{path='{folder / 'net.safetensors'}'}}",
        "teacher.weights=own",
        "teacher.allow_poor=true",
        LADDER % (folder / "narrow.pt"),
    )
    with Progress(quiet=True, planned={}) as progress:
        return chosen, prepare(chosen, progress)


def narrow() -> torch.nn.Module:
    from krscale.models.resnet import resnet

    torch.manual_seed(7)
    return resnet(num_classes=10, in_channels=1, width=1, num_blocks=1)


def test_a_teacher_keeps_its_own_weights(prepared: tuple[Experiment, Prepared]) -> None:
    chosen, found = prepared
    teacher = open_teacher(chosen, open_data(Path(found.data_path)), Path(found.teacher_path))
    torch.manual_seed(1)
    expected = Net(10).state_dict()
    state = teacher.tapped.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_students_of_ones_own_are_the_sizes(prepared: tuple[Experiment, Prepared]) -> None:
    chosen, _ = prepared
    plan = describe(chosen)
    assert [size.capacity for size in plan.sizes] == ["wide", "narrow"]
    assert [size.width for size in ladder_sizes(plan.networks)] == [6, 1]


@pytest.mark.parametrize("name", ["wide", "narrow"])
def test_each_is_trained_from_what_it_starts_with(
    prepared: tuple[Experiment, Prepared], name: str
) -> None:
    chosen, found = prepared
    trial = trial_experiment(chosen, "kr", {"distill.capacity": name, "train.num_epochs": 1}, 0)
    width = trial.any_student.width
    training = build_training(trial, Assets.open(found), width, Workers.alone())
    if name == "narrow":
        expected = narrow().state_dict()
        state = training.student.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
    else:
        assert isinstance(training.student, Net)
    metrics = training.run_epoch()
    assert metrics["train/kr"] > 0.0


def test_weights_of_a_student_are_checked_before_anything_trains(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pt")
    found = refused(LADDER % (tmp_path / "x.pt"))
    assert found.startswith("ladder.students.narrow.weights: ")
    assert "missing: " in found


def test_the_students_are_not_searched(tmp_path: Path) -> None:
    from krscale.search.plan import describe_plan

    torch.save(narrow().state_dict(), tmp_path / "x.pt")
    space = tmp_path / "space.toml"
    space.write_text('[kr."student.options.num_blocks"]\ntype = "int"\nlow = 1\nhigh = 2\n')
    chosen = experiment(LADDER % (tmp_path / "x.pt"), f"search.space={space}")
    with pytest.raises(UserError, match=r"student\.options.*leave it out of the space"):
        describe_plan(chosen)
    text = describe_plan(experiment(LADDER % (tmp_path / "x.pt")))
    assert "size wide        odd_networks:Net width 6" in text


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    "build",
    [
        "NET = Net(n_classes=10, width=4)\ndef build(): return NET",
        "@functools.cache\ndef build(): return Net(n_classes=10, width=4)",
        "STEM = nn.Conv2d(1, 4, 3, padding=1)\n"
        "def build(): return nn.Sequential(STEM, nn.Flatten(), nn.Linear(256, 10))",
    ],
)
def test_what_is_trained_and_built_once_is_refused(
    role: str, build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, each of its trainings would go on from the weights of the one before."""
    name = f"{role}_once_{abs(hash(build))}"
    text = f"import functools\nfrom torch import nn\nfrom odd_networks import Net\n{build}\n"
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    table, setting = {
        "student": (
            "ladder.students.tiny",
            f"ladder.students=[{{name='tiny', model='{name}:build'}}]",
        ),
        "teacher": ("teacher", f"teacher.model={name}:build"),
    }[role]
    said = refused(setting)
    assert said.startswith(f"{table}.model: {name}:build returns ")
    assert re.search(r"build a new one\s+each time", said)


def test_a_teacher_with_weights_may_be_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is first imported where networks are built on meta tensors, for their shapes."""
    text = (
        "from odd_networks import Net\nNET = Net(n_classes=10, width=300)\n"
        "def build(): return NET\n"
    )
    (tmp_path / "teacher_once.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = ("teacher.model=teacher_once:build", "teacher.weights=own")
    assert resolved(*settings)[0].teacher.num_taps == 2


def test_a_network_that_was_kept_without_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import functools\nfrom odd_networks import Net\n"
        "@functools.cache\ndef build(): return Net(n_classes=10, width=300)\n"
    )
    (tmp_path / "teacher_kept.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = refused("teacher.model=teacher_kept:build")
    assert said.startswith("teacher.model: teacher_kept:build returns weights without values")


def test_a_table_that_was_kept_without_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that keeps tables of positions is first called on meta tensors."""
    text = (
        "import functools, torch\nfrom odd_networks import Net\n"
        "@functools.cache\ndef table(): return torch.ones(())\n"
        "class Kept(Net):\n"
        "    def __init__(self, n_classes):\n"
        "        super().__init__(n_classes)\n"
        "        self.register_buffer('table', table())\n"
        "    def forward(self, images): return super().forward(images * self.table)\n"
    )
    (tmp_path / "table_kept.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = refused("teacher.model=table_kept:Kept")
    assert said.startswith("teacher.model: table_kept:Kept returns buffers without values")


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("role", ["teacher", "teacher.weights=own", "teacher of a file", "student"])
def test_a_network_of_which_something_random_is_not_saved_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, saved: bool
) -> None:
    """Built again for its store, a teacher would shuffle the pixels in another order."""
    name = f"shuffled_{saved}"
    keep = "self.register_buffer('order', order)" if saved else "self.order = order"
    text = (
        "import torch\nfrom odd_networks import Net\n"
        "class Shuffled(Net):\n"
        "    def __init__(self, n_classes, width):\n"
        "        super().__init__(n_classes, width=width)\n"
        f"        order = torch.randperm(64)\n        {keep}\n"
        "    def forward(self, images):\n"
        "        mixed = images.flatten(1)[:, self.order]\n"
        "        return super().forward(mixed.view_as(images))\n"
    )
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = role.partition(".")[0].partition(" ")[0]
    settings = [f"{kind}.model={name}:Shuffled", f"{kind}.options={{}}"]
    if role == "teacher of a file":
        state = Net(10, width=300).state_dict() | ({"order": torch.arange(64)} if saved else {})
        torch.save(state, tmp_path / "w.pt")
        settings.append(f"teacher.weights={tmp_path / 'w.pt'}")
    elif "=" in role:
        settings.append(role)
    if saved:
        resolved(*settings)
    else:
        assert f"{kind}: the network is built with something random" in refused(*settings)
