#!/bin/sh
# Open the MLflow UI of the local runs, reachable from this machine only.
set -eu
cd "$(dirname "$0")/.."
port=${PORT:-5000}
# Which database, and the address that shows its curves; or why there is nothing to show.
found=$(.venv/bin/python - "$port" <<'PYTHON'
import socket
import sqlite3
import sys

from krscale.config import Experiment
from krscale.tracking.address import charts_at

experiment, port = Experiment(), int(sys.argv[1])
database = experiment.cache_path.parent / "mlflow.db"
if not database.is_file():
    # MLflow would create it, and race with the first run that does.
    sys.exit(f"ui: there is no {database} yet; 'make run' makes it.")
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        sys.exit(f"ui: port {port} is in use; choose another: make ui PORT={port + 1}")
ask = "select experiment_id from experiments where name = ?"
with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
    row = connection.execute(ask, (experiment.tracking.experiment,)).fetchone()
print(database)
print(charts_at(f"http://127.0.0.1:{port}", str(row[0]) if row else ""))
PYTHON
)
database=${found%%
*}
address=${found##*
}
echo "Starting MLflow; Ctrl-C ends it."
# Told once there is an answer, and below what the server says of itself: the address that it names
# opens on a page for language models.
.venv/bin/python - "$port" "$address" $$ <<'PYTHON' &
import os
import sys
import time
import urllib.request

port, address, server = sys.argv[1:]
while True:
    try:
        os.kill(int(server), 0)
    except ProcessLookupError:
        sys.exit()
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        break
    except OSError:
        time.sleep(0.5)
print(f"\nThe curves of all searches:\n    {address}\n", flush=True)
PYTHON
# One worker and no job runner: 6 s and 0.5 GB instead of 25 s and 2 GB.
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false exec .venv/bin/python -m mlflow server \
    --backend-store-uri "sqlite:///$database" \
    --artifacts-destination "$(dirname "$database")/mlartifacts" \
    --host 127.0.0.1 --port "$port" --workers 1
