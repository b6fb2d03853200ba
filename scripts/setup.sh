#!/bin/sh
# Create .venv and install the pinned dependencies; install nothing when nothing has changed.
#
#   scripts/setup.sh        what a run needs
#   scripts/setup.sh dev    that, and the tools of tests and checks
#
# What is installed is exactly constraints.txt. pip's own settings (index, proxy, certificates,
# wheel folders) are the machine's; they also choose which build of torch it is, CPU or CUDA.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
extra=${1:-run}
log=$venv/pip.log
oldest=3.11
newest=3.14 # the last Python for which Ray 2.60 has wheels

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

# The stamp is everything the installation depends on, compared as a whole: file times would miss
# a moved folder (an editable install holds its path) and cry wolf after a copy or a checkout.
wanted() {
    pwd
    cat pyproject.toml constraints.txt scripts/setup.sh
}

installed() { [ -x "$venv/bin/python" ] && wanted | cmp -s - "$venv/.krscale-$1"; }

fits() {
    "$1" - "$oldest" "$newest" 2>/dev/null <<'PYTHON'
import sys

oldest, newest = (tuple(int(part) for part in text.split(".")) for text in sys.argv[1:])
sys.exit(not oldest <= sys.version_info[:2] <= newest)
PYTHON
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    found=$("${PYTHON:-python3}" --version 2>&1) || found="no ${PYTHON:-python3}"
    fail "Python $oldest to $newest is needed, found: $found." \
        "Install one, or name it: make PYTHON=/path/to/python3 ..."
}

create_venv() {
    if [ -e "$venv/bin/python" ] || [ -L "$venv/bin/python" ]; then
        fits "$venv/bin/python" || {
            say "replacing $venv: its Python is gone, or not one of $oldest to $newest"
            rm -rf "$venv"
        }
    fi
    if [ ! -x "$venv/bin/python" ]; then
        python=$(find_python)
        say "creating $venv with $("$python" --version)"
        "$python" -m venv "$venv" || {
            rm -rf "$venv"
            fail "'$python -m venv' failed; Debian and Ubuntu keep it in the package python3-venv."
        }
    fi
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip -q
}

# A package is complete when pip has written INSTALLER, its last step. One that was cut short
# would count as installed for ever, so it is made invisible and installed again.
drop_half_installed() {
    "$venv/bin/python" - <<'PYTHON'
import pathlib
import shutil
import sysconfig

site = pathlib.Path(sysconfig.get_path("purelib"))
for folder in [*site.glob("*.dist-info"), *site.glob("~*")]:
    if folder.name.startswith("~") or not (folder / "INSTALLER").is_file():
        shutil.rmtree(folder, ignore_errors=True)
PYTHON
}

# pip's whole talk goes to a log: its -q would also hide why versions conflict.
install() {
    "$venv/bin/python" -m pip install --constraint constraints.txt "$@" >"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        fail "pip failed; all it said is in $log. The same command continues when it can."
    }
}

installed "$extra" && exit 0
started=$(date +%s)
create_venv
drop_half_installed
say "installing $(grep '^torch==' constraints.txt) (the largest download)"
install torch
target=".[search,export]" # krscale pick ends with an ONNX file
if [ "$extra" != run ]; then target=".[$extra]"; fi
say "installing the other pinned packages"
install hatchling editables
# The build backend is pinned like the rest: no isolation, nothing resolved behind the lock.
install --no-build-isolation --editable "$target"
wanted >"$venv/.krscale-run"
if [ "$extra" != run ]; then wanted >"$venv/.krscale-$extra"; fi
say "done in $(($(date +%s) - started)) s; nothing is installed again until the pins change"
