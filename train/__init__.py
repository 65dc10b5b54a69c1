"""From data to parameters.

The package can be called: `recjax.train("din", data)` is `recjax.api.train`, whose name it has.
"""

import inspect
import sys
import types
from typing import Any


class _Package(types.ModuleType):
    """This package and the function of its name are one object."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `recjax.api.train`."""
        from ..api import train

        return train(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        """What it is called with, for `help` and editors."""
        from ..api import train

        return inspect.signature(train)


sys.modules[__name__].__class__ = _Package
