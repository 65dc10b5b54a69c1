import os
from pathlib import Path
import signal

# What a shell starts in the background ignores Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Four simulated devices, so that pmap has something to map over. Before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests compile the same steps again and again; nearly all their time would go there. Processes that
# tests start read the same cache.
CACHE = {
    "jax_compilation_cache_dir": str(Path(__file__).resolve().parents[1] / ".pytest_cache/jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in CACHE.items():
    value = type(value)(os.environ.setdefault(name.upper(), str(value)))
    jax.config.update(name, value)


def pytest_configure(config):
    if "CPU_SECONDS" in os.environ:
        import seconds

        config.pluginmanager.register(seconds)
