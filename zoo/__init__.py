"""Models, one file per paper. Each is a module with the names of `zoo.contract`."""

from . import din, mlp
from .contract import Model

MODELS: dict[str, Model] = {"mlp": mlp, "din": din}
