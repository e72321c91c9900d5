"""What figures were measured on, how much memory they took, and where models compute."""

import os
import platform
import resource
import sys
from pathlib import Path

import torch
import transformers


def best_device() -> torch.device:
    """Where a model computes that nobody placed: on the accelerator if there is one, else on the processor."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def machine() -> dict:
    """Processor, accelerator if any, cores in use, memory, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": named or platform.processor() or platform.machine(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def peak_gb() -> float:
    """Most memory that this process has held so far, in GB: of its GPU once it uses one, else resident memory.

    Resident memory is that of this process without its parent's, where the system tells them apart.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / 1e9
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
