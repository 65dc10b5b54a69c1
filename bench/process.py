"""One measurement in a process of its own: nothing that ran before it is in its figures."""

from collections.abc import Callable
import importlib
import json
import subprocess
import sys
from typing import Any


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a new process; arguments and result are JSON.

    What the process says on standard error is shown; the last line of its output is the result.

    Raises:
      CalledProcessError: the process failed.
    """
    job = json.dumps([function.__module__, function.__qualname__, arguments])
    command = [sys.executable, "-m", __name__, job]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    module, name, given = json.loads(sys.argv[1])
    try:
        print(json.dumps(getattr(importlib.import_module(module), name)(*given)))
    except KeyboardInterrupt:  # Whoever started it says so, once.
        raise SystemExit(130) from None
