"""Kernels without their devices: `make aot`. Where a compiler is absent, nothing is collected."""

import importlib.util
import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")  # Or a plugin looks for its device, and is refused.

COMPILERS = ("triton", "jax_triton", "jax_cuda12_plugin", "libtpu")

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would look for a TPU on the network.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # It compiles only, in several processes.

if not all(importlib.util.find_spec(name) for name in COMPILERS):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    """What the compilers warn of is theirs; our own warnings stay errors."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for library in ("triton", "jax_triton", "jax._src", "jax_plugins"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:::{library}"))
