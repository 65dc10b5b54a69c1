import os
import subprocess
import sys

import numpy as np
import pytest

from recjax.zoo.features import signatures

# Models in use depend on these very numbers: they must never change.
PINNED = {
    "int": (
        [7, -1, 2**63 - 1],
        [0xFDF54DAE3A2F713D, 0x020CE683AE459627, 0xBA8B2C62C1529EA7],
    ),
    "str": (
        ["7", "", "a", "a\0", "Zürich", "x" * 100],
        [
            0xC53387C780520650,
            0x35099667917024A1,
            0xE45D70BDDD191080,
            0x7EAC31A785994CE3,
            0xF4C2306B46BD17CC,
            0x64B147CA2E6E2923,
        ],
    ),
    "bytes": (
        [b"7", b"", b"a", b"a\0", b"Z\xc3\xbcrich", b"x" * 100],
        [
            0xC53387C780520650,
            0x35099667917024A1,
            0xE45D70BDDD191080,
            0x7EAC31A785994CE3,
            0xF4C2306B46BD17CC,
            0x64B147CA2E6E2923,
        ],
    ),
}


@pytest.mark.parametrize("kind", PINNED)
def test_pinned_values(kind):
    values, expected = PINNED[kind]
    actual = signatures("item", values)
    assert actual.dtype == np.uint64
    assert [hex(value) for value in actual] == [hex(value) for value in expected]


def test_slots_differ():
    assert signatures("user", [7])[0] == 0x9F1DE5FF34601080 != signatures("item", [7])[0]
    assert signatures("user", ["7"])[0] != signatures("item", ["7"])[0]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint32, np.uint64, ">i4", ">u8"])
def test_integer_types_agree(dtype):
    assert np.array_equal(
        signatures("item", np.array([0, 7, 100], dtype)), signatures("item", [0, 7, 100])
    )


def test_integer_containers_agree():
    expected = signatures("item", [-5, 2**40])
    assert np.array_equal(signatures("item", np.array([-5, 2**40])), expected)
    assert np.array_equal(signatures("item", [np.int32(-5), np.int64(2**40)]), expected)
    assert np.array_equal(signatures("item", np.array([-5, 2**40], object)), expected)
    assert np.array_equal(signatures("item", np.array([[-5], [2**40]])), expected[:, None])


def test_text_containers_agree():
    expected = signatures("item", ["ab", "ü"])
    assert np.array_equal(signatures("item", np.array(["ab", "ü"])), expected)
    assert np.array_equal(signatures("item", np.array(["ab", "ü"], object)), expected)
    assert np.array_equal(signatures("item", [b"ab", "ü".encode()]), expected)
    assert np.array_equal(signatures("item", np.array([["ab"], ["ü"]])), expected[:, None])


def test_values_that_look_alike_differ():
    numbers = signatures("item", [0, 7, 97])
    texts = signatures("item", ["0", "7", "a", "", "\0", "\0\0", "a\0", "\0a", "07", " 7"])
    assert len(np.unique(np.concatenate([numbers, texts]))) == 13


@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17, 1000])
def test_every_byte_counts(length):
    text = "a" * length
    variants = [text[:i] + "b" + text[i + 1 :] for i in range(length)]
    padded = [text, text + "\0", text + "\0" * 8, text[:-1]]
    assert len(np.unique(signatures("item", variants + padded))) == length + 4


def test_neighbours_do_not_matter():
    values = ["", "a", "12345678", "123456789", "x" * 33, "ü" * 300, "y" * 100_000]
    together = signatures("item", values)
    alone = [signatures("item", [value])[0] for value in values]
    assert together.tolist() == alone
    assert signatures("item", values[::-1]).tolist() == alone[::-1]


def test_one_long_text_costs_only_itself():
    # Were all padded to the longest, this would take 10 GB.
    assert len(
        np.unique(signatures("item", [str(i) for i in range(20_000)] + ["x" * 500_000]))
    ) == (20_001)


def test_empty():
    assert signatures("item", []).shape == (0,)
    assert signatures("item", np.zeros((2, 0), np.int32)).shape == (2, 0)
    assert signatures("item", np.array([], object)).dtype == np.uint64


@pytest.mark.parametrize("values", [[1.5], [None], ["a", 1], [2**64], [-(2**63) - 1], [["a"], [1]]])
def test_what_has_no_exact_name_is_refused(values):
    with pytest.raises(TypeError):
        signatures("item", values)


def test_equal_in_a_fresh_process_with_another_hash_seed():
    program = (
        "from recjax.zoo.features import signatures;"
        "print([int(s) for s in signatures('item', ['7', 'Zürich']).tolist()])"
    )
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": other},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == str(signatures("item", ["7", "Zürich"]).tolist())


def bits_of(values):
    return np.unpackbits(values.view(np.uint8).reshape(len(values), 8), axis=1)


@pytest.mark.parametrize("kind", ["int", "text"])
def test_every_input_bit_moves_half_of_the_output_bits(kind):
    values = np.random.default_rng(0).integers(0, 2**62, 2000)
    sign = lambda values: signatures(
        "item", values if kind == "int" else [v.tobytes() for v in values]
    )
    before = bits_of(sign(values))
    for bit in (0, 1, 17, 40, 61):
        moved = bits_of(sign(values ^ (1 << bit))) != before
        # 2000 coins have a standard deviation of 0.0112; six of them over 320 means.
        assert np.abs(moved.mean(axis=0) - 0.5).max() < 6 * 0.0112


@pytest.mark.parametrize(
    "values",
    [np.arange(100_000), np.arange(100_000) * 1024, [f"user-{i}" for i in range(100_000)]],
    ids=["counted", "multiples", "texts"],
)
def test_buckets_are_uniform(values):
    # Low and high bits alike. Chi-square of 1000 buckets: mean 999, standard deviation 44.7.
    signed = signatures("item", values)
    for bucket in (signed % np.uint64(1000), (signed >> np.uint64(32)) % np.uint64(1000)):
        counts = np.bincount(bucket.astype(int), minlength=1000)
        chi_square = ((counts - 100) ** 2 / 100).sum()
        assert abs(chi_square - 999) < 5 * 44.7


def test_no_collisions_among_a_million():
    # The birthday bound: 1e12 / 2^65 = 3e-8 expected pairs in 64 bits, and 116 pairs in 32 bits.
    signed = signatures("item", np.arange(10**6))
    assert len(np.unique(signed)) == 10**6
    for half in (signed >> np.uint64(32), signed & np.uint64(2**32 - 1)):
        lost = 10**6 - len(np.unique(half))
        assert abs(lost - 116) < 6 * 116**0.5


def test_no_collisions_among_texts_and_slots():
    texts = [f"{i}" for i in range(200_000)]
    signed = np.concatenate([signatures(slot, texts) for slot in ("item", "user")])
    assert len(np.unique(signed)) == 400_000
