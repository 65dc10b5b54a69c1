"""What Triton kernels take of a multiprocessor, by the assembler that comes with Triton."""

import re
import subprocess
import unittest.mock

import jax
import jax.numpy as jnp
import jax_triton  # noqa: F401  It unsets Triton's cache when it is imported.
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend, get_ptxas
from triton.compiler import ASTSource

SHARED = 232_448  # Bytes that a block may have on sm_90.
TYPES = {"bfloat16": "bf16", "float32": "fp32", "bool": "i1", "int32": "i32", "uint32": "u32"}


def kernels_launched(monkeypatch, module, f, args):
    """What `f` would launch through `module._launch`: types, constants and warps by kernel."""
    found = {}

    def record(name, grid, arrays, *, out, constants, config):
        shapes = [x if isinstance(x, tuple) else x.shape for x in out]
        dtypes = [jnp.float32 if isinstance(x, tuple) else x.dtype for x in out]
        results = tuple(map(jnp.zeros, shapes, dtypes))
        types = [str(x.dtype) for x in (*arrays, *results)]
        found[name] = types, constants, config.warps
        return results

    monkeypatch.setattr(module, "_launch", record)
    jax.eval_shape(f, *args)
    return found


def used(kernels, name, types, constants, warps):
    """Registers, bytes spilled and bytes of shared memory of a kernel of a module, on sm_90."""
    kernel = getattr(kernels, name)
    pointers = [x for x in kernel.arg_names if x not in constants]
    signature = {n: f"*{TYPES[t]}" for n, t in zip(pointers, types, strict=True)}
    places = {n: kernel.arg_names.index(n) for n in kernel.arg_names}
    source = ASTSource(
        fn=kernel,
        signature={n: signature.get(n, "constexpr") for n in kernel.arg_names},
        constexprs={(places[n],): value for n, value in constants.items()},
        attrs={(places[n],): [["tt.divisibility", 16]] for n in pointers},
    )
    options = {"num_warps": warps, "num_stages": 2}
    # Triton would assemble it too. Once is enough, and here it says what it took.
    with unittest.mock.patch.object(CUDABackend, "make_cubin", lambda *_: b""):
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    said = subprocess.run(
        [get_ptxas(90).path, "-v", "-arch=sm_90a", "-o", "/dev/null", "/dev/stdin"],
        input=binary.asm["ptx"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return int(re.search(r"Used (\d+) registers", said)[1]), spilled, binary.metadata.shared


def assert_fits(kernels, found):
    """Each of `kernels_launched` into a multiprocessor, without a spill."""
    for name, launch in found.items():
        registers, spilled, shared = used(kernels, name, *launch)
        assert registers <= 255 and not spilled, f"{name}: {registers}, spilled {spilled}"
        assert shared <= SHARED, f"{name}: {shared} bytes of shared memory"
