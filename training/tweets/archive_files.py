"""Opens what a person downloaded: a file, an unpacked archive's folder, or a zip, as chunks of UTF-8.

It knows which files of an archive hold tweets. Which format a file has is told in `reading`.
"""

from __future__ import annotations

import codecs
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from training.errors import TweetFileError

CHUNK_BYTES = 64 << 10  # what one chunk becomes fits a processor's cache
MAX_UNZIPPED_BYTES = 16 << 30
MAX_MEMBERS = 500_000
MAX_RATIO = 200  # tweets.js compresses to a tenth to a fortieth
FREE_OF_RATIO_BYTES = 64 << 20

# Not deleted-tweets.js, tweet-headers.js, like.js and so on.
_MEMBERS = (
    re.compile(r"(?:^|/)tweets?(?:-part\d+)?\.js$"),
    re.compile(r"(?:^|/)data/js/tweets/\d{4}_\d{2}\.js$"),  # Grailbird
    re.compile(r"(?:^|/)outbox\.json$"),  # Mastodon
    re.compile(r"(?:^|/)app\.bsky\.feed\.(?:post|repost)/[^/]+\.json$"),  # Bluesky
)
_CSV_MEMBER = re.compile(r"(?:^|/)tweets\.csv$")  # Grailbird has the same tweets as JavaScript
_FOLDER_LEVELS = ("*", "*/*", "*/*/*", "*/*/*/*")
_ZIP_MAGIC = b"PK\x03\x04"
_NO_TEXT = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"7z\xbc\xaf": "7z", b"PK\x05\x06": "empty zip"}
# UTF-32 little-endian starts as UTF-16 does, so it goes first.
_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


class ArchiveFile(NamedTuple):
    """One file with tweets: what errors call it, and its UTF-8, without a byte order mark."""

    name: str
    chunks: Iterator[bytes]


def open_files(path: Path) -> Iterator[ArchiveFile]:
    """Open the files with tweets that are at a path, one after the other.

    Args:
        path: a file of any format, the zip of an archive, or the folder that one was unpacked into.

    Raises:
        TweetFileError: it does not exist or cannot be opened.
        TweetFileError: a folder or zip without tweets, a broken or encrypted zip, or one that would
            unpack to over 16 GiB or to over 200 times its size; while the chunks are iterated, bytes that are
            no text in the encoding that a byte order mark names, where that is not UTF-8.
    """
    if path.is_dir():
        members = _folder_members(path)
        names = tweet_members(members)
        if not names:
            raise TweetFileError(
                f"{path}: is a folder without tweets.js, outbox.json or app.bsky.feed.post/; expected the "
                "folder of an unpacked archive, or a file"
            )
        for name in names:
            yield from open_files(members[name])
        return
    with _open(path) as stream:
        read = _reader(stream, str(path))
        start = read(CHUNK_BYTES)
        if start.startswith(_ZIP_MAGIC):
            yield from _zip_files(stream, path)
            return
        for magic, kind in _NO_TEXT.items():
            if start.startswith(magic):
                raise TweetFileError(f"{path}: is {kind}; expected it unpacked")
        yield ArchiveFile(str(path), _utf8(start, read, str(path)))


def read_members(path: Path, pattern: re.Pattern[str], max_bytes: int) -> Iterator[bytes]:
    """Read the files of an archive's folder or zip whose names match, each at most `max_bytes` long.

    Raises:
        TweetFileError, TweetFileError: as `open_files`; also where a file is longer.
    """
    if path.is_dir():
        for name, file in sorted(_folder_members(path).items()):
            if pattern.search(name):
                with _open(file) as stream:
                    yield _bounded(_reader(stream, str(file)), str(file), max_bytes)
        return
    with _open(path) as stream:
        if _reader(stream, str(path))(4) != _ZIP_MAGIC:
            return
        with _open_zip(stream, path) as archive:
            for name in sorted(filter(pattern.search, archive.namelist())):
                with _open_member(archive, name, path) as member:
                    where = f"{path}/{name}"
                    yield _bounded(_zip_reader(member, where), where, max_bytes)


def tweet_members(names: Iterable[str]) -> list[str]:
    """Return which files of an archive hold tweets, its parts in order.

    >>> tweet_members(["data/tweets-part10.js", "data/tweets-part2.js", "data/tweets.js", "data/like.js"])
    ['data/tweets.js', 'data/tweets-part2.js', 'data/tweets-part10.js']
    """
    names = [name for name in names if not name.startswith("__MACOSX/")]
    found = [name for name in names if any(member.search(name) for member in _MEMBERS)]
    return sorted(found or filter(_CSV_MEMBER.search, names), key=_part_order)


