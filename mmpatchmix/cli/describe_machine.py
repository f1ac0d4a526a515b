"""What a figure must say about the machine it was measured on."""

import datetime
import os
import platform

import torch


def cores_per_process() -> int:
    """Cores that each process of this machine may use, at least 1."""
    # macOS has no sched_getaffinity.
    cores = getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count() or 1))(0)
    return max(1, len(cores) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def describe_machine() -> dict[str, str | int]:
    """Processor, cores per process, threads, accelerator, versions and date."""
    processor = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo', encoding='utf-8') as lines:
            models = [line.split(':', 1)[1].strip() for line in lines if 'model name' in line]
        processor = models[0] if models else processor
    return {
        'processor': processor,
        'cores': cores_per_process(),
        'threads': torch.get_num_threads(),
        'accelerator': torch.cuda.get_device_name() if torch.cuda.is_available() else 'none',
        'torch': torch.__version__,
        'date': datetime.date.today().isoformat(),
    }
