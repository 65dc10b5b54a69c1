"""Models, one file per paper. Each is a module with the names of `zoo.contract`."""

from . import din, mlp

MODELS = {"mlp": mlp, "din": din}
