import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import environment, python

from krscale.cli.common import add_experiment_arguments, run_command
from krscale.errors import UserError


def raising(error):
    def command(argv):
        raise error

    return command


def test_a_command_gets_its_arguments_and_its_code_is_returned():
    seen = []
    assert run_command(lambda argv: seen.append(argv) or 7, ["a", "--b"]) == 7
    assert seen == [["a", "--b"]]


def test_every_line_of_a_user_error_is_told_on_stderr(capsys):
    assert run_command(raising(UserError("x.toml: bad\nx.toml: worse")), []) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "krscale: error: x.toml: bad\nkrscale: error: x.toml: worse\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), [])


def test_a_real_interrupt_is_one_line_and_130():
    code = (
        "import signal, sys; from krscale.cli.common import run_command; from naps import sleep\n"
        # If the test run was started in the background, SIGINT is ignored, also in its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def command(argv):\n    print('ready', flush=True)\n    sleep(60)\n"
        "sys.exit(run_command(command, []))"
    )
    with python(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "krscale: interrupted; the same command again continues.\n"


def test_a_reader_that_went_away_is_no_traceback():
    code = (
        "import sys; from krscale.cli.common import run_command\n"
        "def command(argv):\n    print('x' * 1_000_000)\n    return 0\n"
        "sys.exit(run_command(command, []))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=30
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


STREAMS = """
import os, sys
from pathlib import Path
from krscale.cli.common import run_command
from krscale.errors import UserError
from krscale.showing import show
def command(argv):
    Path("made").write_text("mine")
    with open("made", "a") as made:
        os.write(1, b"of a library ")
        show("caf\u00e9 \u00b1")
        sys.stdin.isatty()
    raise UserError("caf\u00e9")
sys.exit(run_command(command, []))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_traceback_and_no_file_of_ours(tmp_path, closed):
    done = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -c "$1" {closed}', "sh", STREAMS],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "made").read_text() == "mine"


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:surrogateescape"},
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    ],
)
def test_what_an_encoding_lacks_is_escaped(tmp_path, variables):
    code = STREAMS.encode("ascii", "backslashreplace").decode()  # arguments have an encoding, too
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(**variables),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, rb"krscale: error: caf\xe9" + b"\n")
    assert done.stdout.endswith(rb"caf\xe9 \xb1" + b"\n")


def test_a_folder_that_is_gone_is_said(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert run_command(lambda argv: len(str(Path.cwd())), []) == 2
    assert "the current folder does not exist any more" in capsys.readouterr().err


def test_the_arguments_of_experiments():
    parser = argparse.ArgumentParser()
    add_experiment_arguments(parser)
    assert vars(parser.parse_args([])) == {"experiment": None, "set": []}
    options = parser.parse_args(["x.toml", "--set", "a=1", "--set", "b.c=2"])
    assert options.experiment == "x.toml"
    assert options.set == ["a=1", "b.c=2"]
