"""Devices that are not there, to compile for."""

import functools

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

H100 = """gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@functools.cache
def placed(platform):
    """Where arrays lie: on one H100 ("cuda") or on one core of a TPU v5e ("tpu")."""
    if platform == "cuda":
        known = {"topology_name": "", "topology": "1x1x1", "target_config": H100}
    else:
        known = {"topology_name": "v5e:2x2"}
    devices = topologies.get_topology_desc(platform=platform, **known).devices
    return NamedSharding(Mesh(np.array(devices[:1]), ("device",)), PartitionSpec())


def compiled(platform, f, *args):
    """`f` compiled for arrays shaped as `args`."""
    on_device = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed(platform))
    return jax.jit(f).trace(*jax.tree.map(on_device, args)).lower().compile()


def temporary(executable):
    """MiB of temporary memory."""
    return executable.memory_analysis().temp_size_in_bytes / 2**20
