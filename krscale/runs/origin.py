"""The origin of a run: versions, machine, commit and command, and the tags of its results."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krscale.config import Experiment, read_record
from krscale.redaction import redact

if TYPE_CHECKING:
    from krscale.setup.prepare import Prepared

ENVIRONMENT_FILE = "environment.json"
_PACKAGES = ("krscale", "torch", "ray", "optuna", "mlflow", "pyarrow", "numpy")


def environment() -> dict[str, Any]:
    """Return what a reader needs to repeat the run: versions, machine, commit, command."""
    return {
        "command": redact(" ".join(["python", "-m", *_module_and_arguments()])),
        "commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def git_commit() -> str:
    """Return the commit of krscale's own source, or `unknown` outside git.

    `-dirty` is appended if the package or its search spaces differ from the commit. Other files,
    such as results, do not change a run.
    """
    git = shutil.which("git")
    root = Path(__file__).resolve().parents[2]
    if git is None or not (root / ".git").exists():
        return os.environ.get("KRSCALE_COMMIT", "unknown")

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = ask("rev-parse", "HEAD")
    code = ("krscale", "search_spaces")
    changed = commit and ask("status", "--porcelain", "--untracked-files=no", "--", *code)
    return (commit + ("-dirty" if changed else "")) or "unknown"


def ray_job() -> str:
    """Return the id that `ray job submit` gave this process; empty outside a job."""
    # Ray's supervisor sets this variable for the entry point, and `ray.init` reads it.
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return str(config.get("metadata", {}).get("job_submission_id", ""))


def origin_tags(experiment: Experiment, prepared: Prepared) -> dict[str, str]:
    """Return the origin of a result as tags: code, job, experiment, data, teacher, store."""
    job, unlabelled = ray_job(), prepared.taught_path
    return {
        **commit_tags(git_commit()),
        "krscale.experiment": experiment.fingerprint(),
        "krscale.data": prepared.teacher.data_fingerprint,
        "krscale.teacher": prepared.teacher.fingerprint,
        "krscale.store": Path(prepared.store_path).name,
        **({"krscale.ray_job": job} if job else {}),
        **({"krscale.unlabelled": Path(unlabelled).name} if unlabelled else {}),
    }


def commit_tags(commit: str) -> dict[str, str]:
    """Return the tags for what `git_commit` returned.

    Example:
        >>> commit_tags("02d85a5-dirty")["krscale.dirty"]
        'true'
    """
    commit, _, dirty = commit.partition("-")
    return {
        "krscale.commit": commit,
        "krscale.dirty": "true" if dirty else "false",
        "mlflow.source.git.commit": commit,  # MLflow's own column "Version"
    }


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what `environment` returned at the run's last start; empty if it was not kept."""
    path = folder / ENVIRONMENT_FILE
    if not path.is_file():
        return {}
    rebuild = "Delete it; the next start of the run writes it again."
    return read_record(path, dict[str, Any], rebuild)


def _module_and_arguments() -> list[str]:
    program = Path(sys.argv[0])
    inside = program.suffix == ".py" and program.parent == Path(__file__).parents[1]
    return [f"krscale.{program.stem}" if inside else program.name, *sys.argv[1:]]
