"""How torch's threads wait for each other in a process of krscale."""

import re
import subprocess
import sys

import pytest
from running import environment


def spins(**own: str) -> int:
    """Return how often a waiting thread looks again before it sleeps, as torch's OpenMP read it."""
    env = environment(OMP_DISPLAY_ENV="VERBOSE", OMP_NUM_THREADS="2")
    env.pop("OMP_WAIT_POLICY", None)  # the process of the tests has imported krscale
    code = "import krscale.models.capacity"  # which loads torch
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, **own}, capture_output=True, text=True, check=True
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    if found is None:
        pytest.skip("this torch was built with another OpenMP than GNU's")
    return int(found[1])


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise() -> None:
    assert spins() == 0
    assert spins(OMP_WAIT_POLICY="active") > 0
