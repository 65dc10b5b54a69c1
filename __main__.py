"""`python -m recjax`."""

from .cli import main

raise SystemExit(main())
