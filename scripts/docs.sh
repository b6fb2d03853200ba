#!/bin/sh
# Build the documentation as a site, in an environment of its own: it needs neither torch nor Ray.
#
#   scripts/docs.sh build    build/site, every warning an error
#   scripts/docs.sh serve    the same while you write, on this machine only
set -eu
cd "$(dirname "$0")/.."
venv=.venv/docs

# What to install is the extra `docs` of pyproject.toml, without krscale and all that it needs.
wanted() {
    sed -n '/^docs = \[/,/^\]/p' pyproject.toml
    pwd
}

if [ ! -x "$venv/bin/mkdocs" ] || ! wanted | cmp -s - "$venv/.wanted"; then
    echo "docs: installing mkdocs-material"
    "${PYTHON:-python3}" -m venv "$venv"
    wanted | sed -n 's/^ *"\([^"]*\)".*/\1/p' >"$venv/requirements.txt"
    "$venv/bin/python" -m pip install --quiet --requirement "$venv/requirements.txt"
    wanted >"$venv/.wanted"
fi
export NO_MKDOCS_2_WARNING=1 # that mkdocs-material ends in May 2027: docs/log.md
if [ "${1:-build}" = serve ]; then
    exec "$venv/bin/mkdocs" serve --strict --dev-addr "127.0.0.1:${PORT:-8000}"
fi
exec "$venv/bin/mkdocs" build --strict
