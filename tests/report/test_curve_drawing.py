import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console

from krscale.report import (
    Curve,
    CurveSize,
    MethodResult,
    Size,
    comparison_table,
    curve_table,
    draw_curve,
    find_pareto,
)
from krscale.report.table import short_number

ACCURACIES = {"plain": (0.612, 0.631, 0.598), "kd": (0.64, 0.652, 0.63), "kr": (0.68, 0.69, 0.671)}


def one(accuracies, shift=0.0):
    values = [min(1.0, a + shift) for a in accuracies]
    return MethodResult.over_seeds(
        seeds=range(len(values)), val_accuracies=values, test_accuracies=values,
        num_trials=8, num_pruned=3, num_failed=0, best={"distill.sparsity": 0.5},
    )  # fmt: skip


def make_curve(num_sizes=4, num_seeds=3, methods=tuple(ACCURACIES)):
    sizes = [
        CurveSize(
            capacity=f"1/{4 ** (4 - i)}", width=2 ** (i + 1), num_parameters=1560 * 4**i,
            flops=39_000 * 4**i, latency_ms=0.21 * (i + 1),
            methods={m: one(ACCURACIES[m][:num_seeds], 0.08 * i) for m in methods},
        )
        for i in range(num_sizes)
    ]  # fmt: skip
    teacher = {
        "model": "resnet", "width": 32, "num_parameters": 396_000, "flops": 12_400_000,
        "val_accuracy": 0.98, "test_accuracy": 0.975,
    }  # fmt: skip
    return Curve(
        name="digits", commit="abc", data={"source": "digits"}, teacher=teacher,
        sizes=tuple(sizes), pareto=find_pareto(sizes),
    )  # fmt: skip


def printed(curve, width, **options):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(curve_table(curve, **options))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 140])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_table_shows_every_number_and_nothing_is_cut(width, ascii_only):
    text = printed(make_curve(), width, ascii_only=ascii_only)
    pm = "+-" if ascii_only else "±"
    row = next(line for line in text.splitlines() if line.split()[:1] == ["1/256"])
    # kr: mean 68.03, sd 0.9504, t_{2, 0.975} = 4.3027 -> 2.36
    assert row.split() == [
        "1/256", "1.56k", "39k", "0.21", f"61.4{pm}4.1", f"64.1{pm}2.7", f"68.0{pm}2.4*",
    ]  # fmt: skip
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "3 seeds" in text
    assert "396k" in text
    assert "97.5" in text
    assert text.isascii() == ascii_only


def test_the_best_of_a_row_is_bold_and_the_others_are_not():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    console.print(curve_table(make_curve(num_sizes=1, num_seeds=1), ascii_only=False))
    row = next(line for line in console.file.getvalue().splitlines() if "1/256" in line)
    assert "\x1b[1m68.0*" in row
    assert "\x1b[1m61.2" not in row
    assert "\x1b[1m64.0" not in row


def test_a_missing_or_failed_method_is_a_dash():
    curve = make_curve(num_sizes=1, methods=("plain", "kr"))
    failed = MethodResult.over_seeds(
        seeds=(), val_accuracies=(), test_accuracies=(), num_trials=3, num_pruned=0, num_failed=3,
        best={},
    )  # fmt: skip
    methods = {"plain": curve.sizes[0].methods["plain"], "kr": failed}
    broken = curve.model_copy(
        update={
            "sizes": (curve.sizes[0].model_copy(update={"methods": methods}),),
            "pareto": (),
        }
    )
    row = next(line for line in printed(broken, 80).splitlines() if "1/256" in line)
    assert row.split()[-1] == "-"


def with_own_sizes(curve, **own):
    size = curve.sizes[0]
    methods = {
        name: result.model_copy(update={"size": own.get(name)})
        for name, result in size.methods.items()
    }
    return curve.model_copy(update={"sizes": (size.model_copy(update={"methods": methods}),)})


def test_the_sizes_in_a_row_are_those_of_its_students():
    deep = Size(width=3, num_parameters=46_900, flops=853_000, latency_ms=0.84)
    curve = with_own_sizes(make_curve(num_sizes=1), kr=deep)

    def rows(table):
        console = Console(file=io.StringIO(), width=100, color_system=None)
        console.print(table)
        text = console.file.getvalue()
        return [line.split() for line in text.splitlines() if "1/256" in line], text

    found, text = rows(curve_table(curve, ascii_only=True))
    assert found == [
        ["1/256", "1.56k", "39k", "0.21", "61.4+-4.1", "64.1+-2.7"],
        ["1/256", "46.9k", "853k", "0.84", "68.0+-2.4*"],
    ]
    assert "size in several rows: the architecture was searched" in text
    compared, _ = rows(comparison_table([curve], ascii_only=True))
    assert compared == [["digits", *found[0]], found[1]]

    all_deep = with_own_sizes(make_curve(num_sizes=1), plain=deep, kd=deep, kr=deep)
    found, text = rows(curve_table(all_deep, ascii_only=True))
    assert [row[1:4] for row in found] == [["46.9k", "853k", "0.84"]]
    assert "several rows" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (312, "312"), (999, "999"), (999.6, "1k"), (1240, "1.24k"), (39_590, "39.6k"),
     (999_700, "1M"), (1.5e9, "1.5G"), (3e12, "3T")],
)  # fmt: skip
def test_short_numbers(value, text):
    assert short_number(value) == text


def test_an_ascii_terminal_can_print_the_table():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_curve_drawing as t;"
        "from rich.console import Console; Console(width=60).print(t.curve_table(t.make_curve()))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env=environment, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert b"68.0+-2.4*" in done.stdout


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_figure_is_drawn_in_the_format_of_its_suffix(tmp_path, suffix):
    path = tmp_path / f"curve{suffix}"
    draw_curve(make_curve(), path)
    start = path.read_bytes()[:300]
    assert {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<svg"}[suffix] in start
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_every_method_the_teacher_and_the_front_are_in_the_figure(tmp_path):
    draw_curve(make_curve(), tmp_path / "curve.png")
    pixels = matplotlib.image.imread(tmp_path / "curve.png")[..., :3]
    for colour in ("#000000", "#0072B2", "#D55E00", "#777777", "#555555"):
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(pixels - wanted).max(-1) < 0.02).sum() > 100, colour


@pytest.mark.parametrize(
    "curve",
    [
        make_curve(num_sizes=1, num_seeds=1),
        make_curve(num_sizes=0),
        make_curve(num_sizes=2, num_seeds=2),
    ],
)
def test_small_curves_are_drawn_without_a_warning(tmp_path, curve):
    draw_curve(curve, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
