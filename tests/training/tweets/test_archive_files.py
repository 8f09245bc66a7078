from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from support.tweet_files import archive, texts, write

from training.errors import TweetFileError
from training.tweets import archive_files


def record(text: str) -> dict[str, str]:
    return {"full_text": text}


ARCHIVE = {
    "data/tweets-part10.js": archive([record("four")], 3),
    "data/tweets-part1.js": archive([record("two")], 1),
    "data/tweets-part2.js": archive([record("three")], 2),
    "data/tweets.js": archive([record("one")]),
    "data/deleted-tweets.js": archive([record("gone")]),
    "data/tweet-headers.js": archive([record("head")]),
    "data/like.js": "window.YTD.like.part0 = []",
    "__MACOSX/data/tweets.js": "\x00\x05",
    "README.txt": "text",
}


def write_archive(
    path: Path, files: dict[str, str], zipped: bool, compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    if zipped:
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        for name, content in files.items():
            write(path, content, name)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "folder"])
def test_an_archive_gives_its_parts_in_order_and_nothing_else(tmp_path: Path, zipped: bool) -> None:
    path = write_archive(tmp_path / "download", ARCHIVE, zipped)
    assert texts(path) == ["one", "two", "three", "four"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "folder"])
def test_a_grailbird_archive_is_read_from_its_javascript_or_else_its_csv(
    tmp_path: Path, zipped: bool
) -> None:
    files = {
        "data/js/tweets/2013_02.js": 'Grailbird.data.tweets_2013_02 = \n[{"text": "b"}]',
        "data/js/tweets/2013_01.js": 'Grailbird.data.tweets_2013_01 = \n[{"text": "a"}]',
        "tweets.csv": "tweet_id,text\n1,c\n",
    }
    assert texts(write_archive(tmp_path / "both", files, zipped)) == ["a", "b"]
    assert texts(write_archive(tmp_path / "csv", {"tweets.csv": files["tweets.csv"]}, zipped)) == ["c"]


def test_a_folder_that_holds_the_files_themselves_is_read(tmp_path: Path) -> None:
    write(tmp_path, archive([record("one")]), "tweets.js")
    assert texts(tmp_path) == ["one"]


def test_a_folder_of_bluesky_records_is_read(tmp_path: Path) -> None:
    for number, text in enumerate(["one", "two"]):
        post = {"$type": "app.bsky.feed.post", "text": text}
        write(tmp_path, json.dumps(post), f"did/app.bsky.feed.post/{number}.json")
    write(tmp_path, "not read", "did/app.bsky.feed.like/1.json")
    assert texts(tmp_path) == ["one", "two"]


def test_links_that_lead_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, archive([record("secret")]), "elsewhere/tweets.js")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/tweets.js").symlink_to(tmp_path / "elsewhere/tweets.js")
    with pytest.raises(TweetFileError, match=r"a folder without tweets\.js"):
        texts(tmp_path / "archive")


def test_a_zip_and_a_folder_without_tweets_are_no_archives(tmp_path: Path) -> None:
    with pytest.raises(TweetFileError, match=r"a zip without tweets\.js"):
        texts(write_archive(tmp_path / "a.zip", {"data/like.js": ""}, zipped=True))
    with pytest.raises(TweetFileError, match=r"a folder without tweets\.js"):
        texts(tmp_path)


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_zip_that_is_cut_or_changed_anywhere_is_an_error_or_complete(
    tmp_path: Path, compression: int
) -> None:
    whole = write_archive(tmp_path / "whole", ARCHIVE, zipped=True, compression=compression).read_bytes()
    for position in range(4, len(whole), 23):
        changed = bytearray(whole)
        changed[position] ^= 0x5A
        for content in (whole[:position], bytes(changed)):
            try:
                assert texts(write(tmp_path, content, "broken.zip"))
            except TweetFileError as error:
                assert str(error).startswith(str(tmp_path / "broken.zip"))


def test_a_cut_zip_is_named_with_the_remedy(tmp_path: Path) -> None:
    whole = write_archive(tmp_path / "whole", ARCHIVE, zipped=True).read_bytes()
    with pytest.raises(TweetFileError, match=r"cut\.zip: broken zip .* download or copy it again"):
        texts(write(tmp_path, whole[: len(whole) // 2], "cut.zip"))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_files, "FREE_OF_RATIO_BYTES", 1 << 20)
    bomb = write_archive(tmp_path / "bomb.zip", {"tweets.js": " " * (3 << 20)}, zipped=True)
    with pytest.raises(TweetFileError, match=r"3,145,728 bytes from .* at most 200 times"):
        texts(bomb)
    monkeypatch.setattr(archive_files, "MAX_UNZIPPED_BYTES", 1 << 20)
    with pytest.raises(TweetFileError, match="unpack to 3,145,728 bytes, expected at most 1,048,576"):
        texts(bomb)


def test_a_zip_that_unpacks_to_more_than_it_declares_is_broken(tmp_path: Path) -> None:
    content = archive([record("one")]) + " " * 100_000
    path = write_archive(tmp_path / "liar.zip", {"tweets.js": content}, zipped=True)
    size, lie = len(content).to_bytes(4, "little"), (40).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, lie))
    with pytest.raises(TweetFileError, match="broken zip"):
        texts(path)


def test_a_zip_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_files, "MAX_MEMBERS", 5)
    for zipped in (True, False):
        with pytest.raises(TweetFileError, match="more than 5 files"):
            texts(write_archive(tmp_path / str(zipped), ARCHIVE, zipped))


def test_an_encrypted_zip_is_named(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "secret.zip", {"tweets.js": "[]"}, zipped=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    with pytest.raises(TweetFileError, match="is encrypted; expected a zip without a password"):
        texts(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"BZh9rest", "bzip2"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (None, "empty zip"),
    ],
)
def test_what_has_to_be_unpacked_first_is_named(tmp_path: Path, content: bytes | None, kind: str) -> None:
    if content is None:
        file = io.BytesIO()
        zipfile.ZipFile(file, "w").close()
        content = file.getvalue()
    with pytest.raises(TweetFileError, match=f"is {kind}; expected it unpacked"):
        texts(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TweetFileError, match=r"gone\.js: cannot be read \(No such file"):
        texts(tmp_path / "gone.js")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "[]")
    path.chmod(0)
    with pytest.raises(TweetFileError, match="Permission denied"):
        texts(path)


def test_utf_16_that_is_cut_within_a_character_is_named_with_its_line(tmp_path: Path) -> None:
    content = "one goose\ntwo 🪿".encode("utf-16")
    with pytest.raises(TweetFileError, match=r"expected UTF-16 .* line"):
        texts(write(tmp_path, content[:-2]))
