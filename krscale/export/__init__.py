"""Exporting a student: alone, in formats that run without krscale, each of them checked."""

from krscale.export.card import CARD_FILE, StudentCard, read_card
from krscale.export.formats import FORMATS, check_formats
from krscale.export.raw_files import RawFiles, decoding_of, find_raw_files
from krscale.export.writing import ExportedFile, check_target, export_student, open_student

__all__ = [
    "CARD_FILE",
    "FORMATS",
    "ExportedFile",
    "RawFiles",
    "StudentCard",
    "check_formats",
    "check_target",
    "decoding_of",
    "export_student",
    "find_raw_files",
    "open_student",
    "read_card",
]
