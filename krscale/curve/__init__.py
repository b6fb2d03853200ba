"""The answer of a search: accuracy versus capacity, as data, as a table and as a figure."""

from krscale.curve.choice import Candidate, Choice, Limits, choose
from krscale.curve.comparison import comparison_table, differences, write_csv
from krscale.curve.figure import draw_curve
from krscale.curve.front import front_headings, front_table
from krscale.curve.interactive import write_interactive
from krscale.curve.overlay import draw_curves
from krscale.curve.page import ShownRun, write_page
from krscale.curve.result import (
    Budgets,
    Cost,
    Curve,
    ParetoEntry,
    Teacher,
    find_pareto,
    read_curve,
    write_curve,
)
from krscale.curve.students import FrontTrial, MethodResult, Rung, Size
from krscale.curve.table import curve_table

__all__ = [
    "Budgets",
    "Candidate",
    "Choice",
    "Cost",
    "Curve",
    "FrontTrial",
    "Limits",
    "MethodResult",
    "ParetoEntry",
    "Rung",
    "ShownRun",
    "Size",
    "Teacher",
    "choose",
    "comparison_table",
    "curve_table",
    "differences",
    "draw_curve",
    "draw_curves",
    "find_pareto",
    "front_headings",
    "front_table",
    "read_curve",
    "write_csv",
    "write_curve",
    "write_interactive",
    "write_page",
]
