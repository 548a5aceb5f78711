"""Helpers for programs that a test starts and waits for."""

import contextlib
import threading


@contextlib.contextmanager
def killed_when_late(*programs, seconds=120):
    """Kills the programs if the block takes longer, so that a test fails, and does not hang, without their answer."""
    timers = [threading.Timer(seconds, program.kill) for program in programs]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
