"""Gumbel noise that is a function of numbers, not of an array: the same in every implementation.

A kernel that makes its own noise need not read R x S x M x N of it, and a request's noise depends
on its own seed, never on its batch mates. A counter is hashed by two rounds of the 32-bit
finaliser found by Wellons' search ("Prospecting for Hash Functions", 2018).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

STEP = 0x9E3779B9  # 2^32 / golden ratio: keeps neighbouring counters apart
FIRST, SECOND = 0x7FEB352D, 0x846CA68B
STRIDE = 4096  # Candidates that a slot counts on, so that padding does not change the noise.


def gumbel(
    seeds: UInt32[Array, " R"], lanes: int, slot: Int[Array, ""], slots: int, candidates: int
) -> Float[Array, "R S N"]:
    """Standard Gumbel noise of one slot: of seed, (lane * slots + slot) * STRIDE + candidate.

    23 bits of a hash make u = (bits + 1/2) / 2^23, and -log(-log u) is the noise.
    """
    lane = jnp.arange(lanes, dtype=jnp.uint32)[:, None]
    candidate = jnp.arange(candidates, dtype=jnp.uint32)[None]
    counter = (lane * jnp.uint32(slots) + slot.astype(jnp.uint32)) * jnp.uint32(STRIDE)
    return of_counter(seeds[:, None, None], (counter + candidate)[None])


def of_counter(seed: UInt32[Array, "..."], counter: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """The noise at a counter; broadcasts."""
    bits = mixed(mixed(counter * jnp.uint32(STEP) + jnp.uint32(1)) ^ seed) >> 9
    uniform = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2**-23)
    return -jnp.log(-jnp.log(uniform))


def mixed(x: UInt32[Array, "*a"]) -> UInt32[Array, "*a"]:
    """A bijection of 32-bit numbers that flips about half of the bits for any one changed."""
    x = (x ^ (x >> 16)) * jnp.uint32(FIRST)
    x = (x ^ (x >> 15)) * jnp.uint32(SECOND)
    return x ^ (x >> 16)
