"""The same tweets in every format that can hold them, for the tests of reading."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.tweets.reading import read_tweets
from training.tweets.tweet_records import Tweet

PUBLIC = "https://www.w3.org/ns/activitystreams#Public"


def write(folder: Path, content: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, handle: str | None = None) -> list[Tweet]:
    return list(read_tweets([path], handle=handle))


def texts(path: Path, handle: str | None = None) -> list[str]:
    return [tweet.text for tweet in read(path, handle)]


def archive(records: Sequence[dict[str, Any]], part: int = 0, indent: int | None = None) -> str:
    return f"window.YTD.tweets.part{part} = " + json.dumps(
        [{"tweet": record} for record in records], indent=indent
    )


def json_lines(records: Sequence[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def as_csv(records: Sequence[dict[str, Any]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["id_str", "full_text"], delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def as_pages(records: Sequence[dict[str, Any]]) -> str:
    data = [{"id": record["id_str"], "text": record["full_text"]} for record in records]
    return json_lines([{"data": [tweet], "meta": {"result_count": 1}} for tweet in data])


# Each writes records of `id_str` and `full_text`, which hold any text.
FORMATS: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "official": archive,
    "official-indented": lambda records: archive(records, indent=2) + ";\n",
    "older": lambda records: archive(records).replace(".tweets.", ".tweet."),
    "grailbird": lambda records: "Grailbird.data.tweets_2013_01 = \n" + json.dumps(records),
    "list": json.dumps,
    "list-indented": lambda records: "\n  " + json.dumps(records, indent=1),
    "object": lambda records: json.dumps({"query": "(from:someone)", "tweets": records, "next": None}),
    "lines": json_lines,
    "crlf-lines": lambda records: "\r\n\r\n".join(map(json.dumps, records)) + "\r\n",
    "values-over-lines": lambda records: "\n".join(json.dumps(record, indent=2) for record in records),
    "unescaped": lambda records: json.dumps(records, ensure_ascii=False),
    "csv": as_csv,
    "csv-semicolons": lambda records: as_csv(records, ";"),
    "csv-tabs": lambda records: as_csv(records, "\t"),
    "pages": as_pages,
    "page": lambda records: json.dumps(
        {"data": [{"id": r["id_str"], "text": r["full_text"]} for r in records], "meta": {}}
    ),
}
