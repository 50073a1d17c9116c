"""What are the devices of a TPU slice that is not here? Programs compile for them without one.

`v5e:16x16` is 256 chips. Needs the extra [tpu-plan] (libtpu); nothing runs and nothing is sent anywhere.
"""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from lm.config import ConfigError

# GiB of memory that XLA lets a program use on one device, as its compiler reports it (libtpu 0.0.52).
HBM_GIB = {
    "TPU v5 lite": 15.75, "TPU v5": 95.73, "TPU v6 lite": 31.24, "TPU7x": 94.74, "TPU v4": 15.25, "TPU v3": 15.48,
    "TPU v2": 7.48,
}  # fmt: skip
# What libtpu would otherwise ask a metadata server for, which is not there.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}  # fmt: skip


def check_topology(name: str) -> None:
    """Raises ConfigError when `name` is no topology, or when libtpu is missing. Must come before jax finds devices."""
    if not re.fullmatch(r"[a-z0-9]+:\d+(x\d+)+", name):
        raise ConfigError(f"--topology={name}: write kind:AxB or kind:AxBxC, such as v5e:4x4, v5e:16x16 or v5p:8x8x8")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("--topology needs libtpu: pip install 'lm[tpu-plan]' (Linux)")
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ["JAX_PLATFORMS"] = "cpu"  # or libtpu would look for chips here


def topology_devices(name: str) -> list[Any]:
    """Returns the devices of a TPU topology such as `v5e:16x16`; raises ConfigError for one that does not exist."""
    from jax.experimental import topologies

    check_topology(name)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # jaxlib raises its own kinds
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--topology={name} is unknown to libtpu: {reason}. Known: v5e:4x4, v5p:2x2x2, v6e:16x16"
        ) from None


def memory_limit(device: Any) -> int | None:
    """Bytes that a program may use on one device; None where nothing says."""
    for kind, gib in HBM_GIB.items():
        if kind in device.device_kind:
            return int(gib * 2**30)
    if device.platform == "cpu":
        if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
            return None
        import jax

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(jax.local_device_count(), 1)
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")
