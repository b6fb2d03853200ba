"""Waiting in a process that a test will send a signal to."""

import time

NAP_SECONDS = 0.02


def sleep(seconds: float) -> None:
    """Sleep in short parts, as a handler of Python's runs between them.

    Python looks for signals and then asks the kernel to sleep. A signal that comes between the two
    is heard only when the sleep ends: 2 in 12,000 on a busy machine, where one sleep of a minute
    outlasted the test's limit.

    Example:
        >>> sleep(0.0)
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, NAP_SECONDS))
