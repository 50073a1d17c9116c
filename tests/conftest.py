"""What holds for every test: eight CPU devices, and no silent broadcasting between ranks."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
os.environ["XLA_FLAGS"] = " ".join([*flags, "--xla_force_host_platform_device_count=8"])
# Compiling takes most of the time here; JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests the programs as they are in use.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402  the environment must be set first

# Files that take minutes come first, so that at the end no worker waits for the other (`make test` has two).
LONG = ("test_launch.py", "test_multihost.py", "test_plan.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


jax.config.update("jax_numpy_rank_promotion", "raise")
