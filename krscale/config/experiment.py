"""A whole experiment: every section, the folders that follow from it, and its fingerprint."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from krscale.config.data import NEWER_OF_VIEWS, DataConfig, ViewsConfig
from krscale.config.distillation import DistillConfig
from krscale.config.fields import PathText, Section, fingerprint, is_share
from krscale.config.networks import (
    LadderConfig,
    LadderStudent,
    StoreConfig,
    StudentConfig,
    TeacherConfig,
)
from krscale.config.older import FORMER_OF_KR, FORMER_WEIGHT, uses_kr
from krscale.config.searching import ClusterConfig, SearchConfig, TrackingConfig
from krscale.config.training import TrainConfig
from krscale.foreign import is_file, real
from krscale.redaction import redact
from krscale.storage.address import checked_uri, is_uri, working_folder

_NEARLY_URI = re.compile(
    r"(?i)[\s'\"]*((s3|gs|gcs|hdfs|abfss?|az|wasbs?|file|memory|https?)(:|\W?//)|[a-z][a-z0-9+.-]+:/)"
)
"""The beginning of a path that was meant as a URI: a slash or a colon is missing, or quotes or
white space stand before it, as in a file of variables whose quotes are part of the value."""
STORAGE_VARIABLE = "KRSCALE_STORAGE_PATH"
"""Environment variable with the storage to use where an experiment names none."""


def _default_storage() -> str:
    return os.environ.get(STORAGE_VARIABLE) or "runs"  # compose files set it to an empty string


RESERVED_NAMES = frozenset({"cache", "mlartifacts", "mlflow.db", "mlruns", "reports"})
"""Names of what a storage holds besides the runs; a run cannot have one of them."""


def _free(name: str) -> str:
    # Some file systems ignore case; SQLite and its locks append a suffix to the name.
    lower = name.lower()
    if lower in RESERVED_NAMES or lower.startswith(("mlflow.db.", "mlflow.db-")):
        raise ValueError(
            f"the storage keeps {', '.join(sorted(RESERVED_NAMES))} beside the runs; choose "
            f"another name"
        )
    return name


# Folders shared with Windows lose a dot at the end of a name: `cache.` is `cache` there.
RunName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$", max_length=100),
    AfterValidator(_free),
]
"""A valid name of a run."""


class Experiment(Section):
    """Everything that determines a run."""

    name: RunName = "digits"
    """Name of the run; its folder is `storage_path/name`. Letters, digits, `.`, `_` and `-`; the
    first is a letter or digit, the last is not a dot. Not `cache`, `mlartifacts`, `mlflow.db`,
    `mlruns` or `reports`, which are in the same folder."""
    storage_path: PathText = Field(default_factory=_default_storage)
    """Folder of all runs, data, teachers and stores, which all machines can access; or a URI, such
    as `s3://bucket/prefix`, where they share no disk. Default `$KRSCALE_STORAGE_PATH` or `runs`."""
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    store: StoreConfig = StoreConfig()
    ladder: LadderConfig = LadderConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    search: SearchConfig = SearchConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _known_student(self) -> Experiment:
        capacity = self.distill.capacity
        names = [student.name for student in self.ladder.students]
        if not is_share(capacity) and capacity not in names:
            there = f"one of {', '.join(names)} or " if names else ""
            raise ValueError(
                f"distill.capacity: {capacity!r} is no student of [[ladder.students]]; allowed: "
                f"{there}a share such as '1/16'"
            )
        return self

    @field_validator("storage_path")
    @classmethod
    def _absolute(cls, storage_path: str) -> str:
        if not storage_path.strip():
            raise ValueError("expected a folder or a URI; '.' is the folder that you are in")
        if is_uri(storage_path):
            return checked_uri(storage_path)
        if _NEARLY_URI.match(storage_path):
            raise ValueError(
                "a URI begins with its scheme, a colon and two slashes, such as "
                "s3://bucket/prefix; a folder of this name is ./NAME"
            )
        # Workers have other working directories.
        path = real(Path(storage_path).expanduser())
        for part in (path, *path.parents):
            if is_file(part):
                raise ValueError(f"{part} is a file; a folder is needed, which krscale makes")
        return str(path)

    @property
    def own_student(self) -> LadderStudent | None:
        """The student of `[[ladder.students]]` that `distill.capacity` names; None for a share."""
        students = (s for s in self.ladder.students if s.name == self.distill.capacity)
        return next(students, None)

    @property
    def any_student(self) -> LadderStudent | StudentConfig:
        """The student that `distill.capacity` names, or the one with adjustable capacity."""
        return self.own_student or self.student

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the sizes of the ladder: the names of its students, or shares."""
        return tuple(s.name for s in self.ladder.students) or self.ladder.capacities

    @property
    def storage_folder(self) -> Path:
        """The storage; where it is a URI, the local folder used for it on this machine."""
        return working_folder(self.storage_path)

    @property
    def run_path(self) -> Path:
        """Absolute folder of this run; where the storage is a URI, in its local folder."""
        return self.storage_folder / self.name

    @property
    def cache_path(self) -> Path:
        """Absolute folder of what runs share: data, teachers and stores, each by fingerprint."""
        return self.storage_folder / "cache"

    def without_credentials(self) -> Experiment:
        """Return the experiment for workers, which record nothing and join no cluster.

        Credentials are removed because Ray keeps the parameters of trials on disk.
        """
        tracking = self.tracking.model_copy(update={"uri": redact(self.tracking.uri)})
        cluster = self.cluster.model_copy(update={"address": redact(self.cluster.address)})
        return self.model_copy(update={"tracking": tracking, "cluster": cluster})

    def fingerprint(self) -> str:
        """Hash of every field that changes results; not of where they are kept or displayed."""
        content = self.model_dump(mode="json", exclude={"storage_path", "tracking", "cluster"})
        return fingerprint(_without_newer_defaults(content))


