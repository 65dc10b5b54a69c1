"""Production recommendation models in JAX.

A request (one user, one history, C candidates) goes in, a slate comes out.

    import recjax

    run = recjax.train("din", "events:clicks.csv")      # or a data frame
    run = recjax.load("runs/din-events-clicks-1")
    run.recommend(records, k=3)

Models live in `recjax.zoo`, their hot loops in `recjax.kernels`, training in `recjax.train`. Names
are imported when they are first used: `import recjax` loads no model and no accelerator.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Dataset as Dataset
    from .api import Recommendation as Recommendation
    from .api import Run as Run
    from .api import load as load
    from .api import read as read
    from .api import train as train

__version__ = "0.1.0"
__all__ = ["Dataset", "Recommendation", "Run", "load", "read", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    api = importlib.import_module(".api", __name__)
    # Of the package `train`, which can be called, and the function there is one name.
    return sys.modules[f"{__name__}.train"] if name == "train" else getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
