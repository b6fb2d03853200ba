"""One application: its commands are listed, have a help, answer fast, and help with typos."""

import os
import runpy
import subprocess
import sys
import warnings

import pytest
from running import PATHS, ROOT

from krscale.cli import app

HEAVY = ("torch", "ray", "mlflow", "optuna", "matplotlib", "plotly", "sklearn", "pyarrow")


def answer(capsys, *arguments):
    """Run `krscale ARGUMENTS`; return the exit code, stdout and stderr."""
    try:
        code = app.main(arguments)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command_with_one_line(capsys, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = answer(capsys, *arguments)
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    for command, purpose in app.COMMANDS.items():
        assert [command, purpose] in lines
    assert len({tuple(line) for line in lines if line and line[0] in app.COMMANDS}) == len(
        app.COMMANDS
    )


@pytest.mark.parametrize("command", app.COMMANDS)
def test_every_command_explains_itself(capsys, command):
    code, out, err = answer(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: krscale {command} ")
    assert len(out.splitlines()) > 5


@pytest.mark.parametrize(
    ("written", "meant"),
    [("tun", "tune"), ("distil", "distill"), ("reports", "report"), ("synch", "sync")],
)
def test_an_unknown_command_names_the_nearest(capsys, written, meant):
    code, out, err = answer(capsys, written, "--set", "a=1")
    assert (code, out) == (2, "")
    assert f"unknown command {written!r}. Did you mean {meant!r}?" in err
    assert "Allowed: tune, distill," in err


def test_what_resembles_no_command_is_refused_without_a_guess(capsys):
    code, _, err = answer(capsys, "xyzzy")
    assert code == 2
    assert "unknown command 'xyzzy'. Allowed: tune" in err


def test_the_nearest_of_a_command_inside_a_command(capsys):
    code, _, err = answer(capsys, "store", "chek", "digits")
    assert code == 2
    assert "krscale store: error: unknown command 'chek'. Did you mean 'check'?" in err


@pytest.mark.parametrize(
    ("arguments", "usage", "hint"),
    [
        (("tune", "--dryrun"), "krscale tune", "--dryrun. Did you mean '--dry-run'?"),
        (("pick", "x", "--max-param=3", "--formt=a"), "krscale pick", "Did you mean '--format'?"),
        (("store", "check", "x", "--row", "1", "--repeir"), "krscale store check", "'--repair'?"),
        (("--versoin",), "krscale", "'--version'?"),
        (("sync", "a", "b"), "krscale sync", "unrecognized arguments: b."),
    ],
)
def test_an_unknown_option_names_the_nearest_of_its_command(capsys, arguments, usage, hint):
    code, out, err = answer(capsys, *arguments)
    assert (code, out) == (2, "")
    assert f"usage: {usage} " in err
    assert f"{usage}: error: unrecognized arguments: " in err
    assert hint in err


def test_version(capsys):
    from importlib.metadata import version

    assert answer(capsys, "--version") == (0, f"krscale {version('krscale')}\n", "")


def test_an_answer_needs_nothing_heavy():
    asked = [["--help"], ["--version"], ["tun"], *([name, "--help"] for name in app.COMMANDS)]
    code = (
        "import sys\nfrom krscale.cli.app import main\n"
        f"for arguments in {asked!r}:\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        f"    heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    print(arguments, heavy, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": PATHS}, cwd=ROOT,
    )  # fmt: skip
    found = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert found == [f"{arguments} []" for arguments in asked]


# Scripts and jobs call these modules; all run the same application.
MODULES = {
    "krscale": "krscale",
    **{
        f"krscale.{command}": f"krscale {command}" for command in app.COMMANDS if command != "space"
    },
    "krscale.space_door": "krscale space",
    "krscale.store_door": "krscale store",
}


@pytest.mark.parametrize("module", MODULES)
def test_modules_run_the_same_application(module, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--no-such-option"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: {MODULES[module]} ")


def test_python_runs_a_module_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "krscale.space", "--no-such-option"], capture_output=True,
        text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": PATHS}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("usage: krscale space ")


def test_a_command_gets_its_options_and_its_code_is_returned(capsys, monkeypatch):
    from krscale.cli import sync

    seen = []
    monkeypatch.setattr(sync, "run", lambda options: seen.append(options) or 7)
    assert answer(capsys, "sync", "digits", "--timeout", "3") == (7, "", "")
    assert (seen[0].run, seen[0].timeout, seen[0].uri) == ("digits", 3.0, "")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("tune", ""), "EXPERIMENT.toml"),
        (("teach", "--", ""), "EXPERIMENT.toml"),
        (("distill", "--set", ""), "--set"),
        (("data", "check", ""), "SOURCE"),
        (("pick", "digits", "--output="), "--output"),
        (("report", "digits", ""), "RUN"),
        (("verify", "digits", "--storage-path", ""), "--storage-path"),
        (("ui", "--host", ""), "--host"),
        (("space", "check", "kr", "--experiment", ""), "--experiment"),
    ],
)
def test_an_empty_argument_is_not_taken_for_the_default(capsys, arguments, name):
    code, _, err = answer(capsys, *arguments)
    assert code == 2
    assert f"argument {name}: expected a value, got an empty text" in err
