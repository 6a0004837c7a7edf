"""What the load generator is told and what it tells, and the arithmetic on it: latencies, goodput, recovery."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

GAVE_UP = -1
"""No answer within the plan's patience."""
LOST = -2
"""The connection broke, or none could be made."""
UNSENT = -3
"""No connection was free within the plan's patience: the generator's own limit, not the server's."""

_NAMES = {GAVE_UP: "gave up", LOST: "lost", UNSENT: "unsent"}
_OK = 200
_REFUSED = frozenset({429, 503})


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of load: open where it has a ``rate``, else closed with ``concurrency`` lanes.

    Attributes:
        seconds: how long it lasts; a closed one may end earlier.
        rate: requests a second that become due, at random (Poisson) unless ``even``.
        concurrency: lanes, each of which sends as soon as it has its answer, or when it was told to come back.
        most: a closed phase's last request; 0 means no such.
        obeys: whether a closed phase's lane that is refused waits as long as it was told, and not just a moment.
    """

    name: str
    seconds: float
    rate: float = 0.0
    even: bool = False
    concurrency: int = 0
    most: int = 0
    obeys: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run.

    Attributes:
        url: the server, for example ``http://127.0.0.1:8000``.
        requests: whole HTTP requests as bytes, sent in turn.
        phases: one behind the other, without a pause.
        give_up_seconds: a request without an answer for so long is dropped, its connection closed.
        connections: most that are open at once.
        seed: of the arrivals.
    """

    url: str
    requests: tuple[bytes, ...]
    phases: tuple[Phase, ...]
    give_up_seconds: float
    connections: int = 512
    seed: int = 20_240

    @property
    def host(self) -> str:
        """The server's host."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The server's port."""
        return urlsplit(self.url).port or 80

    def to_json(self) -> bytes:
        """For the generator's process."""
        requests = [base64.b64encode(each).decode() for each in self.requests]
        return json.dumps({**asdict(self), "requests": requests}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Plan:
        """The plan that was written."""
        fields = json.loads(text)
        requests = tuple(base64.b64decode(each) for each in fields.pop("requests"))
        phases = tuple(Phase(**each) for each in fields.pop("phases"))
        return cls(requests=requests, phases=phases, **fields)


class Answer(NamedTuple):
    """How one request ended.

    Attributes:
        phase: the number of the phase in which it became due.
        due: seconds from the run's begin at which it was due.
        latency: seconds from then to its end.
        status: of HTTP, or one of GAVE_UP, LOST, UNSENT.
        retry_after_ms: the advice that a refusal carried; 0 where it carried none.
    """

    phase: int
    due: float
    latency: float
    status: int
    retry_after_ms: float = 0.0

    @property
    def ended(self) -> float:
        """Seconds from the run's begin."""
        return self.due + self.latency


class Span(NamedTuple):
    """When a phase took place, in seconds from the run's begin."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A whole run, request by request.

    Attributes:
        began: ``time.monotonic()`` at its begin, which all processes of a machine share.
        cpu_seconds: what the generator used itself.
        resent: requests sent again because the server had closed an idle connection in that moment.
        latest_send_seconds: longest time by which a request left after it was due.
        most_connections: most that were open at once.
    """

    spans: tuple[Span, ...]
    answers: tuple[Answer, ...]
    began: float
    cpu_seconds: float
    resent: int = 0
    latest_send_seconds: float = 0.0
    most_connections: int = 0

    def to_json(self) -> bytes:
        """For the process that asked."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """The record that was written."""
        fields = json.loads(text)
        spans = tuple(Span(*each) for each in fields.pop("spans"))
        answers = tuple(Answer(*each) for each in fields.pop("answers"))
        return cls(spans=spans, answers=answers, **fields)

    @property
    def cpu_seconds_per_request(self) -> float:
        """What one request cost the generator."""
        return self.cpu_seconds / len(self.answers) if self.answers else math.nan

    def part(self, name: str, *, within: float) -> Part:
        """A phase, seen with the deadline ``within`` seconds that its requests had."""
        number = next(index for index, span in enumerate(self.spans) if span.name == name)
        return Part(
            span=self.spans[number],
            answers=tuple(answer for answer in self.answers if answer.phase == number),
            finished=tuple(
                answer.ended
                for answer in self.answers
                if good(answer, within) and self.spans[number].begin <= answer.ended < self.spans[number].end
            ),
            within=within,
        )


def good(answer: Answer, within: float) -> bool:
    """Whether it was worth the work: served, and in time."""
    return answer.status == _OK and answer.latency <= within


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One phase of a record.

    Attributes:
        answers: to the requests that became due in it.
        finished: when good answers ended in it, whichever phase their requests came from.
        within: the deadline that makes an answer good, in seconds.
    """

    span: Span
    answers: Sequence[Answer]
    finished: Sequence[float]
    within: float

    @property
    def goodput(self) -> float:
        """Good answers per second of the phase."""
        return len(self.finished) / self.span.seconds

    def goodput_slices(self, seconds: float = 0.1) -> list[float]:
        """Good answers per second in each slice of the phase; a last, shorter slice is left out."""
        counts = [0] * int(self.span.seconds / seconds + 1e-9)
        for ended in self.finished:
            index = int((ended - self.span.begin) / seconds)
            if index < len(counts):
                counts[index] += 1
        return [count / seconds for count in counts]

    @property
    def offered(self) -> float:
        """Requests that became due per second."""
        return len(self.answers) / self.span.seconds

    @property
    def accepted(self) -> list[float]:
        """Latencies of the requests that were served, in time or not."""
        return [answer.latency for answer in self.answers if answer.status == _OK]

    @property
    def refused(self) -> list[Answer]:
        """The requests that were told to come back later."""
        return [answer for answer in self.answers if answer.status in _REFUSED]

    @property
    def others(self) -> dict[str, int]:
        """What was neither served nor refused, counted."""
        left = (answer.status for answer in self.answers if answer.status != _OK and answer.status not in _REFUSED)
        return named(Counter(left))

    @property
    def outcomes(self) -> dict[str, int]:
        """All requests, counted by what became of them."""
        return named(Counter(answer.status for answer in self.answers))

    @property
    def settled_after(self) -> float:
        """Seconds from the phase's begin after which every request that became due was served in time."""
        failed = (answer.due for answer in self.answers if not good(answer, self.within))
        return max(max(failed, default=self.span.begin) - self.span.begin, 0.0)

    def share_good_after(self, seconds: float) -> float:
        """Of the requests that became due later than ``seconds`` into the phase, the share served in time."""
        later = [good(answer, self.within) for answer in self.answers if answer.due >= self.span.begin + seconds]
        return sum(later) / len(later) if later else math.nan


def named(counts: Mapping[int, int]) -> dict[str, int]:
    """Counts by status as people read them, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {_NAMES.get(status, str(status)): count for status, count in ordered}


def percentile(values: Iterable[float], share: float) -> float:
    """The nearest-rank quantile; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