_NEWER = (
    *(f"data.{name}" for name in ("background", "skip_unreadable", "map_labels")),
    "data.unlabelled",
    "data.max_images",
    *(f"data.files.{name}" for name in ("channels", "exif_orientation", "path_column")),
    "data.files.split_column",
    *(f"views.{name}" for name in NEWER_OF_VIEWS),
    *(f"teacher.{name}" for name in ("allow_poor", "output_key", "preprocessing", "stage_ends")),
    *(f"teacher.{name}" for name in ("num_workers", "tap_layout", "weights_key")),
    *(f"student.{name}" for name in ("output_key", "preprocessing", "stage_ends", "tap_layout")),
    *(f"distill.{name}" for name in ("reviewkd_weight", "reviewkd_warmup")),
    *(f"distill.rkd_{name}" for name in ("weight", "distance_weight", "angle_weight")),
    "ladder.students",
    "search.stall_seconds",
    "store.teacher_precision",
    "train.gradient_accumulation",
    "train.max_workers",
    *(f"train.{name}" for name in ("ema_decay", "optimizer", "optimizer_options", "schedule")),
)
"""Fields that were added after fingerprints were first stored. A fingerprint leaves them out where
they have their default, so that what was kept under it is found again."""


def _without_newer_defaults(content: dict[str, Any]) -> dict[str, Any]:
    default = Experiment().model_dump(mode="json")
    for dotted in _NEWER:
        *sections, name = dotted.split(".")
        table, as_before = content, default
        for section in sections:
            table, as_before = table[section], as_before[section]
        if table[name] == as_before[name]:
            del table[name]
    distill = content["distill"]
    for name, former in FORMER_OF_KR.items():
        # Their defaults differ from what was done before they existed.
        if distill[name] == former or not uses_kr(content):
            del distill[name]
    if not uses_kr(content) and distill["kr_weight"] == default["distill"]["kr_weight"]:
        distill["kr_weight"] = FORMER_WEIGHT
    return content
