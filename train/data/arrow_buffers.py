"""Text for Arrow's readers, in memory that Arrow owns.

Arrow parses in threads of its own, which may let go of a text a moment after the reader has
returned. A text that Python owns needs the interpreter's lock for that, and a thread that asks for
it while the interpreter ends takes the process down with it (exit code 134). So no Python object,
neither bytes nor a file, goes to a reader that has threads.
"""

import numpy as np
import pyarrow as pa


def reader_of(text: bytes | bytearray | memoryview) -> pa.BufferReader:
    """A reader of a copy of `text` that Arrow's own allocator holds."""
    buffer = pa.allocate_buffer(len(text))
    np.frombuffer(buffer, np.uint8)[:] = np.frombuffer(text, np.uint8)
    return pa.BufferReader(buffer)
