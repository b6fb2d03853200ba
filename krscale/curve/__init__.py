"""The answer of a search: accuracy versus capacity, as data, as a table and as a figure."""

from krscale.curve.choice import Candidate, Choice, Limits, choose
from krscale.curve.figure import draw_curve
from krscale.curve.result import (
    Curve,
    MethodResult,
    ParetoEntry,
    Rung,
    Teacher,
    find_pareto,
    read_curve,
    write_curve,
)
from krscale.curve.table import curve_table

__all__ = [
    "Candidate",
    "Choice",
    "Curve",
    "Limits",
    "MethodResult",
    "ParetoEntry",
    "Rung",
    "Teacher",
    "choose",
    "curve_table",
    "draw_curve",
    "find_pareto",
    "read_curve",
    "write_curve",
]
