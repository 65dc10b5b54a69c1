"""What Arrow's threads may hold when the interpreter ends belongs to Arrow."""

import ast
from pathlib import Path
import sys

import pyarrow as pa
import pytest

import recjax
from recjax.train.data.files.arrow_buffers import reader_of

# What lets a thread of Arrow's hold, or call, an object of Python's.
OWNED_BY_PYTHON = {"BufferReader", "PythonFile", "py_buffer", "foreign_buffer", "input_stream"}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_reader_holds_a_copy_of_its_own(kind):
    text = kind(b"a,b\n1,2\n" * 1000)
    before, allocated = sys.getrefcount(text), pa.total_allocated_bytes()
    reader = reader_of(text)
    assert sys.getrefcount(text) == before
    assert pa.total_allocated_bytes() - allocated >= len(text)
    assert reader.read() == bytes(text)
    assert reader_of(kind(b"")).read() == b""


def test_the_package_makes_readers_in_one_place():
    package = Path(recjax.__file__).parent
    for part in ("train", "zoo", "export"):
        for path in (package / part).rglob("*.py"):
            if path.name == "arrow_buffers.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    assert node.func.attr not in OWNED_BY_PYTHON, f"{path}: {node.lineno}"
