#!/bin/sh
# Write constraints.txt from what .venv holds: exact versions, no places they came from.
#
# To move a version, change its pin (or install it into .venv by hand), then run this.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp constraints.XXXXXX)
trap 'rm -f "$new"' EXIT
{
    echo "# Exact versions of every package, dev tools included. Written by 'make constraints'."
    # A local suffix such as +cpu names a build; the machine's pip settings choose the build.
    .venv/bin/python -m pip --disable-pip-version-check freeze --all --exclude-editable |
        sed -e 's/+[A-Za-z0-9.]*$//' | grep -v '^pip=='
} >"$new"
if grep -v -E '^(#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.!]+)$' "$new" >&2; then
    echo "lock: the lines above are not plain pins; install those packages by version" >&2
    exit 1
fi
chmod 644 "$new"
mv "$new" constraints.txt
