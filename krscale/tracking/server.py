"""The requests that krscale makes to MLflow."""

from __future__ import annotations

import getpass
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from krscale.tracking.address import Address
from krscale.tracking.database import opening
from krscale.tracking.datasets import tensor_schema
from krscale.tracking.models import HASH_TAG, require_whole
from krscale.tracking.moving import follow_artifacts
from krscale.tracking.refusals import Gone, Refused, ServerAway, translated

if TYPE_CHECKING:
    from mlflow.entities import Experiment

Kind = Literal["metrics", "params", "tags"]
_PAGE_RUNS = 1000
KEY_TAG = "krscale.key"
SPOOL_TAG = "krscale.spool"

_DEFAULTS = {
    # krscale's writer backs off and repeats; MLflow's default would block one call for 4 minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # krscale reports each problem once; MLflow's logs and bars would disrupt the live view.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Nothing leaves the machine unless the user allows it.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Server:
    """A connection to MLflow and one experiment in it; call `prepare_mlflow` first.

    Args:
        address: Where MLflow is.
        experiment: Name of the experiment; created when missing.

    Raises:
        ServerAway: If MLflow cannot be reached, or does not return the experiment.
    """

    def __init__(self, address: Address, experiment: str) -> None:
        # Over HTTP an internal error may be a broken connection; from a database it never is.
        self._translate = partial(
            translated, address.shown, internal_is_refusal=address.artifact_root is not None
        )
        with translated(address.shown, connecting=True), opening(address.database_file):
            from mlflow import MlflowClient

            if address.database_file and address.artifact_root:
                follow_artifacts(address.database_file, address.artifact_root)
            self._client = MlflowClient(address.uri)
            found = self._open_experiment(experiment, address.artifact_root)
        self.experiment, self.experiment_id = experiment, str(found.experiment_id)
        # The id alone would not distinguish a new database from the one it replaced.
        self.identity = f"{found.experiment_id}@{found.creation_time}"

    @contextmanager
    def _request(self) -> Iterator[None]:
        """Translate the errors of a request.

        MLflow refuses all requests for a deleted experiment, though it can be restored, and a
        server without its database refuses every request. In both cases MLflow counts as away, and
        refused requests are sent when it is back.
        """
        try:
            with self._translate():
                yield
        except Refused:
            self._find_experiment()
            raise

    def _find_experiment(self) -> None:
        """Raise `ServerAway` unless MLflow has the experiment, and it is active."""
        try:
            with self._translate():
                found = self._client.get_experiment(self.experiment_id)
        except Gone:
            raise ServerAway(f"its experiment {self.experiment!r} is gone") from None
        except Refused as reason:
            raise ServerAway(str(reason)) from None
        if found.lifecycle_stage != "active":
            raise ServerAway(_deleted(self.experiment))

    def is_deleted(self, run_id: str) -> bool:
        """Whether a run is deleted in MLflow, or gone."""
        try:
            with self._translate():
                found = self._client.get_run(run_id)
        except Gone:
            return True
        except Refused:
            return False
        return bool(found.info.lifecycle_stage != "active")

    def find_run(self, key: str, spool: str) -> str | None:
        """Return the id of the run that was created for this key of this spool, if any."""
        clause = f"tags.`{KEY_TAG}` = '{key}' and tags.`{SPOOL_TAG}` = '{spool}'"
        with self._request():
            found = self._client.search_runs([self.experiment_id], clause, max_results=1)
        return found[0].info.run_id if found else None

    def runs_of(self, spool: str) -> dict[str, dict[str, float]]:
        """Return the runs of a spool that are there: id -> the last value of each metric."""
        found: dict[str, dict[str, float]] = {}
        token = None
        while True:
            with self._request():
                page = self._client.search_runs(
                    [self.experiment_id], f"tags.`{SPOOL_TAG}` = '{spool}'",
                    max_results=_PAGE_RUNS, page_token=token,
                )  # fmt: skip
            found |= {run.info.run_id: dict(run.data.metrics) for run in page}
            token = page.token
            if not token:
                return found

    def create_run(
        self, key: str, spool: str, name: str, parent: str | None, tags: Mapping[str, str], ms: int
    ) -> str:
        """Create a run, its tags in the same transaction, and return its id."""
        marks = {KEY_TAG: key, SPOOL_TAG: spool, "mlflow.source.name": "krscale", **_user()}
        if parent:
            marks["mlflow.parentRunId"] = parent
        with self._request():
            run = self._client.create_run(
                self.experiment_id, start_time=ms, tags={**tags, **marks}, run_name=name
            )
        return str(run.info.run_id)

    def set_status(self, run_id: str, status: str, ms: int) -> None:
        """Set MLflow's status: `RUNNING` again, or an end with its time."""
        with self._request():
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_time=ms)

    def log(self, run_id: str, kind: Kind, items: Sequence[tuple[Any, ...]]) -> None:
        """Log many items of one kind in as few requests as MLflow allows.

        Args:
            run_id: The run.
            kind: `metrics` (name, value, time_ms, step), `params` or `tags` (name, text).
            items: Tuples as named above.
        """
        from mlflow.entities import Metric, Param, RunTag

        with self._request():
            self._client.log_batch(
                run_id,
                metrics=[Metric(*item) for item in items if kind == "metrics"],
                params=[Param(*item) for item in items if kind == "params"],
                tags=[RunTag(*item) for item in items if kind == "tags"],
            )

    def log_datasets(self, run_id: str, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Log the datasets of a run; logging them again changes nothing.

        Args:
            run_id: The run.
            datasets: Contents of `DatasetUsed`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=used["name"],
                    digest=used["digest"],
                    source_type="krscale",
                    source=used["source"],
                    schema=tensor_schema(used["image_shape"]),
                    profile=used["profile"],
                ),
                [InputTag("mlflow.data.context", used["context"])],
            )
            for used in datasets
        ]
        with self._request():
            self._client.log_inputs(run_id, inputs)

    def log_artifact(self, run_id: str, path: Path, artifact_path: str) -> None:
        """Upload a file or folder."""
        if not path.exists():
            raise Refused(f"{path}: no such file")
        with self._request():
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), artifact_path or None)
            else:
                self._client.log_artifact(run_id, str(path), artifact_path or None)

    def register(self, run_id: str, folder: Path, wanted: Mapping[str, Any]) -> None:
        """Put a model into the registry; a model that is there already only gets its alias.

        Args:
            run_id: The run it comes from.
            folder: The model as MLflow's flavours save it.
            wanted: Content of a `Registration`.

        Raises:
            Refused: If the model is gone, or is no longer the exported one.
        """
        if not folder.is_dir():
            raise Refused(f"{folder}: no such folder")
        name, tags = wanted["name"], wanted["tags"]
        # It may have changed while it waited, and would be registered under its former digest.
        require_whole(folder, tags[HASH_TAG])
        with self._request():
            version = self._find_version(name, tags[HASH_TAG])
            if version is None:
                model = self._client.create_logged_model(
                    self.experiment_id, name=f"{name}-{wanted['alias']}", source_run_id=run_id,
                    tags=tags, model_type="onnx",
                )  # fmt: skip
                self._client.log_model_artifacts(model.model_id, str(folder))
                model = self._client.finalize_logged_model(model.model_id, "READY")
                version = self._client.create_model_version(
                    name, source=model.artifact_location, run_id=run_id, model_id=model.model_id,
                    tags=tags, description=wanted["description"],
                ).version  # fmt: skip
            self._client.set_registered_model_alias(name, wanted["alias"], version)

    def _find_version(self, name: str, digest: str) -> str | None:
        """Return the version with this content, if any; create the registered model if missing."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for found in self._client.search_model_versions(f"name='{name}'"):
            if found.tags.get(HASH_TAG) == digest:
                return str(found.version)
        return None

    def _open_experiment(self, name: str, artifact_root: Path | None) -> Experiment:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = artifact_root.as_uri() if artifact_root else None
            try:
                self._client.create_experiment(name, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise ServerAway(_deleted(name))
        return found


def _deleted(name: str) -> str:
    return f"its experiment {name!r} is deleted; restore it there, or choose another name"


def prepare_mlflow(address: Address) -> None:
    """Import MLflow with quiet, quick defaults for what the user has not set.

    Call it from the main thread: if two threads import the same large packages (pandas, SQLAlchemy)
    at once, they can get half-initialised modules.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # A user of krscale can do nothing about a deprecation between MLflow and its own dependency.
    warnings.filterwarnings("ignore", message=".*noload.*", category=DeprecationWarning)
    import mlflow.tracking

    if address.artifact_root is None:
        import mlflow.store.tracking.rest_store
    else:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    # Repeated for an MLflow that was imported before.
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


def longest_value(kind: Kind) -> int | None:
    """Return how many characters MLflow keeps of a parameter or tag; None if it cuts nothing."""
    from mlflow.environment_variables import MLFLOW_TRUNCATE_LONG_VALUES
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

    if kind == "metrics" or not MLFLOW_TRUNCATE_LONG_VALUES.get():  # type: ignore[no-untyped-call]
        return None
    return int(MAX_PARAM_VAL_LENGTH if kind == "params" else MAX_TAG_VAL_LENGTH)


def _user() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user id without a name
        return {}
