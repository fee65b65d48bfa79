"""What Ctrl-C does: the command ends at any moment, in one line."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPT_STATUS = 130  # the status of what SIGINT ended, as shells have it
QUIET_TRACKER = "ignore:resource_tracker"
STOP_NOTE = "Stopped. What is done is kept: the same command continues where it stopped."


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """A handler of SIGINT that ends this process at once: an exception would be caught, or shown with a traceback, by
    whatever is being imported or run.

    What is written stays whole without a farewell, as after a kill, and processes that were started end with this one.
    """
    clear = "\r\x1b[K" if os.isatty(2) else ""  # a line of progress
    os.write(2, f"{clear}{STOP_NOTE}\n".encode())
    os._exit(INTERRUPT_STATUS)


def stop_at_once() -> None:
    """From now on, unless whoever started this process has it ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
        # What Python's tracker of shared resources cleans up then, it would count in a warning below the last line.
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), QUIET_TRACKER)))


@contextmanager
def as_exception() -> Iterator[None]:
    """Within it Ctrl-C is a KeyboardInterrupt, for those who have to tidy up: a terminal in which a line is edited, or
    processes that do not end with this one.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not stop:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
