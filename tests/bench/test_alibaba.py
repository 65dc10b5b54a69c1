"""The Alibaba sample, in a few lines of its publisher's format."""

import gzip

from recjax.bench import alibaba

EDGES = """\
7\t100\t1\t20190616
7\t200\t3\t20190616
7\t100\t4\t20190617
8\t100\t2\t20190618
"""
ITEMS = "100\t33\t50002833\t0\t21.8\n"


def test_first_events_with_their_category_and_day(tmp_path):
    assert not alibaba.is_there(tmp_path)
    (tmp_path / "ecomm_edge_train.txt").write_text(EDGES)
    (tmp_path / "ecomm_item_feature.txt").write_text(ITEMS)
    assert alibaba.is_there(tmp_path)
    out = alibaba.write_events(tmp_path, tmp_path / "made" / "events.csv.gz")
    day = 24 * 3600
    first = 18_063 * day  # 16 June 2019, in days since 1970
    assert gzip.open(out, "rt").read().splitlines() == [
        "user_id,item_id,category_id,behavior,timestamp",
        f"7,100,50002833,click,{first}",
        f"7,200,,cart,{first}",
        f"8,100,50002833,favourite,{first + 2 * day}",
    ]
