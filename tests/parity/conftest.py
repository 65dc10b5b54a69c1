"""Parity with other libraries: `make parity`. Nothing here is collected where they are absent."""

import importlib.util
from pathlib import Path
import types

import pytest

LIBRARIES = ("torch", "deepctr_torch", "fuxictr", "torch_rechub")

if all(importlib.util.find_spec(name) for name in LIBRARIES):
    import requests
    import torch

    torch.set_num_threads(1)  # Everything here is tiny, and one process runs per core.
    # DeepCTR-Torch asks PyPI for its newest version when imported. Tests use no network.
    requests.get = lambda *arguments, **options: types.SimpleNamespace(status_code=None)
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    """What the libraries warn of is theirs; our own warnings stay errors."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for library in ("torch", "deepctr_torch", "fuxictr", "model_zoo", "torch_rechub"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:::{library}"))
