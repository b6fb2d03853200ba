"""What an experiment is: every field, its default, its range and what it means.

One frozen object holds the whole experiment. It is read from TOML (`load`), changed by dotted
overrides (`--set train.num_epochs=20`), refused as a whole when any key is unknown or any value
is out of range, and hashed (`Experiment.fingerprint`) to tell one run from another. This package
imports neither torch nor Ray, so that `--help` and the refusal of a config are immediate.
"""

from krscale.config.data import DataConfig, FilesConfig, GlyphsConfig, ViewsConfig
from krscale.config.distillation import DistillConfig
from krscale.config.experiment import RESERVED_NAMES, Experiment
from krscale.config.fields import fingerprint, is_share, parse_capacity
from krscale.config.hints import field_paths, nearest_fields
from krscale.config.networks import (
    LadderConfig,
    LadderStudent,
    ModelConfig,
    PreprocessingConfig,
    StoreConfig,
    StudentConfig,
    TeacherConfig,
)
from krscale.config.reading import (
    RENAMED,
    load,
    read_toml,
    search_ranges,
    used_with,
    validate,
    value_of,
    with_values,
)
from krscale.config.records import as_record, read_record
from krscale.config.searching import (
    ClusterConfig,
    SearchConfig,
    TrackingConfig,
    method_identity,
    objective_directions,
)
from krscale.config.training import TrainConfig

__all__ = [
    "RENAMED",
    "RESERVED_NAMES",
    "ClusterConfig",
    "DataConfig",
    "DistillConfig",
    "Experiment",
    "FilesConfig",
    "GlyphsConfig",
    "LadderConfig",
    "LadderStudent",
    "ModelConfig",
    "PreprocessingConfig",
    "SearchConfig",
    "StoreConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "ViewsConfig",
    "as_record",
    "field_paths",
    "fingerprint",
    "is_share",
    "load",
    "method_identity",
    "nearest_fields",
    "objective_directions",
    "parse_capacity",
    "read_record",
    "read_toml",
    "search_ranges",
    "used_with",
    "validate",
    "value_of",
    "with_values",
]
