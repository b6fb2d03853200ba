"""What an experiment is: every field, its default, its range and what it means.

One frozen object holds the whole experiment. It is read from TOML (`load`), changed by dotted
overrides (`--set train.num_epochs=20`), refused as a whole when any key is unknown or any value
out of range, and hashed (`Experiment.fingerprint`) to tell one run from another. This package
imports neither torch nor Ray, so that `--help` and a refused config answer at once.
"""

from krscale.config.reading import field_paths, load, read_toml, validate, with_values
from krscale.config.schema import (
    ClusterConfig,
    DataConfig,
    DistillConfig,
    Experiment,
    FilesConfig,
    GlyphsConfig,
    LadderConfig,
    ModelConfig,
    SearchConfig,
    StoreConfig,
    StudentConfig,
    TeacherConfig,
    TrackingConfig,
    TrainConfig,
    ViewsConfig,
    fingerprint,
    parse_capacity,
)

__all__ = [
    "ClusterConfig",
    "DataConfig",
    "DistillConfig",
    "Experiment",
    "FilesConfig",
    "GlyphsConfig",
    "LadderConfig",
    "ModelConfig",
    "SearchConfig",
    "StoreConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "ViewsConfig",
    "field_paths",
    "fingerprint",
    "load",
    "parse_capacity",
    "read_toml",
    "validate",
    "with_values",
]
