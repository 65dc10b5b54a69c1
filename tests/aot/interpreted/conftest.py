"""Triton is told by TRITON_INTERPRET=1 before it is imported: a process of its own."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
