"""Runs Triton kernels on NumPy arrays, in Triton's interpreter.

Triton is told by TRITON_INTERPRET=1 before it is imported, so this needs a process of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

multiply = InterpreterBuilder.create_dot


def create_dot(self, a, b, *rest):
    """Triton's interpreter multiplies the bits of bfloat16 as if they were whole numbers."""
    return multiply(self, _single(a), _single(b), *rest)


def _single(x):
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


InterpreterBuilder.create_dot = create_dot


class Pointer:
    """As much of a torch tensor as the interpreter asks for: memory that it reads and writes."""

    device = "cpu"

    def __init__(self, array):
        assert array.flags.c_contiguous
        self.array = array

    @property
    def dtype(self):
        return self.array.dtype.name

    @property
    def shape(self):
        return self.array.shape

    def data_ptr(self):
        return self.array.ctypes.data

    def element_size(self):
        return self.array.itemsize

    def is_contiguous(self):
        return True

    def stride(self):
        return tuple(n // self.array.itemsize for n in self.array.strides)

    def storage_offset(self):
        return 0

    def size(self):
        return self.array.shape

    # The interpreter moves storages to the host and back. They are there.

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def new_empty(self, *_, **__):
        return Pointer(self.array)

    def set_(self, storage, *_):
        self.array = storage.array
        return self

    def copy_(self, other):
        if other.array is not self.array:
            self.array[...] = other.array


def launcher(kernels):
    """In place of a `_launch` that takes its kernels from this module."""

    def launch(name, grid, arrays, *, out, constants, config):
        del config
        shapes = [
            jax.ShapeDtypeStruct(x, jnp.float32)
            if isinstance(x, tuple)
            else jax.ShapeDtypeStruct(x.shape, x.dtype)
            for x in out
        ]

        def run(*arrays):
            results = [np.full(x.shape, _unwritten(x.dtype), x.dtype) for x in shapes]
            held = [np.ascontiguousarray(x) for x in arrays]
            getattr(kernels, name)[grid](*map(Pointer, [*held, *results]), **constants)
            return results

        return tuple(jax.pure_callback(run, shapes, *arrays))

    return launch


def _unwritten(dtype):
    """What stays where a kernel writes nothing."""
    return np.iinfo(dtype).min if np.issubdtype(dtype, np.integer) else np.nan
