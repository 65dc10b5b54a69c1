"""Files as streams of bytes: plain, compressed, or a member of an archive.

What a file is its first bytes tell, not its name. A member of an archive has the path
`ARCHIVE/MEMBER`; where an archive holds but one file of data, the archive's own path is enough.
Everything is read by the calling thread.
"""

import bz2
from collections.abc import Callable, Iterable, Iterator
import contextlib
import functools
import gzip
import io
import lzma
from pathlib import Path, PurePosixPath
import tarfile
from typing import Any, BinaryIO, NamedTuple
import zipfile
import zlib

import pyarrow as pa

from ..errors import DataError
from .arrow_buffers import Decompressed

# What reading a stream raises where the file is damaged.
READ_ERRORS = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    NotImplementedError,  # a method of compression that zipfile does not know
)
TABLE_SUFFIXES = frozenset(
    ".csv .tsv .txt .parquet .pq .feather .arrow .ipc .jsonl .ndjson .json .dat .data".split()
)
_MAGIC = {
    ".gz": b"\x1f\x8b",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ\x00",
    ".lz4": b"\x04\x22\x4d\x18",
}
COMPRESSIONS = frozenset(_MAGIC)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_TAR = slice(257, 262), b"ustar"
_OTHER_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x1f\x9d": "compressed by `compress`",
}
_BUFFER_BYTES = 2**20
_SHOWN = 5


class _Place(NamedTuple):
    """A file on disk, and the member of it that is meant ("" for none in particular)."""

    file: Path
    member: str


def name_of(path: Path) -> str:
    """The file's name without the suffixes of compression."""
    name = path.name
    while Path(name).suffix.lower() in COMPRESSIONS | {".zip"}:
        name = Path(name).stem
    return name


def is_file(path: str | Path) -> bool:
    """True if there is such a file on disk, or such a member of an archive."""
    place = _place(Path(path))
    if place is None:
        return False
    return not place.member or place.member in _members(place.file)


def require_file(path: str | Path) -> None:
    """Raises DataError unless `path` is a file, or a member of an archive."""
    path = Path(path)
    if not is_file(path):
        if (place := _place(path)) is None:
            raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}.")
        held = _shown(_members(place.file))
        raise DataError(f"{path}: {place.file.name} holds no such file; it holds {held}.")


def size_of(path: str | Path) -> int:
    """Bytes of the file on disk."""
    place = _place(Path(path))
    return place.file.stat().st_size if place else 0


def files_in(folder: str | Path) -> list[Path]:
    """The files right inside a folder, on disk or in an archive, sorted."""
    folder = Path(folder)
    if folder.is_dir():
        return sorted(path for path in folder.iterdir() if path.is_file())
    place = _place(folder)
    if place is None or not _is_archive(place.file):
        return []
    inner = PurePosixPath(place.member)
    members = (PurePosixPath(name) for name in _members(place.file))
    return sorted(place.file / name for name in members if name.parent == inner)


def folder_of(path: str | Path, is_wanted: Callable[[str], bool]) -> Path:
    """The folder of the files whose names are wanted: `path`, or one inside the archive `path`.

    Where nothing in the archive is wanted, `path` itself.

    Raises:
      DataError: neither a folder nor an archive, one that is damaged, or one in which several
        folders hold such files.
    """
    path = Path(path)
    if path.is_dir():
        return path
    place = _place(path)
    if place is None:
        raise DataError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}.")
    if place.member:
        return path
    if not _is_archive(place.file):
        raise DataError(f"{path}: not a folder, nor an archive of one.")
    members = [PurePosixPath(name) for name in _members(place.file)]
    folders = sorted({member.parent for member in members if is_wanted(member.name)})
    if len(folders) > 1:
        held = _shown(str(folder) for folder in folders)
        raise DataError(
            f"{path}: several folders hold such files ({held}); choose one: {path}/{folders[-1]}."
        )
    return path / folders[0] if folders else path


def packed(path: Path) -> Path:
    """The file `path`, or the compressed file of that name (`path.gz`) if only that is there."""
    if not is_file(path):
        for suffix in (*_MAGIC, ".zip"):
            if is_file(named := path.with_name(path.name + suffix)):
                return named
    return path


