"""`precision = "auto"`: what it becomes on each device; a training goes on under either."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from krscale.config import DataConfig, TrainConfig, ViewsConfig, load
from krscale.data import Dataset, prepare_data
from krscale.data.loader import Loader
from krscale.errors import UserError
from krscale.methods import MethodContext, build_method
from krscale.methods.learner import Learner
from krscale.models.resnet import resnet
from krscale.parallel import Workers
from krscale.search.plan import describe_plan
from krscale.training import precision
from krscale.training.loop import Training

AMX = {"avx512_bf16": True, "amx_tile": True, "amx_bf16": True}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)


def have(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        (AMX, True),
        ({"avx512_bf16": True, "amx_tile": False, "amx_bf16": False}, True),  # AMD Zen 4
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),  # emulated
        ({"amx_tile": True, "amx_int8": True, "amx_bf16": False}, False),
        ({"bf16": True, "neon": True}, False),  # ARM: never measured
        ({}, False),
    ],
)
def test_a_cpu_computes_bf16_if_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], native: bool
) -> None:
    have(monkeypatch, capabilities)
    assert precision.computes_bf16(CPU) is native
    assert precision.resolve_precision("auto", Workers()) == ("bf16" if native else "fp32")


def test_a_torch_that_does_not_tell_means_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not precision.computes_bf16(CPU)


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("limit", "native"),
    [
        ("AVX2", False), ("sse41", False), ("AVX512_CORE", False), ("avx512_core_vnni", False),
        ("avx512_core_bf16", True), ("AVX10_1_512", True), ("AVX512_CORE_AMX", True), ("", True),
        ("DEFAULT", True), ("all", True),
    ],
)  # fmt: skip
def test_instructions_that_onednn_may_not_use_count_for_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: str, native: bool
) -> None:
    have(monkeypatch, AMX)
    monkeypatch.setenv(name, limit)
    assert precision.computes_bf16(CPU) is native


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bf16_trains_in_fp32(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision.computes_bf16(torch.device("cuda")) is native


def test_a_gpu_that_is_not_there_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not precision.computes_bf16(torch.device("cuda"))


@pytest.mark.parametrize(("num_native", "found"), [(0, "fp32"), (1, "fp32"), (2, "bf16")])
def test_unlike_workers_agree(monkeypatch: pytest.MonkeyPatch, num_native: int, found: str) -> None:
    monkeypatch.setattr(precision, "sum_over_workers", lambda own: torch.full_like(own, num_native))
    for capabilities in (AMX, {}):
        have(monkeypatch, capabilities)
        assert precision.resolve_precision("auto", Workers(0, 2)) == found


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
@pytest.mark.parametrize("capabilities", [AMX, {}])
def test_what_was_chosen_by_name_is_taken(
    monkeypatch: pytest.MonkeyPatch, wanted: precision.Precision, capabilities: dict[str, bool]
) -> None:
    have(monkeypatch, capabilities)
    assert precision.resolve_precision(wanted, Workers()) == wanted


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare_data(DataConfig(), tmp_path_factory.mktemp("cache"))


def training(dataset: Dataset, wanted: str) -> Training:
    settings = TrainConfig(num_epochs=2, global_batch_size=640, precision=wanted)
    torch.manual_seed(0)
    student = resnet(num_classes=10, in_channels=1, width=4, num_blocks=1)
    plain = build_method("plain", MethodContext.without_teacher(10), {"ce_weight": 1.0})
    loader = Loader(
        dataset, ViewsConfig(), global_batch_size=640, seed=0, device=CPU, store=None
    )  # fmt: skip
    learner = Learner(student, (), plain)
    return Training(learner, loader, (dataset, dataset.split("val")), settings, Workers())


class Convolutions(TorchDispatchMode):
    """Records the types that convolutions are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket is torch.ops.aten.convolution:
            self.types.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("capabilities", "dtype", "flag"), [(AMX, torch.bfloat16, 1.0), ({}, torch.float32, 0.0)]
)
def test_a_training_computes_in_what_auto_became_and_reports_it(
    monkeypatch: pytest.MonkeyPatch,
    dataset: Dataset,
    capabilities: dict[str, bool],
    dtype: torch.dtype,
    flag: float,
) -> None:
    have(monkeypatch, capabilities)
    with Convolutions() as seen:
        metrics = training(dataset, "auto").run_epoch()
    assert seen.types == {dtype}
    assert metrics["train/bf16"] == flag
    assert "train/bf16" not in training(dataset, "fp32").run_epoch()


@pytest.mark.parametrize(("first", "second"), [(AMX, {}), ({}, AMX)])
def test_a_checkpoint_goes_on_under_the_other_precision(
    monkeypatch: pytest.MonkeyPatch,
    dataset: Dataset,
    first: dict[str, bool],
    second: dict[str, bool],
) -> None:
    have(monkeypatch, first)
    begun = training(dataset, "auto")
    begun.run_epoch()
    have(monkeypatch, second)
    resumed = training(dataset, "auto")
    resumed.load_state_dict(begun.state_dict())
    metrics = resumed.run_epoch()
    assert resumed.finished
    assert metrics["train/bf16"] == float(second == AMX)
    assert all(value.dtype != torch.bfloat16 for value in resumed.student.state_dict().values())


@pytest.mark.parametrize(
    ("settings", "capabilities", "line"),
    [
        ((), AMX, "  precision: fp32"),
        (("train.precision='bf16'",), {}, "  precision: bf16"),
        (("train.precision='auto'",), AMX, "  precision: auto: bf16 on this machine"),
        (("train.precision='auto'",), {}, "  precision: auto: fp32 on this machine"),
    ],
)
def test_a_dry_run_says_what_auto_becomes(
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    capabilities: dict[str, bool],
    line: str,
) -> None:
    have(monkeypatch, capabilities)
    plan = describe_plan(load("jobs/digits.toml", (*settings, "train.device='cpu'")))
    assert line in plan.splitlines()


def test_a_dry_run_away_from_the_gpu_does_not_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = describe_plan(load(None, ("train.precision='auto'", "train.device='cuda'")))
    assert "precision: auto: bf16 where the GPU that trains computes it natively" in plan


def test_another_precision_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(UserError, match=r"train.precision.*auto"):
        load(None, ("train.precision='fp16'",))
