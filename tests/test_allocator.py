"""Freed memory: kept by commands and their workers, unless the user has set malloc otherwise."""

import os
import platform
import subprocess
import sys
from contextlib import suppress

import pytest
from running import environment

from krscale.allocator import VARIABLES, set_by_user, set_for_children

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="malloc of another library than glibc"
)

BLOCK = 100_000_000
"""More bytes than a thread's heap holds, and more than malloc ever keeps by itself."""
CODE = f"""
import resource, sys, threading
from krscale import allocator
from krscale.cli.common import run_command

def num_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def work(argv):
    before = num_bytes()
    block = b"x" * {BLOCK}
    del block
    print(num_bytes() - before)
    return 0

def given_back(argv):
    block = b"x" * {BLOCK}
    after = b"y" * 1_000_000  # at the heap's end, so that the block is a gap in it
    del block
    resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    before = resident()
    allocator.give_back()
    print(before - resident())
    return 0

def in_a_thread(argv):
    thread = threading.Thread(target=work, args=(argv,))
    thread.start()
    thread.join()
    return 0

sys.exit(run_command(globals()[sys.argv[1]], []))
"""


def kept(work: str, **own: str) -> int:
    """Return the number of bytes that a function of `CODE` prints."""
    env = environment()
    for name in [n for n in env if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        del env[name]
    done = subprocess.run(
        [sys.executable, "-c", CODE, work], env={**env, **own}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.parametrize("work", ["work", "in_a_thread"])
def test_a_block_that_is_freed_is_there_for_the_next(work: str) -> None:
    assert kept(work) > 0.9 * BLOCK, "the rest was free before"


def test_what_is_free_is_given_back_when_it_is_told() -> None:
    assert kept("given_back") > 0.9 * BLOCK


def test_what_the_user_has_set_is_left_alone() -> None:
    assert kept("work", MALLOC_ARENA_MAX="2") < BLOCK / 10


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({"MALLOC_ARENA_MAX": "2"}, True),
        ({"MALLOC_PERTURB_": "7"}, True),
        ({**VARIABLES, "MALLOC_TOP_PAD_": "1"}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, True),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=on", "OMP_NUM_THREADS": "1"}, False),
        (VARIABLES, False),
        ({}, False),
    ],
)
def test_whose_settings_they_are(own: dict[str, str], found: bool) -> None:
    assert set_by_user(own) is found


@pytest.mark.parametrize("own", [{}, {"MALLOC_ARENA_MAX": "1"}, {"MALLOC_ARENA_MAX": "3"}])
def test_processes_started_meanwhile_get_them_and_no_other(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with suppress(KeyboardInterrupt), set_for_children():
        assert dict(os.environ) == before | ({} if set_by_user(own) else VARIABLES)
        raise KeyboardInterrupt
    assert dict(os.environ) == before
