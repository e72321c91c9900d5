"""How much memory and time the phases of a process take."""

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil


@dataclass
class Watch:
    """Seconds and peak memory of the phases of this process.

    Args:
        quiet: Print nothing.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_gb: dict[str, float] = field(default_factory=dict)
    quiet: bool = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Sample the resident memory fifty times a second while the block runs; memory of earlier peaks is returned."""
        gc.collect()
        process, done, sizes = psutil.Process(), threading.Event(), []

        def sample() -> None:
            while not done.wait(0.02):
                sizes.append(process.memory_info().rss)

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
            done.set()
            sampler.join()
        self.peak_gb[name] = max([*sizes, process.memory_info().rss]) / 1e9
        if not self.quiet:
            print(f"  {name}: {self.seconds[name]:.1f} s, peak {self.peak_gb[name]:.2f} GB", flush=True)
