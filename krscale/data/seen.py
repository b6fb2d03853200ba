"""Record the properties and the faults of a source's images while they are decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from krscale.errors import UserError

_LISTED = 20  # maximum number of files in a message; `krscale data check` names all
DIM = 2**12
"""If no value of 16-bit images reaches this, they use fewer bits and come out nearly black."""


@dataclass(frozen=True)
class Fault:
    """An image that cannot be used.

    Attributes:
        split: Split of the source.
        number: Number of the image in its split.
        where: Description of where it is.
        what: What is wrong with it.
    """

    split: str
    number: int
    where: str
    what: str

    def __str__(self) -> str:
        """Return place and problem."""
        return f"{self.where}: {self.what}"


class UnreadableError(UserError):
    """Images of a source cannot be read.

    Args:
        message: Message for the user, which names them.
        faults: All faults.
    """

    def __init__(self, message: str, faults: Sequence[Fault]) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


@dataclass
class Seen:
    """Properties and faults of the images that were decoded.

    Attributes:
        modes: Colour modes of files, by Pillow's names, with the number of files.
        sizes: Height and width, with the number of images.
        transparent: Number of images that were composited on the background.
        keyed: Number of images with a transparent colour that cannot be matched.
        turned: Number of images that were turned according to their EXIF data.
        as_stored: Number of images that were not turned although their EXIF data ask for it.
        deep: Number of images of 16 bits a channel.
        brightest: The largest value of these.
        unreadable: Images that cannot be read.
        misfits: Images of another size than the first.
        left_out: Split and number of images that are known to be unreadable.
    """

    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    transparent: int = 0
    keyed: int = 0
    turned: int = 0
    as_stored: int = 0
    deep: int = 0
    brightest: int = 0
    unreadable: list[Fault] = field(default_factory=list)
    misfits: list[Fault] = field(default_factory=list)
    left_out: set[tuple[str, int]] = field(default_factory=set)

    def forget(self) -> None:
        """Reset everything but `left_out`, before the images are read and counted again."""
        for name, value in vars(Seen(left_out=self.left_out)).items():
            setattr(self, name, value)

    def refuse(self, where: str) -> None:
        """Refuse images that cannot be used, all of them together.

        Raises:
            UnreadableError: If some cannot be read.
            UserError: If some are of another size than the first.
        """
        faults = [f for f in self.unreadable if (f.split, f.number) not in self.left_out]
        if faults:
            raise UnreadableError(
                f"{where}: {_listed(faults, 'image', 'cannot be read')} Repair or remove them, or "
                "go on without them with data.skip_unreadable = true.",
                faults,
            )
        if self.misfits:
            raise UserError(
                f"{where}: {_listed(self.misfits, 'image', 'of another size')} All must be of one "
                "size. data.files.image_size scales and cuts them to a square."
            )

    def notes(self, where: str, background: str) -> tuple[str, ...]:
        """Return notes on what was done to images, one sentence each."""
        notes = []
        if self.transparent:
            notes.append(
                f"{where}: {self.transparent} images are transparent in places; they are laid on "
                f"{background} (data.background)."
            )
        if self.keyed:
            notes.append(
                f"{where}: {self.keyed} images of 16 bits a channel name a colour that is to be "
                "transparent; it is taken as it is, since only the upper eight bits are read."
            )
        if self.turned:
            notes.append(f"{where}: {self.turned} images are turned as their EXIF data say.")
        if self.as_stored:
            notes.append(
                f"{where}: the EXIF data of {self.as_stored} images say that they are to be "
                "turned; they are taken as they are stored, as torchvision takes them. "
                "data.files.exif_orientation = true turns them."
            )
        if self.deep:
            notes.append(
                f"{where}: {self.deep} images have 16 bits a channel; their values 0..65535 are "
                f"scaled to 0..255.{nearly_black(self.brightest)}"
            )
        return tuple(notes)


def nearly_black(brightest: float) -> str:
    """Return a note that 16-bit images use fewer bits; empty if their largest value is high enough.

    >>> nearly_black(65535), nearly_black(1023)
    ('', ' None is brighter than 1023: all are nearly black.')
    """
    return f" None is brighter than {brightest:g}: all are nearly black." if brightest < DIM else ""


def skipped_notes(where: str, faults: Sequence[Fault]) -> tuple[str, ...]:
    """Return one line on the images that were left out; empty if there are none."""
    if not faults:
        return ()
    return (f"{where}: {_listed(faults, 'image', 'left out')}",)


def _listed(faults: Sequence[Fault], thing: str, state: str) -> str:
    first = "; ".join(str(fault) for fault in faults[:_LISTED])
    more = f"; and {len(faults) - _LISTED} more (krscale data check names all)"
    plural = "s" * (len(faults) != 1)
    return f"{len(faults)} {thing}{plural} {state}: {first}{more if len(faults) > _LISTED else ''}."
