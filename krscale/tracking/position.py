"""How far a record has been sent, and to which MLflow: a file beside the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, model_validator

from krscale.config import fingerprint
from krscale.files import write_json
from krscale.tracking.address import follow_uri
from krscale.tracking.mending import read_or_set_aside

STATE_FILE = "state.json"


class State(BaseModel):
    """How far a spool has been sent, and where to; its loss costs time but loses no run."""

    model_config = ConfigDict(extra="forbid")

    uri: str
    """Tracking URI, without credentials."""
    experiment: str
    """Name of the experiment."""
    identity: str = ""
    """Distinguishes the experiment from one of the same name in a recreated database."""
    position: int = 0
    """Bytes of the spool that MLflow has."""
    runs: dict[str, str] = {}
    """Key -> MLflow run id."""
    refused: int = 0
    """Events that MLflow did not accept."""
    storage: str = ""
    """The storage at that time; if it was moved since, a file in it that `uri` names has moved."""
    checksum: str = ""
    """Checksum of all other fields; empty in the files of older versions."""

    @model_validator(mode="after")
    def _as_written(self) -> State:
        if self.checksum and self.checksum != self._fingerprint():
            raise ValueError("its checksum is another")
        return self

    def _fingerprint(self) -> str:
        return fingerprint(self.model_dump(exclude={"checksum"}))

    def write(self, folder: Path) -> None:
        """Keep the state beside the spool."""
        write_json(folder / STATE_FILE, self.model_dump() | {"checksum": self._fingerprint()})

    @classmethod
    def load(cls, folder: Path, say: Callable[[str], None]) -> State | None:
        """Read the state of a record; None if it is missing or damaged, which is reported."""
        lost = "MLflow is told everything again, and recognises what it has."
        return read_or_set_aside(folder / STATE_FILE, cls, say, lost)

    def followed(self, storage: Path, before: Path | None = None) -> State:
        """Return the state adapted to the storage's present path.

        Args:
            storage: The present path.
            before: The former path, for a state without one.
        """
        was = Path(self.storage) if self.storage else before
        uri = follow_uri(self.uri, was, storage) if was else self.uri
        return self.model_copy(update={"uri": uri, "storage": str(storage), "checksum": ""})
