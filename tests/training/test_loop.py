"""The loop learns, is reproducible, goes on from a checkpoint, and names what is not finite."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accumulated_training import accumulated_training, weights_after_an_epoch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from krscale.config import DataConfig, TrainConfig, ViewsConfig
from krscale.data import Dataset, prepare_data
from krscale.data.loader import Loader
from krscale.errors import NoGradientError, NonFiniteError, UserError
from krscale.knowledge.taps import TapOutputs
from krscale.methods import MethodContext, build_method
from krscale.methods.base import Method
from krscale.methods.batch import Batch
from krscale.methods.learner import Learner
from krscale.models.resnet import resnet
from krscale.parallel import Workers
from krscale.training.loop import Training, evaluate, fit, fit_or_continue


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_data(DataConfig(max_images=900), tmp_path_factory.mktemp("cache"))


def training(dataset: Dataset, method: Method | None = None, **changes: object) -> Training:
    settings = TrainConfig(**{"num_epochs": 2, "global_batch_size": 61, **changes})
    torch.manual_seed(settings.seed)
    student = resnet(num_classes=10, in_channels=1, width=4, num_blocks=1)
    plain = build_method("plain", MethodContext.without_teacher(10), {})
    loader = Loader(
        dataset,
        ViewsConfig(),
        global_batch_size=settings.global_batch_size,
        seed=settings.seed,
        device=torch.device("cpu"),
        store=None,
    )
    learner = Learner(student, (), method or plain)
    validation = (dataset, dataset.split("val"))
    return Training(learner, loader, validation, settings, Workers.alone())


def weights(found: Training) -> Mapping[str, Tensor]:
    return {name: tensor.clone() for name, tensor in found.student.state_dict().items()}


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_it_learns_and_reports_every_epoch(dataset: Dataset) -> None:
    reports: list[dict[str, float]] = []
    last = fit(training(dataset, num_epochs=6), lambda metrics: reports.append(metrics))
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4, 5, 6]
    assert last == reports[-1]
    assert reports[-1]["train/loss"] < reports[0]["train/loss"]
    assert reports[-1]["val/accuracy"] > 0.7
    assert reports[-1]["train/ce"] == reports[-1]["train/loss"]


@pytest.mark.parametrize("num_parts", [2, 7, 41])
def test_a_batch_in_parts_gives_the_step_of_the_whole(num_parts: int, tmp_path: Path) -> None:
    whole, parts = (weights_after_an_epoch(Workers.alone(), n, tmp_path) for n in (1, num_parts))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)


def test_only_a_part_is_computed_at_once(tmp_path: Path) -> None:
    training = accumulated_training(Workers.alone(), 4, tmp_path)
    sizes: list[int] = []
    training.student.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    training.run_epoch()
    assert sizes == [10] * 13  # three steps of 40 images, and one batch of validation


def test_more_parts_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="9 parts of a batch of 8 samples"):
        TrainConfig(global_batch_size=8, gradient_accumulation=9)


def test_same_seed_same_weights(dataset: Dataset) -> None:
    first, second, other = training(dataset), training(dataset), training(dataset, seed=1)
    for found in (first, second, other):
        fit(found, lambda metrics: None)
    assert_same(weights(first), weights(second))
    assert not torch.equal(
        first.student.state_dict()["classifier.weight"],
        other.student.state_dict()["classifier.weight"],
    )


def dropping(dataset: Dataset) -> Training:
    """Return a training whose student draws random numbers in every step, by dropout."""
    found = training(dataset, num_epochs=3)

    def drop(classifier: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return nn.functional.dropout(inputs[0], 0.5, classifier.training)

    found.learner.student.classifier.register_forward_pre_hook(drop)
    return found


def test_going_on_from_a_state_equals_never_stopping(dataset: Dataset) -> None:
    whole = dropping(dataset)
    fit(whole, lambda metrics: None)
    cut = dropping(dataset)
    cut.run_epoch()
    state = cut.state_dict()
    torch.rand(3)  # the generator has moved on in the meantime
    resumed = dropping(dataset)
    resumed.load_state_dict(state)
    assert resumed.epoch == 1
    fit(resumed, lambda metrics: None)
    assert_same(weights(whole), weights(resumed))


def test_the_random_numbers_of_a_gpu_go_on_too(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout on a GPU draws from a generator of the GPU's own."""
    found, gpu = training(dataset), torch.device("cuda", 1)
    drawn = {gpu: torch.tensor([7, 8, 9], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: drawn[device].clone())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: drawn.update({device: state})
    )
    on_cpu = found.state_dict()
    found.workers = replace(found.workers, device=gpu)
    kept = found.state_dict()
    drawn[gpu] = torch.zeros(3, dtype=torch.uint8)
    found.load_state_dict(on_cpu)
    assert drawn[gpu].tolist() == [0, 0, 0]
    found.load_state_dict(kept)
    assert drawn[gpu].tolist() == [7, 8, 9]
    found.workers = Workers.alone()
    found.load_state_dict(kept)


