"""Every source of files, its files damaged in five ways: each has a defined end."""

import numpy as np
import pytest

from published import EVENTS, PUBLISHED, write
from recjax.train.data.errors import DataError
from recjax.train.data.protocol import Protocol
from recjax.train.data.sources import SOURCES, open_source

FILES = [(name, file) for name, source in PUBLISHED.items() for file in source.files]

# Files whose first value is a number, in an encoding that knows every byte.
LATIN_1 = {"u.item": "movie", "u.user": "user", "movies.dat": "movie", "users.dat": "user"}


def snapshot(dataset, *, facts=True):
    """All that a data set holds, to be compared."""
    log = dataset.log
    columns = {
        f"{group}.{name}": column
        for group in ("event", "items", "users")
        for name, column in getattr(log, group).items()
    }
    arrays = {"offsets": log.offsets, "item": log.item, "time": log.time} | columns
    for part in ("train", "validation", "test"):
        requests = getattr(dataset, part)
        arrays |= {f"{part}.{name}": getattr(requests, name) for name in ("user", "cut", "time")}
        arrays |= {
            f"{part}.candidate": requests.candidate,
            f"{part}.label": requests.label["click"],
        }
    result = {name: (array.dtype, array.tolist()) for name, array in arrays.items()}
    result["schema"] = dataset.schema
    if facts:
        result["facts"] = {k: v for k, v in dataset.facts.items() if "skipped" not in k}
    return result


def stories(dataset):
    """Users' events as times and known items, whatever the users' order."""
    log = dataset.log
    rows = log.items["item"][log.item].tolist()
    times = log.time.tolist()
    ends = log.offsets.tolist()
    return sorted(
        list(zip(times[start:end], rows[start:end], strict=True))
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    )


def with_line(source, file, line):
    """The file's lines with one more after its first."""
    lines = source.files[file]
    return {file.replace(".", "__"): [lines[0], line, *lines[1:]]}


def stops(source, file, reason, on_bad_row="stop"):
    with pytest.raises(DataError) as caught:
        open_source(source, on_bad_row=on_bad_row)
    message = str(caught.value)
    assert f"{file}: {reason}" in message
    assert len(message.splitlines()) == 1 and len(message) < 500


def test_every_source_of_files_is_here():
    kinds = {source.partition(":")[0] for source in SOURCES if "[" not in source}
    # Their own tests damage these.
    labelled = {"criteo", "aliccp", "libffm", "libsvm", "impressions"}
    assert kinds - labelled == {source.kind for source in PUBLISHED.values()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_undamaged(tmp_path, name):
    dataset = open_source(PUBLISHED[name].write(tmp_path))
    sizes = np.bincount([user for user, _, _ in EVENTS])[1:]
    assert sorted(dataset.log.lengths().tolist()) == sorted(sizes.tolist())
    assert "rows skipped" not in dataset.facts


@pytest.mark.parametrize(("name", "file"), FILES)
def test_truncated_in_the_middle_of_a_line(tmp_path, name, file):
    source = PUBLISHED[name]
    lines = source.files[file]
    where = source.write(tmp_path)
    write(tmp_path / file, [*lines[:-1], lines[-1][:3]], end=b"")
    stops(where, file, f"line {len(lines)}: ")
    if file in source.form_of_others:
        reason = f"holds no row that can be read ({file}: line 3: "
        stops(where, "u.item", reason, on_bad_row="skip")
        return
    dataset = open_source(where, on_bad_row="skip")
    assert (
        dataset.facts["first row skipped"]
        .removeprefix(f"{file}: ")
        .startswith(f"line {len(lines)}: ")
    )
    if file == source.main:
        assert dataset.facts["rows skipped"] == 1
        write(tmp_path / file, lines[:-1])
        assert snapshot(open_source(where)) == snapshot(dataset)


@pytest.mark.parametrize(("name", "file"), [pair for pair in FILES if pair[1].endswith(".gz")])
def test_truncated_stream(tmp_path, name, file):
    where = PUBLISHED[name].write(tmp_path)
    packed = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(packed[: len(packed) // 2])
    for on_bad_row in ("stop", "skip"):
        with pytest.raises(DataError, match="Compressed file ended|truncated") as caught:
            open_source(where, on_bad_row=on_bad_row)
        assert f"{file}: cannot be read" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_reordered(tmp_path, name):
    source = PUBLISHED[name]
    one = open_source(source.write(tmp_path))
    start = int(source.header)
    changed = {
        file.replace(".", "__"): lines[:start] + lines[start:][::-1]
        for file, lines in source.files.items()
    }
    two = open_source(source.write(tmp_path, **changed))
    assert snapshot(one) == snapshot(two)


@pytest.mark.parametrize(("name", "file"), FILES)
def test_duplicated(tmp_path, name, file):
    source = PUBLISHED[name]
    before = open_source(source.write(tmp_path))
    where = source.write(tmp_path, **with_line(source, file, source.files[file][1]))
    after = open_source(where)
    assert snapshot(after, facts=False) == snapshot(before, facts=False)
    repeated = {
        name: count - before.facts.get(name, 0)
        for name, count in after.facts.items()
        if count != before.facts.get(name)
    }
    known = {"alibaba": "repeated events left out", "amazon": "repeated reviews left out"}
    left_out = known.get(source.kind, "duplicate rows dropped")
    assert repeated == ({left_out: 1} if file == source.main else {})


def test_repeats_that_are_kept_happened_twice(tmp_path):
    """For all sources whose rows may repeat each other."""
    keep = Protocol(duplicates="keep")
    for name in ("events", "taobao", "movielens 100k", "movielens 1m", "movielens 20m"):
        source = PUBLISHED[name]
        (folder := tmp_path / name).mkdir()
        before = open_source(source.write(folder))
        where = source.write(folder, **with_line(source, source.main, source.files[source.main][1]))
        after = open_source(where, protocol=keep)
        assert after.facts["events"] == before.facts["events"] + 1
        assert [len(set(story)) for story in stories(after)] == [
            len(story) for story in stories(before)
        ]


@pytest.mark.parametrize("damage", ["encoding", "type"])
@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_wrong_encoding_and_letters_for_a_number(tmp_path, name, file, damage):
    source = PUBLISHED[name]
    clean = open_source(source.write(tmp_path))
    line, reason = source.strays[file]
    if damage == "encoding":
        line = b"\xff\xfe" + source.files[file][1].encode()
        reason = "is not UTF-8 text"
        if file in LATIN_1:
            # Any bytes are letters there.
            reason = f"{LATIN_1[file]} must be a whole number, got 'ÿþ"
    where = source.write(tmp_path, **with_line(source, file, line))
    if file == "u.genre" and damage == "encoding":
        # So are these, and name a genre.
        assert open_source(where).log.items["genre"].shape == clean.log.items["genre"].shape
        return
    stops(where, file, f"line 2: {reason}")
    dataset = open_source(where, on_bad_row="skip")
    assert snapshot(dataset) == snapshot(clean)
    assert dataset.facts["rows skipped"] == 1
    assert f"line 2: {reason}" in dataset.facts["first row skipped"]
