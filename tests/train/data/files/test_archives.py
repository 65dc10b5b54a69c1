import gzip
import tarfile
import zipfile

import numpy as np
import pytest

from published import PUBLISHED
from recjax.train.data import files
from recjax.train.data.errors import DataError
from recjax.train.data.files import read_table
from recjax.train.data.sources import open_source
from tables_of_text import COMPRESSED, CSV, check, refused, tarred, write, zipped


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compressed(tmp_path, suffix):
    packed = COMPRESSED[suffix](CSV.encode())
    check(read_table(write(tmp_path, packed, f"log.csv{suffix}")))
    check(read_table(write(tmp_path, packed, "log.csv")))
    check(read_table(write(tmp_path, packed, "log")))
    # Two of them joined end to end are one.
    half = CSV.encode()[:100], CSV.encode()[100:]
    check(read_table(write(tmp_path, b"".join(map(COMPRESSED[suffix], half)), f"two{suffix}")))
    with files.open_bytes(tmp_path / f"log.csv{suffix}") as stream:
        assert stream.readline() == b"user_id,item_id,timestamp\n"
        assert stream.read() == CSV.encode().split(b"\n", 1)[1]


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_damaged_compression(tmp_path, suffix):
    content = "".join(f"{i % 50},{i * 7919 % 613}\n" for i in range(20_000)).encode()
    packed = COMPRESSED[suffix](b"user_id,item_id\n" + content)
    path = write(tmp_path, packed[: len(packed) // 2], f"log.csv{suffix}")
    refused(path, f"{path}: cannot be read")
    refused(
        write(tmp_path, CSV, f"plain.csv{suffix}"), "cannot be read as a table: ", "b'user_id,'"
    )


def test_zip(tmp_path):
    path = write(tmp_path, zipped(**{"a/log.csv": CSV, "__MACOSX/a/._log.csv": "x"}), "log.zip")
    check(read_table(path), ["member a/log.csv of log.zip"])
    check(read_table(path / "a" / "log.csv"))
    check(read_table(f"{path}/a/log.csv"))
    refused(path / "none.csv", "log.zip holds no such file; it holds a/log.csv")
    members = {"README.txt": "x", "log.csv.gz": gzip.compress(CSV.encode())}
    check(read_table(write(tmp_path, zipped(**members), "log")), ["member log.csv.gz of log"])


def test_zip_of_several_files(tmp_path):
    path = write(tmp_path, zipped(**{"one.csv": CSV, "b/two.csv": CSV}), "log.zip")
    refused(path, "holds 2 files (one.csv, b/two.csv); choose one", f"{path}/one.csv")
    check(read_table(path / "b/two.csv"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_tar(tmp_path, mode):
    path = write(tmp_path, tarred(mode, **{"a/log.csv": CSV}), "log.tar.gz" if ":" in mode else "t")
    if mode == "w:xz":
        path = path.rename(tmp_path / "log.tar.xz")
    check(read_table(path), [f"member a/log.csv of {path.name}"])
    several = tarred(mode, **{"one.csv": CSV, "two.csv": CSV})
    path.write_bytes(several)
    refused(path, "holds 2 files (one.csv, two.csv)")
    check(read_table(path / "two.csv"))


def zip_folder(folder, path, inside=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{inside}{file.name}")
    return path


def tar_folder(folder, path, inside=""):
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"{inside}{file.name}")
    return path


# The folders that some sources take: all files of one, as an archive or each compressed.
FOLDERS = [name for name, source in PUBLISHED.items() if source.kind in ("alibaba", "amazon")]
FOLDERS += [name for name, source in PUBLISHED.items() if source.kind == "movielens"]


@pytest.mark.parametrize("inside", ["", "a/b/"])
@pytest.mark.parametrize("archive", [zip_folder, tar_folder])
@pytest.mark.parametrize("name", FOLDERS)
def test_published_folders_as_archives(tmp_path, name, archive, inside):
    (tmp_path / "plain").mkdir()
    plain = PUBLISHED[name].write(tmp_path / "plain")
    kind = plain.partition(":")[0]
    path = archive(tmp_path / "plain", tmp_path / "packed", inside)
    one, two = open_source(plain), open_source(f"{kind}:{path}")
    assert same(one, two)
    assert same(one, open_source(f"{kind}:{path}/{inside}".rstrip("/")))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
@pytest.mark.parametrize("name", FOLDERS)
def test_published_folders_of_compressed_files(tmp_path, name, suffix):
    plain = PUBLISHED[name].write(tmp_path)
    one = open_source(plain)
    for path in list(tmp_path.iterdir()):
        if path.suffix != ".gz":
            content = path.read_bytes()
            packed = zipped(**{path.name: content}) if suffix == ".zip" else None
            path.with_name(path.name + suffix).write_bytes(packed or COMPRESSED[suffix](content))
            path.unlink()
    assert same(one, open_source(plain))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
def test_published_files_compressed(tmp_path, suffix):
    source = PUBLISHED["taobao"]
    one = open_source(source.write(tmp_path))
    content = (tmp_path / source.main).read_bytes()
    packed = zipped(**{source.main: content}) if suffix == ".zip" else COMPRESSED[suffix](content)
    path = write(tmp_path, packed, f"{source.main}{suffix}")
    assert same(one, open_source(f"taobao:{path}"))
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
        open_source(f"taobao:{path}", on_bad_row="skip")


def same(one, two):
    """Whether two data sets hold the same events and targets."""
    arrays = lambda data: [
        data.log.offsets,
        data.log.item,
        data.log.time,
        *data.log.items.values(),
        *data.log.users.values(),
        data.train.candidate,
        data.test.candidate,
    ]
    pairs = zip(arrays(one), arrays(two), strict=True)
    return one.schema == two.schema and all(np.array_equal(*pair) for pair in pairs)


def test_an_archive_of_two_folders_of_the_kind(tmp_path):
    (tmp_path / "plain").mkdir()
    source = PUBLISHED["movielens 100k"]
    source.write(tmp_path / "plain")
    files_ = {
        f"{at}/{path.name}": path.read_bytes()
        for at in "ab"
        for path in (tmp_path / "plain").iterdir()
    }
    path = write(tmp_path, zipped(**files_), "two.zip")
    with pytest.raises(DataError, match=r"several folders hold such files \(a, b\); choose one"):
        open_source(f"movielens:{path}")
    assert open_source(f"movielens:{path}/a").facts["events"] > 0


def test_the_two_archives_of_aliccp(tmp_path):
    (tmp_path / "plain").mkdir()
    names = ("sample_skeleton", "common_features")
    for part in ("train", "test"):
        lines = [f"{part}{n},1,101\x02{n % 3}\x031.0\n" for n in range(20)]
        (tmp_path / "plain" / f"common_features_{part}.csv").write_text("".join(lines))
        lines = [f"{n},{n % 2},0,{part}{n},1,205\x02{n % 4}\x031.0\n" for n in range(20)]
        (tmp_path / "plain" / f"sample_skeleton_{part}.csv").write_text("".join(lines))
    one = open_source(f"aliccp:{tmp_path / 'plain'}")
    (tmp_path / "published").mkdir()
    for part in ("train", "test"):
        with tarfile.open(tmp_path / "published" / f"sample_{part}.tar.gz", "w:gz") as archive:
            for name in names:
                file = f"{name}_{part}.csv"
                archive.add(tmp_path / "plain" / file, file)
    for where in (
        tmp_path / "published",
        zip_folder(tmp_path / "plain", tmp_path / "all.zip", "x/"),
    ):
        two = open_source(f"aliccp:{where}")
        assert one.schema == two.schema
        assert np.array_equal(one.train.candidate, two.train.candidate)
        assert np.array_equal(one.train.label["click"], two.train.label["click"])


def test_the_archive_of_criteo(tmp_path):
    line = "\t".join(["1", *["2"] * 13, *["68fd1e64"] * 26]) + "\n"
    path = write(
        tmp_path, tarred("w:gz", **{"train.txt": line * 20, "test.txt": "x"}), "dac.tar.gz"
    )
    with pytest.raises(DataError, match="holds 2 files .train.txt, test.txt.; choose one"):
        open_source(f"criteo:{path}")
    assert open_source(f"criteo:{path}/train.txt").facts["lines"] == 20


def test_a_file_of_reviews_alone(tmp_path):
    source = PUBLISHED["amazon 2014"]
    one = open_source(source.write(tmp_path))
    two = open_source(f"amazon:{tmp_path / source.main}")
    assert np.array_equal(one.log.item, two.log.item) and two.facts == {
        name: count for name, count in one.facts.items() if name != "items without metadata"
    }
    assert set(two.log.items) == {"item"}