def first_step(dataset: Dataset, max_grad_norm: float) -> tuple[Tensor, Tensor]:
    """Return the change of all weights in the first step of plain SGD, and its gradient."""
    found = training(
        dataset, num_epochs=1, global_batch_size=2000, warmup_epochs=0.0, learning_rate=1.0,
        momentum=0.0, weight_decay=0.0, max_grad_norm=max_grad_norm,
    )  # fmt: skip
    before = nn.utils.parameters_to_vector(found.student.parameters()).detach().clone()
    found.run_epoch()
    after = nn.utils.parameters_to_vector(found.student.parameters()).detach()
    gradients = [p.grad for p in found.student.parameters() if p.grad is not None]
    return before - after, nn.utils.parameters_to_vector(gradients)


def test_long_gradients_are_shortened_and_short_ones_left(dataset: Dataset) -> None:
    free, gradient = first_step(dataset, 0.0)
    torch.testing.assert_close(free, gradient, atol=1e-6, rtol=1e-3)
    norm = gradient.norm().item()
    assert norm > 0.1
    limited, _ = first_step(dataset, norm / 4)
    torch.testing.assert_close(limited, free / 4, atol=1e-6, rtol=1e-3)
    assert torch.equal(first_step(dataset, 2 * norm)[0], free)


class Watching(Method):
    """Cross-entropy; records the progress that it is given."""

    needs_teacher = False

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def begin_epoch(self, progress: float) -> None:
        self.told.append(progress)

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        return {"ce": nn.functional.cross_entropy(student.logits, batch.labels, reduction="none")}


def test_a_method_is_told_how_far_the_training_is(dataset: Dataset) -> None:
    whole = training(dataset, method := Watching(), num_epochs=3)
    whole.run_epoch()
    resumed = training(dataset, after := Watching(), num_epochs=3)
    resumed.load_state_dict(whole.state_dict())
    fit(resumed, lambda metrics: None)
    assert method.told + after.told == [0.0, 0.5, 1.0]


def test_stops_when_told(dataset: Dataset) -> None:
    found = training(dataset, num_epochs=5)
    fit(found, lambda metrics: metrics["epoch"] == 2)
    assert found.epoch == 2
    assert not found.finished


class Poisoned(Method):
    """Two terms, the second of which turns NaN in the third step."""

    needs_teacher = False

    def __init__(self) -> None:
        super().__init__()
        self.step = 0

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        self.step += 1
        sound = nn.functional.cross_entropy(student.logits, batch.labels, reduction="none")
        factor = float("nan") if self.step == 3 else 1.0
        return {"sound": sound, "poisoned": sound * factor}


def test_the_first_term_that_is_not_finite_is_named(dataset: Dataset) -> None:
    with pytest.raises(NonFiniteError, match=r"'poisoned' is not finite in epoch 1, step 3 of"):
        training(dataset, Poisoned()).run_epoch()


class Weightless(Method):
    """A loss that depends on every weight, with gradients of 0."""

    needs_teacher = False

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        return {"nothing": 0.0 * student.logits.sum(dim=1)}


class Detached(Weightless):
    """A loss that depends on no weight."""

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        return {"nothing": student.logits.detach().sum(dim=1)}


@pytest.mark.parametrize(
    ("method", "said"),
    [(Weightless(), "the gradient of every weight of this network is 0"),
     (Detached(), "the loss depends on no weight of this network")],
)  # fmt: skip
def test_a_training_that_moves_nothing_ends_in_its_first_epoch(
    dataset: Dataset, method: Method, said: str
) -> None:
    with pytest.raises(NoGradientError, match=f"{said}. Are all weights of the loss 0"):
        training(dataset, method).run_epoch()


def test_a_network_that_is_frozen_as_a_whole_is_not_trained(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a network may be frozen: here its classifier alone is trained."""
    made = resnet
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "resnet", lambda **dial: made(**dial).requires_grad_(False))
        with pytest.raises(NoGradientError, match=r"none of the .* weights .* can be trained"):
            training(dataset)

    def with_free_classifier(**dial: int) -> nn.Module:
        network = made(**dial).requires_grad_(False)
        network.classifier.requires_grad_(True)
        return network

    monkeypatch.setitem(globals(), "resnet", with_free_classifier)
    assert training(dataset).run_epoch()["train/loss"] > 0.0


class NoReading(TorchDispatchMode):
    """Refuses what makes the host wait for the value of a tensor on a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func.overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.equal,
        ), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class Reading(Poisoned):
    """Reads the value of its own loss in every step."""

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        sound = nn.functional.cross_entropy(student.logits, batch.labels, reduction="none")
        return {"sound": sound / max(1.0, float(sound.detach().max()))}


