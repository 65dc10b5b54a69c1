"""The examples in docstrings give what they say."""

import doctest
import importlib

import pytest

FUNCTIONS = (
    "kernels.target_attention.target_attention",
    "kernels.dot_attention.dot_attention",
    "kernels.soft_search.soft_search",
    "kernels.augru.augru",
    "zoo.features.signatures",
    "zoo.features.Schema",
    "zoo.features.encode",
    "zoo.features.RequestEncoder",
    "train.evaluation.metrics.auc",
    "train.tables.chain",
    "train.data.sources.open_source",
    "train.launch.train",
    "export.stablehlo.export_run",
    "api.read",
    "api.train",
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example(name):
    module, _, function = name.rpartition(".")
    found = getattr(importlib.import_module(f"recjax.{module}"), function)
    (test,) = doctest.DocTestFinder(recurse=False).find(found, name, globs={})
    assert test.examples, "no example"
    said: list[str] = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)
