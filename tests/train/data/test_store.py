import gc
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from recjax.train.data.errors import DataError
from recjax.train.data.store import ColumnStore, ColumnType

COLUMNS = {
    "id": ColumnType(np.int32),
    "pair": ColumnType(np.float32, (2,)),
    "time": ColumnType(np.int64),
}


def block(start, rows):
    number = np.arange(start, start + rows)
    return {
        "id": number.astype(np.int32),
        "pair": np.stack([number / 2, -number], axis=1).astype(np.float32),
        "time": number * 10**10,
    }


def open_files(folder):
    """Files without a name that this process still holds in a folder, mapped or open."""
    held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in (*held, *maps) if str(folder) in line]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECJAX_CACHE", str(tmp_path))
    return tmp_path


def test_blocks_come_back_as_columns(cache):
    store = ColumnStore(COLUMNS)
    for start, rows in ((0, 3), (3, 0), (3, 4)):
        store.append(block(start, rows))
    assert len(store) == 7
    columns = store.columns()
    for name, expected in block(0, 7).items():
        assert columns[name].dtype == expected.dtype
        assert np.array_equal(columns[name], expected)
        picked = columns[name][np.array([6, 0, 6])]
        assert np.array_equal(picked, expected[[6, 0, 6]]) and type(picked) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        columns["id"][0] = 1


def test_a_block_may_be_replaced(cache):
    store = ColumnStore(COLUMNS)
    store.append(block(0, 5))
    seen = {start: part["id"].tolist() for start, part in store.blocks(2)}
    assert seen == {0: [0, 1], 2: [2, 3], 4: [4]}
    for start, part in store.blocks(2):
        store.replace(start, {"id": part["id"] * 10})
    columns = store.columns()
    assert columns["id"].tolist() == [0, 10, 20, 30, 40]
    assert columns["time"].tolist() == [0, 10**10, 2 * 10**10, 3 * 10**10, 4 * 10**10]
    with pytest.raises(ValueError, match=r"Rows 4\.\.6 are not all among 5"):
        store.replace(4, {"id": np.zeros(2, np.int32)})


def test_nothing_was_appended(cache):
    columns = ColumnStore(COLUMNS).columns()
    assert {name: value.shape for name, value in columns.items()} == {
        "id": (0,),
        "pair": (0, 2),
        "time": (0,),
    }


def test_the_file_lives_as_long_as_who_reads_it(cache):
    store = ColumnStore(COLUMNS)
    store.append(block(0, 3))
    assert list(cache.iterdir()) == []  # it has no name
    column = store.columns()["time"]
    assert open_files(cache)
    del store
    gc.collect()
    assert column.tolist() == [0, 10**10, 2 * 10**10]
    del column
    gc.collect()
    assert open_files(cache) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": np.zeros(2, np.int64)}, "Column 'id' must be int32 of shape (2,), got int64"),
        ({"pair": np.zeros(2, np.float32)}, "float32 of shape (2, 2), got float32 of shape (2,)"),
        ({"time": np.zeros(3, np.int64)}, "must be int64 of shape (2,), got int64 of shape (3,)"),
        ({"more": np.zeros(2)}, "A block must hold ('id', 'pair', 'time')"),
    ],
)
def test_blocks_must_fit(cache, change, said):
    store = ColumnStore(COLUMNS)
    with pytest.raises(ValueError) as error:
        store.append({**block(0, 2), **change})
    assert said in str(error.value)


def test_no_such_folder(cache, monkeypatch):
    monkeypatch.setenv("RECJAX_CACHE", str(cache / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere: No such file .*; RECJAX_CACHE names"):
        ColumnStore(COLUMNS)


def test_a_full_disk_is_one_line(cache, monkeypatch):
    store = ColumnStore(COLUMNS)
    store.append(block(0, 4))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataError, match="No space left on device after 4 rows; RECJAX_CACHE"):
        store.append(block(4, 1))


def test_a_store_of_a_gigabyte_stays_out_of_memory(cache):
    code = (
        "import resource, numpy as np\n"
        "from recjax.train.data.store import ColumnType, ColumnStore\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "store = ColumnStore({'x': ColumnType(np.float64, (16,))})\n"
        "for _ in range(128): store.append({'x': np.ones((2**16, 16))})\n"
        "for start, part in store.blocks(): store.replace(start, {'x': part['x'] * 2})\n"
        "assert store.columns()['x'][-1, -1] == 2 and len(store) == 2**23\n"
        "print(peak() - before)\n"
    )
    environment = {**os.environ, "RECJAX_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200  # MB; the store is 1,024