@contextlib.contextmanager
def open_bytes(path: str | Path, notes: list[str] | None = None) -> Iterator[BinaryIO]:
    """Opens a file, or a member of an archive (`FILE.zip/MEMBER`), as what it holds unpacked.

    Compression is .gz, .zst, .bz2, .xz or .lz4, archives are .zip and .tar (compressed or not).
    Reading raises one of READ_ERRORS where the file is damaged. `notes` is told of the member.

    Raises:
      DataError: no such file, a damaged one, an archive of several files of data or of none, one
        that is encrypted, or a format of compression that is not read.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream, _ = stack.enter_context(open_counted(path, notes))
        except READ_ERRORS as error:
            raise DataError(f"{path}: cannot be read: {one_line(error)}") from error
        yield stream


@contextlib.contextmanager
def open_counted(
    path: str | Path, notes: list[str] | None = None
) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """As `open_bytes`, with the file on disk, whose `tell()` says how far reading has come.

    Opening a damaged file, too, may raise one of READ_ERRORS.
    """
    path = Path(path)
    place = _place(path)
    if place is None:
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}.")
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(place.file.open("rb"))
        yield _opened(path, place, raw, stack, notes), raw


def one_line(error: BaseException) -> str:
    """The message of an error, in one line."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return text.splitlines()[0] if text else type(error).__name__


def read_buffer(path: Path, notes: list[str] | None = None) -> pa.Buffer:
    """All that `open_bytes` opens, in memory that Arrow owns.

    A thread of Arrow may outlive an error, and must then hold nothing that is Python's.
    """
    try:
        with open_counted(path, notes) as (stream, raw):
            if stream is raw:
                buffer = pa.allocate_buffer(path.stat().st_size)
                view = memoryview(buffer)
                done = 0
                while done < len(view) and (more := stream.readinto(view[done:])):  # type: ignore
                    done += more
                return buffer.slice(0, done)
            sink = pa.BufferOutputStream()
            while block := stream.read(2**22):
                sink.write(block)
            return sink.getvalue()
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read as a table: {one_line(error)}") from error


def to_arrow(content: bytes) -> pa.Buffer:
    """A copy in memory that Arrow owns."""
    sink = pa.BufferOutputStream()
    sink.write(content)
    return sink.getvalue()


def _place(path: Path) -> _Place | None:
    """Where `path` is; None if no file is there. Whether it has such a member is not looked at."""
    try:
        if path.is_file():
            return _Place(path, "")
        for parent in path.parents:
            if parent.is_file():
                member = path.relative_to(parent).as_posix()
                return _Place(parent, member) if _is_archive(parent) else None
            if parent.exists():
                return None
    except OSError:  # e.g. a name that is too long
        pass
    return None


def _is_archive(file: Path) -> bool:
    with contextlib.ExitStack() as stack:
        try:
            stream = _unpacked(file, file.name, stack.enter_context(file.open("rb")), stack)
            return _head(stream).startswith(_ZIP) or _is_tar(_head(stream))
        except (*READ_ERRORS, DataError):
            return False


def _is_tar(head: bytes) -> bool:
    where, magic = _TAR
    return head[where] == magic


def _head(stream: Any) -> bytes:
    return stream.peek(512)[:512]


def _members(file: Path) -> list[str]:
    """The files of an archive, without what systems and people leave beside data."""
    status = file.stat()
    return list(_members_of(file, status.st_mtime_ns, status.st_size))


# To list a compressed .tar takes reading all of it.
@functools.lru_cache(maxsize=16)
def _members_of(file: Path, _changed: int, _size: int) -> tuple[str, ...]:
    try:
        with contextlib.ExitStack() as stack:
            stream = _unpacked(file, file.name, stack.enter_context(file.open("rb")), stack)
            if _head(stream).startswith(_ZIP):
                archive = stack.enter_context(zipfile.ZipFile(file))
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
            else:
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    names = [info.name for info in tar if info.isfile()]
    except READ_ERRORS as error:
        raise DataError(f"{file}: cannot be read: {one_line(error)}") from error
    paths = [PurePosixPath(name) for name in names]
    return tuple(
        str(path)
        for path in paths
        if "__MACOSX" not in path.parts and not path.name.startswith(".")
    )


def _chosen(path: Path, file: Path) -> str:
    """The one member that holds data."""
    members = _members(file)
    if not members:
        raise DataError(f"{path}: the archive holds no file.")
    tables = [m for m in members if Path(name_of(Path(m))).suffix.lower() in TABLE_SUFFIXES]
    documents = ("readme", "license", "licence")
    tables = [m for m in tables if not PurePosixPath(m).name.lower().startswith(documents)]
    chosen = members if len(members) == 1 else tables or members
    if len(chosen) > 1:
        raise DataError(
            f"{path}: the archive holds {len(chosen)} files ({_shown(chosen)}); choose one: "
            f"{path}/{chosen[0]}."
        )
    return chosen[0]


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "nothing"


