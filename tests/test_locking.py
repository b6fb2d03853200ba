"""Where no lock can be made, complete files are used without one."""

import errno
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from krscale import locking
from krscale.leftovers import hidden_lock
from krscale.locking import locked


def refusing(number: int) -> Callable[..., None]:
    def refuse(self: object, timeout: float | None = None) -> None:
        raise OSError(number, "it cannot be written")

    return refuse


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_what_is_whole_needs_no_lock_where_none_can_be_made(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking.FileLock, "acquire", refusing(number))
    with locked(tmp_path / ".lock", lambda: True):
        pass
    with pytest.raises(OSError, match="cannot be written"), locked(tmp_path / ".lock", bool):
        pass


def test_another_error_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking.FileLock, "acquire", refusing(errno.ENOSPC))
    with (
        pytest.raises(OSError, match="cannot be written"),
        locked(tmp_path / ".lock", lambda: True),
    ):
        pass


def test_a_lock_of_another_process_is_waited_for_also_where_all_is_whole(tmp_path: Path) -> None:
    path = hidden_lock(tmp_path / "store")
    other, waited = filelock.FileLock(path), []
    other.acquire()

    def waiting() -> None:
        waited.append(1)
        if len(waited) == 3:
            other.release()

    with locked(path, lambda: True, waiting, 0.01):
        assert len(waited) == 3
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(path, timeout=0).acquire()
