"""Files of tables and columns: any name in any script, on any file system."""

import numpy as np
import pytest

from recjax.train.data.event_log import EventLog
from recjax.zoo.features import Table
from recjax.zoo.features.file_names import file_of

NAMES = (
    "item",
    "Item",
    "ITEM",
    "item=",
    "a/b",
    "a b",
    "a%2Fb",
    "..",
    "用户最近三十天内在移动端浏览商品详情页的平均停留时长分档",
    "用" * 200,
    "用" * 199 + "户",
    "👩‍👩‍👧" * 40,
    "x" * 1000,
    "x" * 999 + "y",
    "X" * 200,
)


def test_every_name_has_a_file_of_its_own(tmp_path):
    """Also where a file system knows no case."""
    files = [file_of(tmp_path, name, before="items.").name for name in NAMES]
    assert len({name.lower() for name in files}) == len(NAMES)
    for name, file in zip(NAMES, files, strict=True):
        assert len(file.encode()) < 160 and "/" not in file
        (tmp_path / file).write_bytes(b"")
        assert file_of(tmp_path, name, before="items.") == tmp_path / file
        assert Table(name=name, rows=3, dim=1).name == name


def test_short_names_are_as_they_were(tmp_path):
    assert file_of(tmp_path, "brand_id").name == "brand_id.npy"
    assert file_of(tmp_path, "a b/c", before="items.").name == "items.a%20b%2Fc.npy"


@pytest.mark.parametrize("name", ["Brand", "类" * 20])
def test_files_of_earlier_versions_are_found(tmp_path, name):
    from urllib.parse import quote

    older = tmp_path / f"{quote(name)}.npy"
    assert file_of(tmp_path, name) != older
    older.write_bytes(b"")
    assert file_of(tmp_path, name) == older
    (tmp_path / f"{quote(name.swapcase())}.npy").write_bytes(b"")
    assert file_of(tmp_path, name) == older


def test_a_small_letter_is_not_taken_for_a_capital(tmp_path):
    """`brand.npy` is no file of `Brand`, even where the file system would open it."""
    (tmp_path / "brand.npy").write_bytes(b"")
    assert file_of(tmp_path, "Brand").name.startswith("Brand=")


def test_a_log_with_columns_of_any_name_is_saved_and_loaded(tmp_path):
    log = EventLog(
        offsets=np.array([0, 1]),
        item=np.zeros(1, np.int32),
        time=np.zeros(1, np.int64),
        event={name: np.array([i], np.int32) for i, name in enumerate(NAMES)},
        items={name: np.array([-i], np.int32) for i, name in enumerate(NAMES)},
        users={},
    )
    log.save(tmp_path / "log")
    again = EventLog.load(tmp_path / "log")
    assert {name: int(x[0]) for name, x in again.event.items()} == {
        name: i for i, name in enumerate(NAMES)
    }
    assert int(again.items["用" * 200][0]) == -NAMES.index("用" * 200)
