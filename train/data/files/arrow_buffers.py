"""Text for Arrow's readers, in memory that Arrow owns.

Arrow parses in threads of its own, which may let go of a text a moment after the reader has
returned. A text that Python owns needs the interpreter's lock for that, and a thread that asks for
it while the interpreter ends takes the process down with it (exit code 134). So no Python object,
neither bytes nor a file, goes to a reader that has threads.
"""

import io
from typing import Any

import numpy as np
import pyarrow as pa


def reader_of(text: bytes | bytearray | memoryview | pa.Buffer) -> pa.BufferReader:
    """A reader of `text` if Arrow holds it, else of a copy that Arrow's own allocator holds."""
    if isinstance(text, pa.Buffer):
        return pa.BufferReader(text)
    buffer = pa.allocate_buffer(len(text))
    np.frombuffer(buffer, np.uint8)[:] = np.frombuffer(text, np.uint8)
    return pa.BufferReader(buffer)


class Decompressed(io.RawIOBase):
    """What Arrow decompresses, as Python's streams are; read by the thread that asks."""

    def __init__(self, stream: Any, codec: str):
        """Of a binary stream; `codec` is "zstd" or "lz4"."""
        self._stream = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with what comes next; how many bytes."""
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)
