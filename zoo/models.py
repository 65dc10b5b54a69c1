"""The models by name. A new one is a file of its own and a line here."""

from . import dcn, dien, din, esmm, item2vec, lr, mf, mimn, mind, mlp, mlr, sim
from .contract import Model

MODELS: dict[str, Model] = {
    "lr": lr,
    "mlr": mlr,
    "mlp": mlp,
    "din": din,
    "dien": dien,
    "mimn": mimn,
    "sim": sim,
    "dcn": dcn,
    "esmm": esmm,
    "mind": mind,
    "item2vec": item2vec,
    "mf": mf,
}
