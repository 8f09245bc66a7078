from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from training.corpus.cleaning import clean
from training.sample.archive import GRAMMAR, SAMPLE, main, sample_archive
from training.tweets.reading import read_tweets


def test_the_script_gives_the_shipped_file_byte_for_byte(tmp_path: Path) -> None:
    assert main([str(tmp_path / "again" / "tweets.js")]) == 0
    assert (tmp_path / "again" / "tweets.js").read_bytes() == SAMPLE.read_bytes()


def test_the_shipped_file_is_large_enough_to_train_on_and_small_enough_to_ship() -> None:
    cleaned = clean(read_tweets([SAMPLE]))
    assert cleaned.counts.downloaded == 3_000
    assert cleaned.counts.retweets > 100
    assert cleaned.counts.short > 200
    assert sum(map(len, cleaned.kept)) > 100_000
    assert sum(text.startswith("My dream is ") for text in cleaned.kept) > 100
    assert max(Counter(text for text in cleaned.kept if "@" not in text).values()) == 1
    assert SAMPLE.stat().st_size < 1_500_000


def test_the_shipped_file_exercises_every_rule() -> None:
    raw = [tweet.text for tweet in read_tweets([SAMPLE]) if not tweet.is_retweet]
    for piece in ("&amp;", "&lt;", "&gt;", "https://t.co/", "\n", "@", "#", "🪿"):
        assert sum(piece in text for text in raw) > 10, piece
    assert max(map(len, raw)) <= 280


def test_the_shipped_file_has_the_fields_of_an_official_archive() -> None:
    records = [entry["tweet"] for entry in json.loads(SAMPLE.read_text("utf-8").split("=", 1)[1])]
    for record in records:
        assert record["retweeted"] is False
        assert record["id_str"] == record["id"]
        assert record["favorite_count"].isdigit()
        for mention in record["entities"]["user_mentions"]:
            start, end = map(int, mention["indices"])
            assert record["full_text"][start:end] == "@" + mention["screen_name"]
    ids = [int(record["id"]) for record in records]
    assert len(set(ids)) == len(ids)
    assert ids != sorted(ids)


def test_the_seed_decides_the_text() -> None:
    assert sample_archive(num_tweets=20, seed=1) == sample_archive(num_tweets=20, seed=1)
    assert sample_archive(num_tweets=20, seed=1) != sample_archive(num_tweets=20, seed=2)


def test_every_rule_of_the_grammar_is_used_and_known() -> None:
    texts = [text for choices in GRAMMAR.values() for text in choices]
    used = {name for text in texts for name in re.findall(r"\{(\w+)\|?\}", text)}
    assert used - {"link"} == set(GRAMMAR) - {"tweet", "short", "retweet"}
