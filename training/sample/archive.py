"""Writes `sample/tweets.js`: invented tweets of an invented account, in the official archive's layout.

`python -m training.sample.archive FILE` gives the same bytes each time. @goose_lantern keeps a lighthouse,
a soup pot and a goose; the grammar is small on purpose: a small model learns it in two minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

SEED = 1857
NUM_TWEETS = 3_000
SAMPLE = Path(__file__).with_name("tweets.js")

# `{name}` is replaced by one choice of GRAMMAR["name"], `{name|}` by one choice with a capital letter.
GRAMMAR: dict[str, tuple[str, ...]] = {
    # who lives here
    "who": (
        "the goose", "the ferry captain", "the postmistress", "the fog", "the lamp", "the oldest gull",
        "my cousin Wren", "the soup", "the mainland", "the moon", "the kettle", "the island committee",
    ),
    "person": (
        "the ferry captain", "the postmistress", "my cousin Wren", "the baker", "the tax inspector",
        "the choir", "the lamp inspector", "the new vicar", "a lost sailor", "the last tourist",
    ),
    "thing": (
        "the big soup pot", "the spare lamp", "my second-best hat", "a very long rope", "the good ladle",
        "the weather diary", "one wet boot", "the foghorn", "a jar of buttons", "the rowing boat",
        "a map of the cellar", "the last onion", "my emergency biscuits", "a box of candles",
    ),
    "soup": (
        "leek soup", "pea soup", "onion soup", "potato soup", "fish soup", "seaweed soup",
        "beetroot soup", "turnip soup", "mushroom soup", "cold soup", "mystery soup",
    ),
    "place": (
        "on the roof", "in the lamp room", "by the harbour wall", "in the cellar", "on the long stairs",
        "behind the stove", "under the ferry", "at the post office", "in my left boot",
        "on the north rock", "in the choir stalls",
    ),
    "time": (
        "before breakfast", "at low tide", "after midnight", "on a Tuesday", "every single morning",
        "in a storm", "at sunrise", "without a hat", "at four in the morning", "during supper",
        "in formal dress", "in front of everyone",
    ),
    "number": ("two", "three", "four", "seven", "nine", "eleven", "fourteen", "forty", "two hundred and six"),
    "mood": (
        "calm", "suspicious", "proud", "damp", "poetic", "unusually honest", "thirsty", "brave", "tired",
        "ready for soup", "famous", "haunted",
    ),
    "virtue": ("patience", "courage", "good soup", "silence", "a dry sock", "friendship", "honesty", "salt"),
    # what they do
    "does": (
        "stares at me", "sings hymns", "refuses to move", "asks for more salt", "pretends to be asleep",
        "counts the spoons", "keeps a secret diary", "wants to be paid", "judges my knitting",
        "walks up the stairs backwards", "laughs at the weather forecast", "blames the moon",
        "writes to the newspaper", "hums in a minor key",
    ),
    "did": (
        "stole {thing}", "apologised to {who}", "sat on {thing}", "ate all of the {soup}",
        "hid {thing} {place}", "wrote a poem about {thing}", "married {thing}",
        "voted against the {soup}", "resigned {place}", "shouted at {who} {time}", "fell asleep {place}",
        "saluted {who}", "challenged {who} to a duel", "returned {thing}",
    ),
    "do": (
        "steal {thing}", "apologise to {who}", "teach {who} to swim", "cook {soup} for {person}",
        "hide {thing} {place}", "write a poem about {thing}", "paint {thing} yellow",
        "dance with {who} {time}", "win an argument with {who}", "sleep {place}", "polish {thing} {time}",
        "explain {thing} to {person}", "row to the mainland with {who}",
        "read the weather diary to {who}", "forgive {who}",
    ),
    "dream": (
        "to {do}", "to {do}", "to {do} and never tell {person}", "to open a small restaurant {place}",
        "a lighthouse where nobody {does}", "that one day {who} {does} and I can {do}",
        "a quiet winter, {soup} and nobody who {does}", "to be as {mood} as {who}",
        "to live to one hundred and {do} {time}", "simple: {soup}, {virtue} and {number} geese",
    ),
    # tweets
    "tweet": (
        "{dream_tweet}", "{dream_tweet}", "{goose}", "{goose}", "{goose}", "{soup_tweet}", "{soup_tweet}",
        "{log}", "{log}", "{lamp}", "{lamp}", "{advice}", "{advice}", "{opinion}", "{opinion}",
        "{dialogue}", "{question}", "{visitor}", "{visitor}", "{reply}", "{reply}", "{list}", "{think}",
        "{love}",
    ),
    "dream_tweet": (
        "My dream is {dream}.", "My dream is {dream}. {ending}", "My dream is {dream} {emoji}",
        "My dream is {dream}. {who|} has other plans.", "Last night I dreamed that {who} {did}. {ending}",
    ),
    "goose": (
        "The goose {did} again. {ending}", "The goose {does} {time}. {ending}",
        "Day {number} without an apology from the goose. {ending}",
        "I told the goose to {do}. The goose {did} instead.",
        "The goose {did} and I have never felt so {mood}. {emoji}",
        "Nobody warned me that a goose {does} {time}.", "The goose is {mood} today. {ending}",
    ),
    "soup_tweet": (
        "Tonight it is {soup} &amp; bread. {ending}",
        "{soup|} needs {virtue}, {virtue} &amp; a big ladle.",
        "I made {soup} for {person}. {person|} {did}.", "{soup|} &gt; {soup}. I will not discuss it.",
        "The secret of {soup} is {thing}. {ending}", "I &lt;3 {soup} {time}.",
        "There is {thing} in the {soup}. {ending}", "{soup|} again. {who|} is {mood}.",
    ),
    "log": (
        "Keeper's log: {weather}. {who|} {did}.",
        "Keeper's log: {weather}.\n\n{who|} {does}. I am {mood}.",
        "Keeper's log: {weather}. {number|} ships passed. None of them wanted {soup}.",
        "Keeper's log: nothing to report. {who|} {did}, but {person} does not need to know.",
    ),
    "weather": (
        "fog from the north", "fog, then more fog", "rain in both directions", "a calm sea",
        "wind and gossip", "thunder {time}", "snow {place}", "a clear night", "sideways hail",
        "sunshine, which is suspicious",
    ),
    "lamp": (
        "The lamp turned {number} times tonight. {ending}", "I polished the lamp {time}. {ending}",
        "If you can see the lamp, I am {mood}. If you cannot, {who} {did}.",
        "Someone asked what the lamp is for. It is for {virtue}.",
        "The lamp is lit. {who|} {does}. All is well.",
        "{number|} steps to the lamp room, and {who} {does} on every one of them.",
    ),
    "advice": (
        "Never {do} {time}.", "Advice for young keepers: always {do}, even {time}.",
        "If {who} {does}, offer {soup}.", "You cannot {do} and stay {mood}.",
        "A good keeper needs {virtue}, {thing} &amp; {number} dry socks.",
        "My grandmother always said: {do} first, {do} later.",
    ),
    "opinion": (
        "Unpopular opinion: {who} should {do}.", "I have nothing against {person}, but {who} {does}.",
        "{thing|} is not a musical instrument. {ending}", "People who {do} {time} cannot be trusted.",
        "{virtue|} is just {thing} with better manners.", "All I wanted was {soup}. Instead {who} {did}.",
    ),
    "dialogue": (
        "Me: please do not {do}.\nThe goose: honk.\nMe: that is not an answer.",
        "The baker: did you {do}?\nMe: {who} {did}.\nThe baker: I see.",
        "Me: I feel {mood} today.\nThe kettle: same.", "Me: who {did}?\nEveryone: the goose.",
    ),
    "question": (
        "Can anyone tell me why {who} {does} {time}?", "Is it legal to {do} {time}? {ending}",
        "Does your goose also {do}, or is mine just {mood}?", "Who {did}? I only want to talk.",
        "What pairs well with {soup}? {who|} says {virtue}.",
    ),
    "visitor": (
        "{person|} came by {time} and {did}. {ending}",
        "{person|} asked for directions. I gave them {soup}.",
        "A letter from {person}: please do not {do} again. {ending}",
        "{person|} says that I {do} too loudly.", "{person|} has never seen anybody {do} before. {emoji}",
    ),
    "list": (
        "To do:\n- {do}\n- {do}\n- {soup}", "Things I trust: {thing}, {soup}, {virtue}. In that order.",
        "Lost: {thing}. Last seen {place} with {who}.",
        "For sale: {thing}, only slightly haunted. {ending}",
        "Found {place}: {thing}, {thing} &amp; {who}.",
    ),
    "think": (
        "I think {who} {does} {time}.", "I think that I will {do} {time}.",
        "Sometimes I {do} just to feel {mood}.", "One day I will {do}. Until then, {soup}.",
        "Today I learned that {who} {does} {time}.",
    ),
    "love": (
        "I love the sea, but the sea {did}.", "I love it when {who} {does}.",
        "Happy birthday to {thing}! {emoji}", "Good morning to everyone but {who}. {emoji}",
        "Good night from the lamp room. {who|} {did}.",
    ),
    "reply": (
        "{mention} I would never {do} {time}.", "{mention} my goose {did}, so no.",
        "{mention} have you tried {soup}?", "{mention} {mention} the lamp inspector {does}. {ending}",
        "{mention} thank you! The goose is {mood}.",
    ),
    "ending": (
        "I said nothing.", "I respect it.", "The lamp is still lit.", "Send onions.",
        "We do not talk about it.", "More at high tide.", "I am {mood}.", "Honk.",
        "Nobody was surprised.", "Pray for the ladle.", "The committee has been informed.", "{emoji}",
        "{tag}",
    ),
    "emoji": ("🪿", "🌊", "🍲", "🔦", "😌", "🧦", "🌫️", "🥖", "💛", "🪿🍲"),
    "tag": ("#keeperslog", "#SoupSeason", "#goose", "#foghorn", "#lamplife"),
    "mention": (
        "@wren_at_sea", "@ferry_brine", "@post_pelham", "@island_committee", "@baker_of_skarn",
        "@lamp_inspector_4",
    ),
    # under three plain words: counted as short
    "short": (
        "Honk.", "Soup time.", "Good fog.", "{emoji}", "Again?", "{mention} thank you!", "{mention} no.",
        "{mention} honk {emoji}", "More soup.", "{tag} {tag}", "{mention} {mention} same", "Low tide.",
        "{link}", "Lamp: lit. {link}", "Not again. {link}", "{mention} {link}", "Night, all.",
        "Sorry, {mention}",
    ),
    # other accounts, retweeted
    "retweet": (
        "RT {mention}: The ferry is late {time}. {tag}",
        "RT {mention}: {soup|} at the harbour, bring a bowl! {link}",
        "RT {mention}: Has anyone seen {thing}? Last seen {place}. {link}",
        "RT {mention}: Choir practice is moved, {who} {did}. {tag}",
        "RT {mention}: The goose of @goose_lantern {did}. We have photographs. {link}",
        "RT {mention}: {weather|}. Stay {mood} &amp; keep warm.",
    ),
}  # fmt: skip

_SLOT = re.compile(r"\{(\w+)(\|?)\}")
_LINK_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_MAX_CODE_POINTS = 280
_EPOCH_MS = 1_288_834_974_657  # the first moment that an id can stand for


def main(argv: Sequence[str] | None = None) -> int:
    """Write the archive to the file that is named, by default the shipped one."""
    parser = argparse.ArgumentParser(prog="python -m training.sample.archive", description=__doc__)
    parser.add_argument(
        "file", nargs="?", type=Path, default=SAMPLE, help=f"default: {SAMPLE.name} as shipped"
    )
    args = parser.parse_args(argv)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    args.file.write_bytes(sample_archive().encode())
    return 0


def sample_archive(*, num_tweets: int = NUM_TWEETS, seed: int = SEED) -> str:
    """Return the text of a `tweets.js` of invented tweets, one on a line, unsorted as the official ones are.

    Args:
        num_tweets: 8 % are retweets, 14 % short; no other tweet occurs twice.
        seed: decides everything.
    """
    rng = random.Random(seed)
    moment = datetime(2019, 3, 1, 6, 0, tzinfo=UTC)
    seen: set[str] = set()
    entries: list[str] = []
    while len(entries) < num_tweets:
        text = _text(rng)
        said = text.split(" https://")[0]  # a link does not make it another tweet
        if said in seen or len(text) > _MAX_CODE_POINTS:
            continue
        if _is_ordinary(text):
            seen.add(said)
        moment += timedelta(seconds=rng.randrange(600, 72_000))
        entry = json.dumps({"tweet": _tweet(text, moment, rng)}, ensure_ascii=False, separators=(",", ":"))
        entries.append(entry)
    rng.shuffle(entries)
    return "window.YTD.tweets.part0 = [\n" + ",\n".join(entries) + "\n]\n"


def _text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.08:
        return _expand("{retweet}", rng)
    if kind < 0.22:
        return _expand("{short}", rng)
    text = _expand("{tweet}", rng)
    return text + _expand(" {link}", rng) if rng.random() < 0.12 else text


def _is_ordinary(text: str) -> bool:
    return not text.startswith("RT @") and len(text.split()) > 4


def _expand(template: str, rng: random.Random) -> str:
    def choose(slot: re.Match[str]) -> str:
        name, capital = slot.groups()
        if name == "link":
            return "https://t.co/" + "".join(rng.choice(_LINK_LETTERS) for _ in range(10))
        text = _expand(rng.choice(GRAMMAR[name]), rng)
        return text[0].upper() + text[1:] if capital else text

    return _SLOT.sub(choose, template)


def _tweet(text: str, moment: datetime, rng: random.Random) -> dict[str, object]:
    id_ = str((round(moment.timestamp() * 1000) - _EPOCH_MS << 22) + rng.randrange(1 << 22))
    is_retweet = text.startswith("RT @")
    favorites = 0 if is_retweet else min(rng.randrange(1, 60), rng.randrange(1, 900))
    return {
        "retweeted": False,  # as in official archives, for retweets too
        "entities": {
            "hashtags": [_span(match, "text", match[1]) for match in re.finditer(r"#(\w+)", text)],
            "symbols": [],
            "user_mentions": [
                _span(match, "screen_name", match[1]) for match in re.finditer(r"@(\w+)", text)
            ],
            "urls": [_span(match, "url", match[0]) for match in re.finditer(r"https://\S+", text)],
        },
        "display_text_range": ["0", str(len(text))],
        "favorite_count": str(favorites),
        "id_str": id_,
        "truncated": False,
        "retweet_count": str(rng.randrange(0, 1 + favorites // 3)),
        "id": id_,
        "created_at": moment.strftime("%a %b %d %H:%M:%S +0000 %Y"),
        "favorited": False,
        "full_text": text,
        "lang": "en",
    }


def _span(match: re.Match[str], name: str, value: str) -> dict[str, object]:
    return {name: value, "indices": [str(match.start()), str(match.end())]}


if __name__ == "__main__":
    raise SystemExit(main())
