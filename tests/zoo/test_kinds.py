"""Every model has the functions of its kind, and says which kind that is."""

import pytest

from recjax.zoo import MODELS
from recjax.zoo.contract import Evaluator, Generator, Model, ParameterGenerator, Retriever
from recjax.zoo.rerank import GENERATORS, RERANKERS

ALL = {**MODELS, **RERANKERS, **GENERATORS}
PROTOCOLS = {"retrieval": Retriever, "evaluator": Evaluator, "generator": Generator}


@pytest.mark.parametrize("name", ALL)
def test_a_module_is_of_the_kind_that_it_says(name):
    module = ALL[name]
    assert isinstance(module, Model)
    kinds = [kind for kind, protocol in PROTOCOLS.items() if isinstance(module, protocol)]
    # Seq2Slate gives slates too, and is trained on logs: it has nothing that LAST moves.
    has = module.KIND in PROTOCOLS and name != "seq2slate"
    assert kinds == ([module.KIND] if has else [])


def test_which_generators_have_parameters_that_move():
    movable = [n for n, module in GENERATORS.items() if isinstance(module, ParameterGenerator)]
    assert movable == ["generator"]
