"""The results of a search: accuracy versus capacity, as data, as a table and as a figure."""

from typing import TYPE_CHECKING

from krscale.lazy import lazily

if TYPE_CHECKING:
    from krscale.report.choice import Candidate, Choice, Limits, choose
    from krscale.report.comparison import comparison_table, differences, write_csv
    from krscale.report.figure import draw_curve
    from krscale.report.front import front_headings, front_table
    from krscale.report.interactive import write_interactive
    from krscale.report.overlay import draw_curves
    from krscale.report.page import ShownRun, write_page
    from krscale.report.result import (
        Budgets,
        Cost,
        Curve,
        ParetoEntry,
        TeacherRecord,
        find_pareto,
        read_curve,
        write_curve,
    )
    from krscale.report.students import CurveSize, FrontTrial, MethodResult, Size
    from krscale.report.table import curve_table
else:
    __getattr__ = lazily(
        __name__,
        {
            "choice": ["Candidate", "Choice", "Limits", "choose"],
            "comparison": ["comparison_table", "differences", "write_csv"],
            "figure": ["draw_curve"],
            "front": ["front_headings", "front_table"],
            "interactive": ["write_interactive"],
            "overlay": ["draw_curves"],
            "page": ["ShownRun", "write_page"],
            "result": [
                "Budgets",
                "Cost",
                "Curve",
                "ParetoEntry",
                "TeacherRecord",
                "find_pareto",
                "read_curve",
                "write_curve",
            ],
            "students": ["CurveSize", "FrontTrial", "MethodResult", "Size"],
            "table": ["curve_table"],
        },
    )

__all__ = [
    "Budgets",
    "Candidate",
    "Choice",
    "Cost",
    "Curve",
    "CurveSize",
    "FrontTrial",
    "Limits",
    "MethodResult",
    "ParetoEntry",
    "ShownRun",
    "Size",
    "TeacherRecord",
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