def _opened(
    path: Path,
    place: _Place,
    raw: BinaryIO,
    stack: contextlib.ExitStack,
    notes: list[str] | None,
) -> Any:
    stream = _unpacked(path, place.file.name, raw, stack)
    head = _head(stream)
    if not head.startswith(_ZIP) and not _is_tar(head):
        return stream
    is_zip = head.startswith(_ZIP)
    if is_zip and stream is not raw:
        raise DataError(f"{path}: a zip archive that is compressed again; unpack it first.")
    if is_zip and _is_workbook(raw):
        raise DataError(f"{path}: an Excel workbook, which is not read; save the sheet as CSV.")
    member = place.member or _chosen(path, place.file)
    if not place.member and notes is not None:
        notes.append(f"member {member} of {place.file.name}")
    if is_zip:
        inner = _zip_member(path, member, stack.enter_context(zipfile.ZipFile(raw)), stack)
    else:
        inner = _tar_member(path, member, stack.enter_context(_tar(stream)), stack)
    stream = _unpacked(path, PurePosixPath(member).name, inner, stack)
    if _head(stream).startswith(_ZIP) or _is_tar(_head(stream)):
        raise DataError(f"{path}: {member} is an archive in an archive; unpack it first.")
    return stream


def _is_workbook(raw: BinaryIO) -> bool:
    with zipfile.ZipFile(raw) as archive:
        names = archive.namelist()
    raw.seek(0)
    return any(n.startswith(("xl/", "content.xml")) for n in names) and any(
        n in ("[Content_Types].xml", "mimetype") for n in names
    )


def _zip_member(
    path: Path, member: str, archive: zipfile.ZipFile, stack: contextlib.ExitStack
) -> Any:
    by_path = {str(PurePosixPath(info.filename)): info for info in archive.infolist()}
    if member not in by_path or by_path[member].is_dir():
        held = _shown(info.filename for info in archive.infolist())
        raise DataError(f"{path}: the archive holds no file {member!r}; it holds {held}.")
    info = by_path[member]
    if info.flag_bits & 1:
        raise DataError(f"{path}: {member} is encrypted; unpack the archive first.")
    return stack.enter_context(archive.open(info))


def _tar(stream: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|")


def _tar_member(path: Path, member: str, tar: tarfile.TarFile, stack: contextlib.ExitStack) -> Any:
    for info in tar:
        if info.isfile() and str(PurePosixPath(info.name)) == member:
            inner = tar.extractfile(info)
            assert inner is not None
            return stack.enter_context(inner)
    raise DataError(f"{path}: the archive holds no file {member!r}.")


def _unpacked(path: Path, name: str, stream: Any, stack: contextlib.ExitStack) -> Any:
    """The stream without its layers of compression; it can be peeked at."""
    if not hasattr(stream, "peek"):
        stream = io.BufferedReader(stream, _BUFFER_BYTES)
    while True:
        head, suffix = _head(stream), Path(name).suffix.lower()
        for magic, what in _OTHER_ARCHIVES.items():
            if head.startswith(magic):
                raise DataError(f"{path}: {what}, which is not read; unpack it first.")
        codec = next((codec for codec, magic in _MAGIC.items() if head.startswith(magic)), None)
        if codec is None:
            if suffix in COMPRESSIONS and head:
                raise OSError(
                    f"its name ends in {suffix} but it is not compressed so (it starts with "
                    f"{head[:8]!r}); rename it."
                )
            return stream
        stream = io.BufferedReader(_decompressed(codec, stream, stack), _BUFFER_BYTES)
        name = Path(name).stem if suffix in COMPRESSIONS else name


def _decompressed(codec: str, stream: Any, stack: contextlib.ExitStack) -> Any:
    if codec == ".gz":
        return stack.enter_context(gzip.GzipFile(fileobj=stream))
    if codec == ".bz2":
        return stack.enter_context(bz2.BZ2File(stream))
    if codec == ".xz":
        return stack.enter_context(lzma.LZMAFile(stream))
    return Decompressed(stream, {".zst": "zstd", ".lz4": "lz4"}[codec])