def _part_order(name: str) -> str:
    return re.sub(r"\d+", lambda number: number[0].zfill(20), name.rpartition(".")[0])


def _folder_members(folder: Path) -> dict[str, Path]:
    """Return the files by their names in the folder; links that lead out of it are left out."""
    members: dict[str, Path] = {}
    root = folder.resolve()
    for level in _FOLDER_LEVELS:
        for file in folder.glob(level):
            if len(members) >= MAX_MEMBERS:
                raise TweetFileError(f"{folder}: is a folder of more than {MAX_MEMBERS:,} files")
            if file.is_file() and file.resolve().is_relative_to(root):
                members[file.relative_to(folder).as_posix()] = file
    return members


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TweetFileError(f"{path}: cannot be read ({reason or error})") from error


def _reader(stream: BinaryIO, name: str) -> Callable[[int], bytes]:
    def read(num_bytes: int) -> bytes:
        try:
            return stream.read(num_bytes)
        except OSError as error:
            raise TweetFileError(f"{name}: cannot be read ({error.strerror or error})") from error

    return read


def _zip_files(stream: BinaryIO, path: Path) -> Iterator[ArchiveFile]:
    with _open_zip(stream, path) as archive:
        names = tweet_members(archive.namelist())
        if not names:
            raise TweetFileError(
                f"{path}: a zip without tweets.js, outbox.json or app.bsky.feed.post/; expected an "
                "archive's zip"
            )
        _check_size([archive.getinfo(name) for name in names], path)
        for name in names:
            where = f"{path}/{name}"
            with _open_member(archive, name, path) as member:
                read = _zip_reader(member, where)
                yield ArchiveFile(where, _utf8(read(CHUNK_BYTES), read, where))


def _open_zip(stream: BinaryIO, path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(stream)
    except _ZIP_ERRORS as error:
        raise TweetFileError(f"{path}: broken zip ({error}); download or copy it again") from error
    if len(archive.infolist()) > MAX_MEMBERS:
        raise TweetFileError(f"{path}: a zip of more than {MAX_MEMBERS:,} files")
    return archive


def _open_member(archive: zipfile.ZipFile, name: str, path: Path) -> BinaryIO:
    if archive.getinfo(name).flag_bits & 1:
        raise TweetFileError(f"{path}/{name}: is encrypted; expected a zip without a password")
    try:
        return archive.open(name)  # type: ignore[return-value]  # typed as IO[bytes]
    except _ZIP_ERRORS as error:
        raise TweetFileError(f"{path}/{name}: broken zip ({error})") from error


def _check_size(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Refuse a zip bomb by the sizes it declares; zipfile reads no byte more than those."""
    unzipped = sum(member.file_size for member in members)
    zipped = sum(member.compress_size for member in members)
    if unzipped > MAX_UNZIPPED_BYTES:
        raise TweetFileError(
            f"{path}: its tweets would unpack to {unzipped:,} bytes, expected at most {MAX_UNZIPPED_BYTES:,}"
        )
    if unzipped > FREE_OF_RATIO_BYTES and unzipped > MAX_RATIO * zipped:
        raise TweetFileError(
            f"{path}: its tweets would unpack to {unzipped:,} bytes from {zipped:,}, "
            f"expected at most {MAX_RATIO} times as many"
        )


def _zip_reader(member: BinaryIO, where: str) -> Callable[[int], bytes]:
    def read(num_bytes: int) -> bytes:
        try:
            return member.read(num_bytes)
        except _ZIP_ERRORS as error:
            raise TweetFileError(f"{where}: broken zip ({error})") from error

    return read


def _bounded(read: Callable[[int], bytes], where: str, max_bytes: int) -> bytes:
    content = read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TweetFileError(f"{where}: expected at most {max_bytes:,} bytes")
    return content


def _utf8(start: bytes, read: Callable[[int], bytes], name: str) -> Iterator[bytes]:
    encoding = next((wide for mark, wide in _WIDE.items() if start.startswith(mark)), None)
    chunks = chain([start.removeprefix(codecs.BOM_UTF8)], iter(lambda: read(CHUNK_BYTES), b""))
    if encoding is None:
        yield from filter(None, chunks)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    num_bytes = num_lines = 0
    for chunk in chain(chunks, [b""]):
        try:
            text = decoder.decode(chunk, final=not chunk).encode()
        except UnicodeError as error:
            raise TweetFileError(
                f"{name}: expected {encoding.upper()} as its first bytes say, found others after line "
                f"{num_lines + 1}, near byte {num_bytes:,} ({error})"
            ) from error
        num_bytes += len(chunk)
        num_lines += text.count(b"\n")
        if text:
            yield text
