"""How many CPUs the threads of this pod may use. A pod sees all cores of its machine, but other pods use them as well."""

import collections
import math
import os
import pathlib
from collections.abc import Mapping

from finetune_api import names
from finetune_api.wire import RunConfig
from finetune_trainer.runtime import cgroup

_PCI_DEVICES = pathlib.Path("/sys/bus/pci/devices")
_GPU_VENDORS = ("0x10de", "0x1002")  # NVIDIA, AMD
_GPU_CLASSES = ("0x03", "0x12")  # display controllers and processing accelerators


def choose_cpus(cores: int, limit: float | None, request: float, gpu_share: float | None) -> int:
    """Return the number of CPUs. All arguments are in CPUs; gpu_share: the cores that belong to this pod's GPUs, if known.

    The limit decides: threads beyond it would spin until the kernel stops all of them. Without a limit the request decides, if it
    is at least one CPU, because less is usually no estimate of the need. Otherwise each GPU of the machine has its share.
    """
    if limit is not None:
        given = limit
    elif request >= 1:
        given = request
    else:
        given = cores if gpu_share is None else gpu_share
    return max(1, min(cores, math.ceil(given)))


def usable_cpus(config: RunConfig, environ: Mapping[str, str] = os.environ, root: pathlib.Path = cgroup.ROOT) -> int:
    """Return the number of CPUs that all processes of this pod together may use, at least 1 and at most the cores it sees."""
    return choose_cpus(
        len(os.sched_getaffinity(0)),
        cgroup.read_cpu_limit(root),
        int(environ.get(names.ENV_CPU_REQUEST) or 0) / 1000,
        _gpu_share(config, count_gpus_of_machine()),
    )


def _gpu_share(config: RunConfig, gpus_of_machine: int) -> float | None:
    """Return the cores for this pod's GPUs. On one machine, a job may have more processes than the GPUs that its spec names."""
    gpus = config.spec.distributed.gpus_per_node and max(config.spec.distributed.gpus_per_node, config.processes_per_node)
    if not gpus or gpus >= gpus_of_machine:
        return None
    return (os.cpu_count() or 1) * gpus // gpus_of_machine


def count_gpus_of_machine(devices: pathlib.Path = _PCI_DEVICES) -> int:
    """Return the number of GPUs of the machine, also of those that this pod may not use. 0 if it can't be found out.

    The GPUs of one vendor count, so that the graphics unit of a processor does not. Nor do the virtual functions of a shared GPU.
    """
    vendors: collections.Counter[str] = collections.Counter()
    for device in devices.glob("*"):
        if not (device / "physfn").exists() and cgroup.read_kernel_file(device / "class").startswith(_GPU_CLASSES):
            vendors[cgroup.read_kernel_file(device / "vendor")] += 1
    return max((vendors[vendor] for vendor in _GPU_VENDORS), default=0)
