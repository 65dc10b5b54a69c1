"""Re-ranking: an evaluator that judges slates, generators that write them, and their rivals."""

from ..contract import Generator, Model
from . import dlcm, evaluator, generator, nar, prm, seq2slate

# Trained on logs of slates, like the models of the zoo.
RERANKERS: dict[str, Model] = {
    "evaluator": evaluator,
    "prm": prm,
    "dlcm": dlcm,
    "seq2slate": seq2slate,
}
# Trained against evaluators, without feedback.
GENERATORS: dict[str, Generator] = {"generator": generator, "nar": nar}
