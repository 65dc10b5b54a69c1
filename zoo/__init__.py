"""Models, one file per paper. Each is a module with the names of `zoo.contract`.

`MODELS` has them by name. It is read when it is asked for: what only needs the schema, such as an
artifact that serves, loads no model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import MODELS as MODELS


def __getattr__(name: str) -> Any:
    if name != "MODELS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .models import MODELS

    return MODELS
