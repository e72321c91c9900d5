"""Threads and torch: what computes in one leaves workers behind that slow the others down."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_passing_thread(work: Callable[[], Result]) -> Result:
    """Do something in a thread that ends with it, so that the workers torch computes with there end too.

    OpenMP gives every thread that computes workers of its own and keeps them as long as the thread lives. Once all of
    them together are more than the cores, GNU's workers sleep between two operations instead of waiting awake, and
    waking costs more than an operation of a small model: docs/serving.md has the figures. So what is loaded for
    another thread to compute with is loaded in passing.

    Args:
        work: Called without arguments.

    Returns:
        What it returns.

    Raises:
        Exception: What it raises.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - carried to whoever waits
            future.set_exception(error)

    # a daemon: Ctrl-C while a source is converted ends the program, not the conversion's half minute later
    thread = threading.Thread(target=run, name="passing", daemon=True)
    thread.start()
    thread.join()
    return future.result()
