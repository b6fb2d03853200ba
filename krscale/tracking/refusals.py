"""What MLflow's errors mean: the request can be repeated later, or is refused for good."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from krscale.redaction import redact

_HALF_MADE = re.compile(r"\b(table|index) \w+ already exists|duplicate column name")
"""Error of a migration in a database where an earlier migration was interrupted."""
_REFUSALS = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS",
     "INVALID_STATE", "BAD_REQUEST"}
)  # fmt: skip


class ServerAway(Exception):  # noqa: N818 - a state of the world, not an error of ours
    """MLflow cannot be used now; the same request may succeed later."""


class Refused(Exception):  # noqa: N818
    """MLflow will never accept this request; others may succeed."""


class Gone(Refused):
    """The object of a request is not in MLflow."""


@contextmanager
def translated(
    shown: str, *, connecting: bool = False, internal_is_refusal: bool = False
) -> Iterator[None]:
    """Convert every error of MLflow to `ServerAway` or `Refused`, without credentials."""
    from mlflow.exceptions import MlflowException, RestException

    try:
        yield
    except (ServerAway, Refused):
        raise
    except MlflowException as error:
        internal = error.error_code == "INTERNAL_ERROR" and (
            internal_is_refusal or isinstance(error, RestException)
        )
        if not connecting and (internal or error.error_code in _REFUSALS):
            missing = error.error_code == "RESOURCE_DOES_NOT_EXIST"
            raise (Gone if missing else Refused)(_reason(error, shown)) from None
        raise ServerAway(_reason(error, shown)) from None
    except OSError as error:
        raise ServerAway(_reason(error, shown)) from None
    except Exception as error:  # noqa: BLE001 - raised again, as one of the two
        # MLflow's stores leak errors of their drivers. An error of a request is taken to be caused
        # by that request; repeating it for ever would block everything behind it.
        kind = ServerAway if connecting else Refused
        raise kind(f"{type(error).__name__}: {_reason(error, shown)}") from None


def _reason(error: Exception, shown: str) -> str:
    """Return one short line, with the root cause of a chain of HTTP errors."""
    text = redact(str(error))
    if "out-of-date database schema" in text:
        return (
            f"its database is of an older MLflow; back it up, then run: "
            f"mlflow db upgrade {shlex.quote(shown)}"
        )
    if shown.startswith("sqlite") and _HALF_MADE.search(text):
        return (
            "a process was killed while it made this database, which MLflow cannot go on with; "
            "move the file away, and the next start makes another"
        )
    cause = re.search(r"Caused by \w+\(\"?(?:<[^>]*>|[^:\"]*): ([^\"]*)", text)
    text = cause.group(1) if cause else text
    text = text.partition("[SQL:")[0]
    return re.sub(r"\s+", " ", text).strip()[:300]
