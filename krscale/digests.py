"""Digests of large files, by blocks: a block is compared before anything in it is used.

A file `NAME` that is written once gets a `NAME.digest.json` beside it, with the SHA-256 of each of
its blocks of 1 MiB. A large file can then be opened without reading it, and every block that is
read is compared first. JSON files need no digest: `krscale.files.write_json` puts the checksum into
the file itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from krscale.config import read_record
from krscale.errors import DamagedFileError
from krscale.files import damaged, write_atomic, write_json
from krscale.foreign import regular

BLOCK_BYTES = 2**20
SUFFIX = ".digest.json"
_OTHER = "its content is not what was written (its SHA-256 is another)"
# Blocks that this process has compared, by the state of the file; they are not compared again.
_compared: dict[tuple[int, ...], bytearray] = {}


@dataclass(frozen=True)
class FileDigest:
    """The digest of a file when it was written.

    Attributes:
        num_bytes: Size of the file.
        block_bytes: Size of every block except the last.
        blocks: SHA-256 of each block, in hexadecimal.
    """

    num_bytes: int
    block_bytes: int
    blocks: tuple[str, ...]

    @classmethod
    def whole(cls, num_bytes: int, sha256: str) -> FileDigest:
        """Return the digest of a file from the SHA-256 of the whole file, as a single block."""
        return cls(num_bytes, max(num_bytes, 1), (sha256,))

    @classmethod
    def of(cls, path: Path) -> FileDigest:
        """Return the digest of a file as it is now."""
        with regular(path).open("rb") as file:
            blocks = [hashlib.sha256(part) for part in iter(lambda: file.read(BLOCK_BYTES), b"")]
            return cls(file.tell(), BLOCK_BYTES, tuple(block.hexdigest() for block in blocks))


def digest_path(path: Path) -> Path:
    """Return where the digest of a file is kept."""
    return path.with_name(path.name + SUFFIX)


def write_digest(path: Path) -> None:
    """Write the digest of a file that was just written beside it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.bin"
        >>> _ = path.write_bytes(b"content")
        >>> write_digest(path)
        >>> read_digest(path).num_bytes
        7
    """
    write_json(digest_path(path), asdict(FileDigest.of(path)))


def read_digest(path: Path, rebuild: str = "") -> FileDigest | None:
    """Return the digest that was written with a file; None if there is none.

    Args:
        path: The file itself, not its digest.
        rebuild: As for `read_json`.

    Raises:
        DamagedFileError: If the digest itself is not what was written.
    """
    record = digest_path(path)
    if not record.exists():
        return None
    digest = read_record(record, FileDigest, rebuild)
    if digest.block_bytes < 1 or len(digest.blocks) != -(-digest.num_bytes // digest.block_bytes):
        raise damaged(record, "its blocks do not add up to the size of the file", rebuild)
    return digest


def check_file(path: Path, rebuild: str = "") -> bool:
    """Compare a whole file with the digest that was written with it.

    Returns:
        Whether there is a digest; files of an older krscale have none.

    Raises:
        DamagedFileError: If the file, or its digest, is not what was written.
    """
    digest = read_digest(path, rebuild)
    if not rebuild:  # e.g. for weights that a user names
        rebuild = (
            f"Restore it from a copy; or, if it was replaced on purpose, delete {digest_path(path)}"
        )
    if digest is not None:
        CheckedFile(path, digest, rebuild).check()
    return digest is not None


def copy_checked(source: Path, target: Path) -> None:
    """Copy a file, and its digest if it has one, after comparing them.

    Raises:
        DamagedFileError: If the file is not what was written.
    """
    has_digest = check_file(source)
    digest_path(target).unlink(missing_ok=True)  # that of the file that is replaced
    write_atomic(target, lambda temporary: _copy(source, temporary))
    if has_digest:
        write_atomic(digest_path(target), lambda path: _copy(digest_path(source), path))


class CheckedFile:
    """A file whose blocks are compared with its digest when they are first needed.

    Args:
        path: The file.
        digest: Digest of the content that it must have.
        rebuild: As for `read_json`.

    Raises:
        DamagedFileError: If it is missing or of another size.
    """

    def __init__(self, path: Path, digest: FileDigest, rebuild: str = "") -> None:
        self.path, self.digest, self.rebuild = path, digest, rebuild
        try:
            state = regular(path).stat()
        except OSError as error:
            raise self._damaged(f"it cannot be opened ({error.strerror or error})") from None
        if state.st_size != digest.num_bytes:
            raise self._damaged(f"it has {state.st_size} bytes, {digest.num_bytes} were written")
        # A file that is written again has another state, even under the same name.
        number = hash(digest.blocks)
        key = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns, number)
        self._done = _compared.setdefault(key, bytearray(len(digest.blocks)))
        self._is_whole = all(self._done)

    @property
    def is_whole(self) -> bool:
        """Whether every block has been compared."""
        if not self._is_whole:
            self._is_whole = all(self._done)
        return self._is_whole

    def check(self, start: int = 0, stop: int | None = None) -> None:
        """Compare the blocks of the bytes from `start` up to, but not including, `stop`.

        The default is all blocks.

        Raises:
            DamagedFileError: If a block differs.
        """
        stop = self.digest.num_bytes if stop is None else stop
        size = self.digest.block_bytes
        self.check_blocks(range(start // size, -(-stop // size)))

    def check_blocks(self, numbers: Iterable[int]) -> None:
        """Compare the blocks that were not compared before.

        Raises:
            DamagedFileError: If a block differs.
        """
        wanted = [number for number in numbers if not self._done[number]]
        if not wanted:
            return
        try:
            with self.path.open("rb", buffering=0) as file:
                for number in wanted:
                    self._check_block(file.fileno(), number)
        except DamagedFileError:
            raise
        except OSError as error:  # e.g. a broken disk
            raise self._damaged(f"it cannot be read ({error.strerror or error})") from None

    def _check_block(self, descriptor: int, number: int) -> None:
        start = number * self.digest.block_bytes
        stop = min(start + self.digest.block_bytes, self.digest.num_bytes)
        found = hashlib.sha256()
        for at in range(start, stop, BLOCK_BYTES):
            found.update(os.pread(descriptor, min(BLOCK_BYTES, stop - at), at))
        if found.hexdigest() != self.digest.blocks[number]:
            place = f"bytes {start} to {stop - 1}: " if len(self.digest.blocks) > 1 else ""
            raise self._damaged(f"{place}{_OTHER}")
        self._done[number] = 1

    def _damaged(self, place: str) -> DamagedFileError:
        return damaged(self.path, place, self.rebuild)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
