#!/bin/sh
# Look at what constraints.txt pins, with tools in an environment of their own.
#
#   scripts/audit.sh audit    compare it with known advisories (needs a database: the network)
#   scripts/audit.sh sbom     write build/sbom.json, a CycloneDX bill of materials (needs none)
set -eu
cd "$(dirname "$0")/.."
venv=.venv/audit

# What to install is the extra `audit` of pyproject.toml, without krscale and all that it needs.
wanted() {
    sed -n '/^audit = \[/,/^\]/p' pyproject.toml
    pwd
}

if [ ! -x "$venv/bin/pip-audit" ] || ! wanted | cmp -s - "$venv/.wanted"; then
    echo "audit: installing pip-audit and cyclonedx-bom" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    wanted | sed -n 's/^ *"\([^"]*\)".*/\1/p' >"$venv/requirements.txt"
    "$venv/bin/python" -m pip install --quiet --requirement "$venv/requirements.txt"
    wanted >"$venv/.wanted"
fi
if [ "${1:-audit}" = sbom ]; then
    mkdir -p build
    # What stands in the lock and no more: the same lock gives the same file.
    "$venv/bin/python" -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml \
        --mc-type application --output-reproducible --validate --output-format JSON \
        --output-file build/sbom.json constraints.txt
    echo "audit: wrote build/sbom.json, $(grep -c '^[^#]' constraints.txt) packages"
    exit 0
fi
exec "$venv/bin/python" scripts/audit.py
