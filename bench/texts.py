"""Random texts that are the same in every run: ordinary words in no order, so that nothing can be cached or guessed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

_VOCABULARY = """
ability access account across action address advice after again agree air allow almost alone among amount animal
answer apple area argue around arrive article ask attack autumn average avoid balance bank base battle beach bear
beauty become before begin behind believe benefit between beyond bicycle bird blood board body book border bottle
branch bread break bridge bright bring brother budget build business button buy camera capital carbon careful carry
castle cause cell center century chair chance change chapter charge cheap check child choice church circle city
claim class clean climate clock close cloud coast coffee cold collect college color common company compare complete
computer concern condition connect consider contain control cook copy corner cost cotton count country course court
cover create credit crop cross culture current customer dance danger data daughter debate decade decide deep defense
degree deliver demand design detail develop device dinner direct disease distance doctor document dollar door double
draw dream drive during early earth east economy education effect effort electric element energy engine enjoy enough
enter equal escape evening event evidence example exchange exercise expect explain factor family farm feature field
figure film final finger finish fire flight floor flow flower follow forest forget form forward freedom fresh friend
front fruit function future garden gather general glass government ground group growth guard guess guide half hand
happen harbor health heart heavy history hospital hotel hour house human hundred idea image imagine impact improve
include increase industry influence inside instead interest island issue join journey judge jump keep kitchen
knowledge language large later law leader learn leave lecture letter level library light limit listen machine major
manage market material matter measure medicine meeting member memory message metal method middle minute mirror model
modern moment money month morning mountain music nation nature network never night north notice number object ocean
offer office often operate opinion orange order organ other paint paper parent part partner pattern people perform
period person phone picture place plan plant player policy position power prepare present price private problem
process product program project protect prove public purpose quality question quick radio reach ready reason receive
record reduce region remember report require research result return river road rock safety sample scene school
science season second section security sentence series service seven share short signal simple single skill sleep
small social source south space speak special spring staff station stone storm street strong student study subject
success summer supply surface system table teach theory thousand tiger together tomorrow total tower track trade
travel treat truth twelve under union value vessel victory village visit voice volume wait warm water weather window
winter without wonder world yellow yesterday young
"""
_WORDS = _VOCABULARY.split()

SEED = 20_240
_MOST_WORDS = 400


class Length(Enum):
    """How many words a text has: from, to, both included."""

    SHORT = (5, 25)
    LONG = (80, 180)
    QUERY = (5, 12)
    PASSAGE = (30, 100)


@dataclass(frozen=True, slots=True)
class Ranking:
    """A query and the documents to rank for it."""

    query: str
    documents: tuple[str, ...]


def random_texts(count: int, length: Length, *, seed: int = SEED) -> list[str]:
    """``count`` texts; the same for the same arguments on every machine and Python."""
    source = random.Random(f"{seed}:{length.name}")
    return [_text(source, length) for _ in range(count)]


def random_rankings(count: int, documents: int, *, seed: int = SEED) -> list[Ranking]:
    """``count`` queries, each with ``documents`` passages. A third of them share words with the query, so that
    their scores differ and have an order worth comparing.
    """
    source = random.Random(f"{seed}:rankings")
    rankings = []
    for _ in range(count):
        query = _text(source, Length.QUERY)
        passages = [_text(source, Length.PASSAGE) for _ in range(documents)]
        for position in range(0, documents, 3):
            shared = source.sample(query.split(), source.randint(1, len(query.split())))
            passages[position] = f"{' '.join(shared)} {passages[position]}"
        rankings.append(Ranking(query, tuple(passages)))
    return rankings


def texts_of_all_lengths(count: int, *, seed: int = SEED) -> Iterator[str]:
    """``count`` texts of 1 to 400 words, short ones more often than long ones: every length in tokens occurs, up to
    what a model with 512 tokens reads.
    """
    source = random.Random(f"{seed}:all lengths")
    for _ in range(count):
        words = round(math.exp(source.uniform(0.0, math.log(_MOST_WORDS))))
        yield " ".join(source.choices(_WORDS, k=words))


def _text(source: random.Random, length: Length) -> str:
    fewest, most = length.value
    return " ".join(source.choices(_WORDS, k=source.randint(fewest, most)))
