"""64-bit signatures of (slot, value): the same on every machine, in every process, for ever.

A signature identifies a feature value before anybody knows how many values there are: hash the
value together with its slot (the table that it is looked up in), and treat the 64 bits as its
name. With n values the chance that any two collide is about n^2 / 2^65: 3e-4 at 1e8 values.

The mixing is splitmix64's finaliser (Steele et al., "Fast splittable pseudorandom number
generators", OOPSLA 2014), chained over the value's 8-byte words and its length.
"""

from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def slot_seed(slot: str) -> np.uint64:
    """The starting state of a slot."""
    words, lengths = _words([slot.encode()])
    return _fold(np.zeros(1, np.uint64), words, lengths)[0]


def signatures(slot: str, values: np.ndarray | list) -> np.ndarray:
    """Signs values of one slot.

    Args:
      slot: name of the table that the values are looked up in.
      values: integers (any integer dtype), or str or bytes (a list or an array); a str and its
        UTF-8 bytes are the same value, an integer and its digits are not.

    Returns:
      uint64 array of the values' shape.

    Raises:
      TypeError: for floats and other kinds, which have no exact name.

    Examples:
      >>> from recjax.zoo.features import signatures
      >>> first, second = signatures("item", ["red shoes", "blue shoes"])
      >>> bool(first == signatures("item", ["red shoes"])[0])
      True
      >>> bool(first == signatures("shop", ["red shoes"])[0]) # another slot
      False
    """
    seed = slot_seed(slot)
    if isinstance(values, np.ndarray) and values.dtype.kind in "iub":
        return _integers(seed, values)
    if len(values) == 0:
        return np.zeros(np.shape(values), np.uint64)
    array = np.asarray(values, dtype=object)
    flat = array.ravel().tolist()
    if all(isinstance(value, (int, np.integer)) for value in flat):
        for value in flat:
            if not -(2**63) <= value < 2**64:
                raise TypeError(f"Integer ids must fit in 64 bits, got {value}.")
        words = np.array([int(value) & (2**64 - 1) for value in flat], np.uint64)
        return _integers(seed, words).reshape(array.shape)
    return _texts(seed, [_bytes(value) for value in flat]).reshape(array.shape)


def combined(slot: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Signs combinations, uint64: one of each entry of the integer arrays `parts`, of one shape.

    Their order counts: (a, b) is another combination than (b, a).
    """
    state = signatures(slot, parts[0])
    with np.errstate(over="ignore"):
        for part in parts[1:]:
            state = mix((state ^ part.astype(np.uint64)) + _GOLDEN)
    return state


def _integers(seed: np.uint64, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        if values.dtype != np.uint64:
            values = values.astype(np.int64).view(np.uint64)
        return mix(values + seed * _GOLDEN ^ seed)


def _texts(seed: np.uint64, values: list[bytes]) -> np.ndarray:
    # Texts start from another state than integers, so that "7" and 7 are different values.
    start = mix(np.array([seed ^ _GOLDEN]))
    result = np.empty(len(values), np.uint64)
    # By length to a power of two, or one long text would pad all the others to its length.
    lengths = np.array([len(value) for value in values])
    sizes = np.frexp(np.maximum(lengths, 8))[1]
    for size in np.unique(sizes):
        of_size = np.flatnonzero(sizes == size)
        words, lengths = _words([values[i] for i in of_size])
        result[of_size] = _fold(np.repeat(start, len(of_size)), words, lengths)
    return result


def _bytes(value) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"An id must be an integer, str or bytes, got {type(value).__name__}.")


def _words(values: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Zero-padded little-endian words (n, w) and byte lengths (n,)."""
    lengths = np.array([len(value) for value in values], np.int64)
    width = max(1, -(-int(lengths.max(initial=0)) // 8))
    padded = b"".join(value.ljust(8 * width, b"\0") for value in values)
    return np.frombuffer(padded, "<u8").reshape(-1, width).astype(np.uint64), lengths


def _fold(state: np.ndarray, words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Chains `mix` over each value's own words; longer neighbours in the array do not matter."""
    with np.errstate(over="ignore"):
        for i in range(words.shape[1]):
            live = lengths > 8 * i
            state = np.where(live, mix((state ^ words[:, i]) + _GOLDEN), state)
        return mix(state ^ (lengths.astype(np.uint64) * _GOLDEN))