@pytest.mark.parametrize("judged", [True, False])
def test_weights_that_the_last_step_breaks_are_no_result(dataset: Dataset, *, judged: bool) -> None:
    """Their only loss was computed before that step; a student that gives NaN would be kept."""
    settings = {"learning_rate": 1e30, "num_epochs": 1, "warmup_epochs": 0.0}
    found = training(dataset, global_batch_size=len(dataset.split("train")), **settings)
    assert found.loader.num_steps == 1
    if not judged:
        found.validation = None
    match = (
        "val/.* is not finite after epoch 1" if judged else "gives NaN or infinity after epoch 1"
    )
    with pytest.raises(NonFiniteError, match=match):
        found.run_epoch()


def test_every_step_and_every_judged_batch_is_a_sign_of_progress(dataset: Dataset) -> None:
    found, signs = training(dataset, num_epochs=1), list[int]()
    found.on_step = lambda: signs.append(1)
    found.run_epoch()
    assert len(signs) == found.loader.num_steps + 1


def test_channels_last_is_refused_where_it_would_abort_the_process(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"train.channels_last: true needs a GPU"):
        training(dataset, channels_last=True)
    with pytest.raises(ValueError, match="true needs a GPU"):
        TrainConfig(device="cpu", channels_last=True)
    assert TrainConfig(device="cuda", channels_last=True).channels_last


def test_no_step_waits_for_the_device(dataset: Dataset) -> None:
    with NoReading():
        metrics = training(dataset).run_epoch()
    assert metrics["train/loss"] > 0
    with NoReading(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        training(dataset, Reading()).run_epoch()


def test_student_is_in_train_mode_in_every_epoch(dataset: Dataset) -> None:
    found = training(dataset, num_epochs=3)
    modes: list[bool] = []
    found.student.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    fit(found, lambda metrics: None)
    per_epoch = len(modes) // 3
    for epoch in range(3):
        part = modes[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert part[: found.loader.num_steps] == [True] * found.loader.num_steps
        assert part[found.loader.num_steps :] == [False] * (per_epoch - found.loader.num_steps)


def test_norms_and_biases_are_not_decayed(dataset: Dataset) -> None:
    found = training(dataset)
    decayed, others = found.optimiser.param_groups
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in others["params"])
    assert others["weight_decay"] == 0.0
    assert decayed["weight_decay"] > 0.0


def test_evaluate_against_a_loop_over_samples(dataset: Dataset, tmp_path: Path) -> None:
    model = training(dataset).student.eval()
    split = dataset.split("val")
    found = evaluate(model, dataset, split, Workers.alone())
    assert not model.training
    assert evaluate(model.train(), dataset, split, Workers.alone()) == found
    assert model.training, "as it came"
    model.eval()
    correct, loss = 0, 0.0
    for image, label in zip(split.images, split.labels, strict=True):
        pixels = torch.tensor(image, dtype=torch.float64) / 255.0
        normal = (pixels - dataset.mean[0]) / dataset.std[0]
        with torch.no_grad():
            logits = model(normal[None].float()).double()[0]
        correct += int(logits.argmax()) == int(label)
        loss -= float(logits.log_softmax(0)[int(label)])
    assert found["accuracy"] == pytest.approx(correct / len(split.labels))
    assert found["loss"] == pytest.approx(loss / len(split.labels), rel=1e-4)


def test_averaged_weights_are_judged_kept_and_continued(dataset: Dataset) -> None:
    settings = {"num_epochs": 3, "ema_decay": 0.9, "learning_rate": 0.01, "optimizer": "adamw"}
    whole = training(dataset, **settings)
    metrics = fit(whole, lambda metrics: None)
    assert whole.student is not whole.learner.student
    found = evaluate(whole.student, dataset, dataset.split("val"), Workers.alone())
    assert found["accuracy"] == metrics["val/accuracy"]
    cut = training(dataset, **settings)
    cut.run_epoch()
    state = cut.state_dict()
    resumed = training(dataset, **settings)
    resumed.load_state_dict(state)
    fit(resumed, lambda metrics: None)
    assert_same(weights(whole), weights(resumed))


class Counted:
    """A training of three epochs that only counts; it has what `fit_or_continue` uses."""

    def __init__(self) -> None:
        self.epoch = 0

    @property
    def finished(self) -> bool:
        return self.epoch == 3

    def run_epoch(self) -> dict[str, float]:
        self.epoch += 1
        return {"epoch": float(self.epoch)}

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


@pytest.mark.parametrize("cut_short", [1.0, 2.0, 3.0])
def test_an_epoch_is_told_though_the_process_ended_right_after_its_checkpoint(
    cut_short: float, tmp_path: Path
) -> None:
    told: list[float] = []

    def end_there(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == cut_short:
            raise KeyboardInterrupt
        told.append(metrics["epoch"])

    with pytest.raises(KeyboardInterrupt):
        fit_or_continue(Counted(), tmp_path / "kept", end_there)  # type: ignore[arg-type]
    last = fit_or_continue(
        Counted(),  # type: ignore[arg-type]
        tmp_path / "kept",
        lambda metrics: told.append(metrics["epoch"]),
    )
    assert told == [1.0, 2.0, 3.0]
    assert last == {"epoch": 3.0}
