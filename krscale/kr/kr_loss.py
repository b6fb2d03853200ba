"""`KRLoss`: the KR objective of a teacher and a student, for your own training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from krscale.config.fields import Count, Progress, check_number
from krscale.config.methods import KRSettings
from krscale.errors import UserError, unknown_name
from krscale.knowledge.aggregation import split_taps
from krscale.knowledge.batches import check_images, check_labels, differing_images
from krscale.knowledge.measuring import (
    TeacherKnowledge,
    check_teacher,
    fixed,
    measure,
    take_from_first_worker,
)
from krscale.knowledge.probes import read_tap
from krscale.knowledge.taps import TapOutputs, pool
from krscale.knowledge.weight_summary import alike, are_others, summary_of_weights
from krscale.knowledge.where import where_distributions, without_where
from krscale.kr.checks import (
    check_apart,
    check_classes,
    check_outputs,
    check_same_device,
    check_shapes,
    checked_settings,
)
from krscale.kr.context import Tap, context_of
from krscale.kr.loop_watch import LoopWatch
from krscale.kr.state import MADE, MadeFor, check_finite, check_whole, with_former
from krscale.methods.kr import KR
from krscale.models.tapped import TappedNetwork, check_network, device_of

Reduction = Literal["mean", "none"]


class KRLoss(nn.Module):
    """The KR objective of a teacher and a student, as a module with the student's auxiliary heads.

    Build it with `from_networks`. Its parameters are the heads, which are trained together with
    the student. Its state holds the probes, the heads and what they were fitted to, but neither
    network. Save its `state_dict()`, and read it with `from_state`: a pickle of the whole object
    (`torch.save(kr, ...)`) holds both networks, and another version of krscale may not read it.
    `kr.to(device)` moves the teacher, too; the teacher runs in eval mode without gradients and is
    never trained. The student remains yours to move and to train.

        kr = KRLoss.from_networks(teacher, student, train_loader)
        optimiser = torch.optim.SGD([*student.parameters(), *kr.parameters()], lr=0.1)
        for epoch in range(num_epochs):
            kr.begin_epoch(epoch / max(1, num_epochs - 1))
            for images, labels in train_loader:
                loss = kr(images, labels)

    Attributes:
        settings: KR's settings, as in the `[distill]` section of an experiment.
        image_shape: `(C, H, W)` of the images that probes and heads were fitted to.
        context: The context a method is built from, in case you want to build another method.

    Example:
        >>> from krscale.models.resnet import resnet
        >>> teacher, student = (resnet(num_classes=3, in_channels=1, width=w) for w in (8, 4))
        >>> images, labels = torch.randn(60, 1, 8, 8), torch.arange(60) % 3
        >>> loader = [(images, labels)]
        >>> kr = KRLoss.from_networks(teacher, student, loader, allow_poor_teacher=True)
        >>> kr.begin_epoch(0.0)
        >>> kr(images, labels).shape, sorted(kr.shown())
        (torch.Size([]), ['ce', 'kr', 'kr/active_classes'])
    """

    information_gain: Tensor
    tap_accuracy: Tensor

    def __init__(
        self,
        teacher: TappedNetwork,
        student: TappedNetwork,
        knowledge: TeacherKnowledge,
        settings: KRSettings,
        image_shape: tuple[int, ...],
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise unknown_name("reduction", str(reduction), get_args(Reduction), "KRLoss")
        # Inside a tuple, the networks appear neither in parameters() nor in the state.
        self._networks = (teacher, student)
        self._teacher_weights = summary_of_weights(teacher.network)
        self._is_of_teacher = False
        self.settings, self.image_shape, self.reduction = settings, image_shape, reduction
        self.probes = fixed(knowledge.probes)
        self.register_buffer("information_gain", knowledge.information_gain)
        self.register_buffer("tap_accuracy", knowledge.accuracy)
        self.context = context_of(teacher, student, knowledge, settings, image_shape)
        with torch.device("cpu"):  # independent of the default device and dtype
            self.method = KR(self.context, settings).float()
        self._left_out: list[str] = []
        if settings.where_weight > 0.0:
            for name, network in (("teacher", teacher), ("student", student)):
                lines = without_where(network.stage_paths, network.stage_shapes, image_shape)
                missing = [f"it has no taps ({network.missing})"] if network.missing else []
                self._left_out += [f"{name}: {line}" for line in (*missing, *lines)]
        if self.method.where is None:
            self._networks = (teacher.without_stages(), student.without_stages())
        self._reads = self.method.reads(student.paths, student.stage_paths)
        self._shown: dict[str, Tensor] = {}
        self._watch = LoopWatch()
        self.register_load_state_dict_post_hook(_weigh_again)  # type: ignore[no-untyped-call]
        self.to(device_of(student.network))

    @classmethod
    def from_networks(
        cls,
        teacher: nn.Module,
        student: nn.Module,
        train_loader: Iterable[Any],
        *,
        val_loader: Iterable[Any] | None = None,
        teacher_taps: Sequence[str] = (),
        student_taps: Sequence[str] = (),
        reduction: Reduction = "mean",
        max_images: int = 20_000,
        allow_poor_teacher: bool = False,
        **settings: Any,
    ) -> Self:
        """Find the taps of both networks, fit the teacher's probes once, build the student's heads.

        Args:
            teacher: A trained classifier. It is put into eval mode.
            student: The network to train, with the same number of classes. Either network may be
                wrapped by torch.compile or DistributedDataParallel.
            train_loader: Batches `(images, labels)`, with images as both networks take them,
                normalised. Read once, up to `max_images`.
            val_loader: Further batches of the same form, on which the information gain of the
                teacher's taps is measured. Without it, every fifth image of `train_loader` is held
                out of the fit.
            teacher_taps: Module paths of the teacher's blocks in depth order. Default: its own
                `tap_paths`, or if it has none, blocks that are found automatically.
            student_taps: The same for the student. The student needs no readable taps if nothing
                reads them: with `granularity=1`, its own classifier learns from the only group.
            reduction: `"mean"` over the samples, or `"none"` for one value per sample, `[B]`.
            max_images: Maximum number of images to fit to, and to measure on.
            allow_poor_teacher: Continue even if the teacher's classifier is worse than a probe on
                one of its own taps.
            **settings: Fields of `krscale.config.methods.KRSettings`: `granularity`, `sparsity`,
                `temperature`, `kr_weight`, `ce_weight`, ...

        With torch.distributed, all workers take the probes and heads of the first worker.

        Raises:
            UserError: If settings, batches or networks do not fit together.
        """
        chosen = checked_settings(settings)
        check_number(Count, "max_images", max_images, "KRLoss")
        if torch.is_inference_mode_enabled():
            raise UserError("KRLoss: it is to be trained, and torch.inference_mode() is on here.")
        check_network(teacher, "teacher")
        check_network(student, "student")
        device = device_of(teacher)
        images, batches = differing_images(train_loader, "train_loader")
        shape = tuple(images.shape[1:])
        check_apart(teacher, student, shape)
        unread = not (chosen.kr_weight or chosen.where_weight or chosen.parameter_weight)
        teachers = TappedNetwork.of(
            teacher.eval(), images, teacher_taps, "teacher", optional=unread
        )
        num_taps, ends = len(teachers.paths) + 1, teachers.stage_ends
        headless = len(split_taps(chosen.granularity, num_taps, ends)) == 1
        students = TappedNetwork.of(student, images, student_taps, "student", optional=headless)
        check_classes(teachers, students)
        students.check_trainable(images)
        knowledge = measure(
            torch.no_grad()(teachers),
            batches,
            val_loader,
            shape,
            max_images,
            device,
            chosen.probe_grid,
        )
        if not allow_poor_teacher:
            check_teacher(knowledge, teachers.paths)
        take_from_first_worker([knowledge.information_gain, knowledge.accuracy], device)
        loss = cls(teachers, students, knowledge, chosen, shape, reduction)
        take_from_first_worker([*loss.buffers(), *loss.parameters()], device_of(student))
        return loss

    @classmethod
    def from_state(
        cls,
        teacher: nn.Module,
        student: nn.Module,
        state: Mapping[str, Any],
        reduction: Reduction = "mean",
    ) -> Self:
        """Rebuild the loss from its `state_dict`, without images and without fitting anything.

        Args:
            teacher: The same network, with the same weights.
            student: The student.
            state: What `state_dict` returned.
            reduction: As in `from_networks`.

        Raises:
            UserError: If the state is not that of a KRLoss or is incomplete, if it was made for
                other networks or a teacher with other weights, or if its values for the teacher
                are not finite.
        """
        check_network(teacher, "teacher")
        check_network(student, "student")
        made = MadeFor.of(state)
        shape = made.image_shape
        check_apart(teacher, student, shape)
        teachers, students = (
            TappedNetwork.by_shape(network, shape, taps, name)
            for network, taps, name in (
                (teacher.eval(), made.teacher_taps, "teacher"),
                (student, made.student_taps, "student"),
            )
        )
        check_classes(teachers, students)
        settings = checked_settings(made.settings)
        knowledge = made.knowledge(state, teachers)
        loss = cls(teachers, students, knowledge, settings, shape, reduction)
        check_whole(state, loss.state_dict())
        loss.load_state_dict(state)
        return loss

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run both networks and return the loss, a scalar or `[B]` by `reduction`, in fp32.

        Args:
            images: `[B, C, H, W]`, as both networks take them.
            labels: `[B]` whole numbers.

        Raises:
            UserError: If the images are of another shape, or a label is out of range.
        """
        check_images(images, self.image_shape, "KRLoss")
        return self.loss(self.student(images), self.teacher(images), labels)

    def student(self, images: Tensor) -> TapOutputs:
        """Run the student in its current mode; return logits and the features that are read."""
        student = self._networks[1]
        self._watch.on_run(self.method, student.network)
        return student.read(images, *self._reads)

    def teacher(self, images: Tensor) -> TapOutputs:
        """Run the teacher in eval mode without gradients: logits, and the features of its taps."""
        teacher = self._networks[0]
        self._check_same_teacher()
        # Something that contains the teacher, or one of its parts, may have called .train().
        if any(module.training for module in teacher.network.modules()):
            teacher.network.eval()
        with torch.no_grad():
            outputs: TapOutputs = teacher(images)
        return outputs

    def loss(
        self, student_outputs: TapOutputs, teacher_outputs: TapOutputs, labels: Tensor
    ) -> Tensor:
        """Return the loss of outputs that `student()` and `teacher()` returned."""
        terms = self.terms(student_outputs, teacher_outputs, labels)
        total = torch.stack(list(terms.values())).sum(dim=0)
        return total if self.reduction == "none" else total.sum() / max(len(total), 1)

    def terms(
        self, student_outputs: TapOutputs, teacher_outputs: TapOutputs, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted terms by name, `[B]` fp32 each; the loss is their sum.

        `ce` is the cross-entropy with the labels. `kr` is 0 if the logits and every auxiliary head
        give the distribution of their group of taps. Untrained heads keep it above 0, even for a
        copy of the teacher.
        """
        check_outputs(student_outputs, teacher_outputs)
        logits = student_outputs.logits
        self._watch.on_loss(self.method, logits)
        self._check_unchanged(student_outputs, teacher_outputs)
        check_labels(labels, len(logits), logits.shape[1], "KRLoss")
        check_same_device(logits, teacher_outputs.logits, labels, self.information_gain)
        with torch.autocast(logits.device.type, enabled=False):
            tap_logits = self.probes(teacher_outputs).detach()
            self._check_stages(student_outputs, teacher_outputs)
            where = where_distributions(teacher_outputs.stages, self.image_shape)
            terms = self.method.terms(student_outputs, tap_logits, labels.long(), where=where)
        means = {name: term.detach().sum() / max(len(term), 1) for name, term in terms.items()}
        self._shown = means | self.method.diagnostics()
        return terms

    def shown(self) -> dict[str, Tensor]:
        """Return the means of the last batch's terms, and the number of classes with a gradient."""
        return dict(self._shown)

    def begin_epoch(self, progress: float) -> None:
        """Set the progress of the training, for `sparsity_schedule` and the other schedules.

        Args:
            progress: 0 in the first epoch, 1 in the last: `epoch / max(1, num_epochs - 1)`.

        Raises:
            UserError: If it is not between 0 and 1, such as the number of an epoch.
        """
        check_number(Progress, "progress", progress, "KRLoss.begin_epoch")
        self._watch.told_of_epochs = True
        self.method.begin_epoch(progress)

    @property
    def student_stage_paths(self) -> tuple[str, ...]:
        """Module paths of the student's stages whose positions are compared.

        Empty with `where_weight = 0`.
        """
        return self._networks[1].stage_paths

    @property
    def student_paths(self) -> tuple[str, ...]:
        """Module paths of the student's taps, in depth order."""
        return self._networks[1].paths

    def tap_logits(self, images: Tensor) -> Tensor:
        """Return the logits at every tap of the teacher, `[B, D, K]` fp32; no gradient."""
        return self.knowledge(images)[0]

    def knowledge(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the teacher once; return `tap_logits` and its distributions over positions.

        There is one distribution `[B, rows, columns]` fp32 for every stage, and none with
        `where_weight = 0`.
        """
        outputs = self.teacher(images)
        where = where_distributions(outputs.stages, self.image_shape)
        return self.probes(outputs).detach(), where

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The teacher's taps in depth order, the classifier last, each with its measures."""
        paths = (*self._networks[0].paths, "")
        numbers = zip(self.information_gain.tolist(), self.tap_accuracy.tolist(), strict=True)
        return tuple(Tap(path, *both) for path, both in zip(paths, numbers, strict=True))

    def extra_repr(self) -> str:
        """Return the main settings, the taps with their gains, and where no positions are read."""
        taps = ", ".join(f"{t.path or 'classifier'} {t.information_gain:.2f}" for t in self.taps)
        settings = self.settings
        lines = [f"granularity={settings.granularity!r}, sparsity={settings.sparsity}"]
        return "\n".join([*lines, f"taps: {taps}", *self._left_out])

    def _check_same_teacher(self) -> None:
        """On the teacher's first run, refuse weights loaded after the probes were fitted.

        Weights that were rounded, folded into other layers or averaged since are accepted: the
        probes still fit what the network computes.
        """
        if self._is_of_teacher or torch.compiler.is_compiling():
            return
        now = summary_of_weights(self._networks[0].network)
        if are_others(self._teacher_weights, now):
            raise UserError(
                "KRLoss: the teacher has other weights than when its probes were fitted, which do "
                "not fit it any more. Load its weights before KRLoss.from_networks."
            )
        self._is_of_teacher = True

    def _check_unchanged(self, student: TapOutputs, teacher: TapOutputs) -> None:
        """Refuse outputs of a network whose parts were replaced since the loss was made."""
        teaching, learning = self._networks
        heads = self.method.head_taps if self.method.teaches_heads else ()
        read = partial(pool, grid=self.method.head_grid)
        check_shapes("student", student, learning, heads, read)
        taps = range(1, len(teaching.paths) + 1)
        check_shapes("teacher", teacher, teaching, taps, partial(read_tap, grid=self.probes.grid))

    def _check_stages(self, student: TapOutputs, teacher: TapOutputs) -> None:
        for network, given in zip(self._networks, (teacher, student), strict=True):
            if self.method.where is not None and len(given.stages) != len(network.stage_paths):
                raise UserError(
                    f"KRLoss: outputs have {len(given.stages)} stages, and positions are compared "
                    f"at {len(network.stage_paths)}: take those of kr.student(images) and "
                    "kr.teacher(images), whose `stages` they are, or set where_weight=0."
                )

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state was made for; `from_state` reads it."""
        teacher, student = self._networks
        return {
            "teacher_taps": list(teacher.paths),
            "student_taps": list(student.paths),
            "image_shape": list(self.image_shape),
            "settings": self.settings.model_dump(mode="json", exclude={"posterior"}),
            "teacher_weights": self._teacher_weights,
        }

    def set_extra_state(self, state: Any) -> None:
        """Load what `get_extra_state` returned.

        Raises:
            UserError: If it was made for other taps, other settings or another teacher.
        """
        self._teacher_weights = self._check_made(state)
        self._is_of_teacher = True

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *rest: Any, **more: Any
    ) -> None:
        # Check before any tensor is loaded, so that a refused state changes nothing.
        own = {n.removeprefix(prefix): v for n, v in state_dict.items() if n.startswith(prefix)}
        if "_extra_state" in own:
            self._check_made(own["_extra_state"])
        check_finite({name: value for name, value in own.items() if isinstance(value, Tensor)})
        super()._load_from_state_dict(state_dict, prefix, *rest, **more)

    def _check_made(self, state: Any) -> list[list[float]]:
        """Refuse an extra state of other taps, other settings or another teacher.

        Returns:
            The summary of the teacher's current weights, which may have been loaded in the
            meantime.
        """
        own = self.get_extra_state()
        given = with_former(state) if isinstance(state, Mapping) else {}
        weights = given.get("teacher_weights")
        now = summary_of_weights(self._networks[0].network)
        if weights is not None and not alike(weights, now):
            raise UserError(
                "KRLoss: the state is of a teacher with other weights, to whose taps the probes "
                "were fitted. Load that teacher's weights first, or make a new loss."
            )
        for key in MADE:
            if given.get(key) != own[key]:
                raise UserError(
                    f"KRLoss: the state is of another {key.replace('_', ' ')} ({given.get(key)}) "
                    f"than this loss ({own[key]}); KRLoss.from_state takes the state's."
                )
        return now

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Logits of probes are differences of large numbers: precision is kept even if .to(bf16)
        # converts the networks.
        super()._apply(partial(_moved, fn), recurse)  # type: ignore[no-untyped-call]
        self._networks[0].network._apply(fn)  # type: ignore[no-untyped-call]
        return self


def _moved(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def _weigh_again(loss: KRLoss, incompatible: Any) -> None:
    check_finite(loss.state_dict())
    loss.method.weigh(loss.information_gain)
