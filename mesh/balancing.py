"""Which endpoint gets a call: the one that serves and has the fewest calls in flight.

gRPC's core could balance, eject and retry by its service config. It is not used for that, because it judges by status
codes alone: sixty calls that their own clients cancelled, or that were invalid, made it eject every endpoint of three
(docs/adr/0012). Here each outcome counts as its row in the error table says, a busy endpoint is not a broken one, and
a second attempt goes where the first one was not.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mesh.channel import Option, Place, place_of
from mesh.deadline import Deadline
from mesh.endpoint import NOT_SERVING, SERVING, UNREACHABLE, Endpoint, EndpointHealth, unreachable
from mesh.errors import MeshError, Overloaded, RetryAdvice
from mesh.opening import Connection, Opener
from mesh.probe import HealthProbe
from mesh.resilience import CircuitBreaker
from mesh.resilience.breaker import Permit
from mesh.resilience.limiter import ABOUT_THE_DEADLINE
from mesh.telemetry import fields, get_logger
from mesh.tls.lookout import Lookout
from mesh.tracing import Span
from mesh.transport import Transport

if TYPE_CHECKING:  # cryptography is not loaded for a hop without TLS
    from mesh.tls.client import ClientTls

log = get_logger(__name__)

UPKEEP_SECONDS = 0.5
LOOK_UP_SECONDS = 5.0
"""How often a name is looked up while all is well; while one of its endpoints does not serve, at every upkeep."""
LINGER_SECONDS = 30.0
"""A serving address that its name no longer gives stays for so long: many resolvers answer with a part of the list."""
RENEW_AGAIN_SECONDS = 5.0
"""A connection that cannot be had with a new certificate is tried again after this; the old one serves meanwhile."""
LONGEST_BUSY_SECONDS = 1.0
"""An endpoint that says it is busy is passed over for at most this long, while another one is not."""


@dataclass(slots=True)
class Attempt:
    """One call on its way to one endpoint."""

    balancer: Balancer
    endpoint: Endpoint
    permit: Permit | None
    span: Span | None = None

    @property
    def traceparent(self) -> str:
        """Its own span's, where it has one."""
        return "" if self.span is None else self.span.traceparent

    def peer_answered(self) -> None:
        """The first frame of a stream arrived."""
        if self.span is not None:
            self.span.tell("first frame")
        if self.permit is not None:
            self.permit.peer_answered()


@dataclass(slots=True)
class _Member:
    """An endpoint with what runs for it."""

    endpoint: Endpoint
    end_watch: Callable[[], Any]
    place: Place
    tls_version: int
    named_at: float = field(default_factory=time.monotonic)
    renew_at: float = 0.0
    end_renewal: Callable[[], Any] | None = None


class Balancer:
    """The endpoints of a hop.

    Args:
        hop, service: its name, and the full gRPC name of what it leads to.
        endpoints: as configured; names are looked up again and again.
        transport: how to wait.
        options: of the channels.
        new_breaker: makes the breaker of an endpoint.
        tls: certificates; None connects in plaintext.
        on_serving: called when an endpoint begins to serve.
    """

    def __init__(  # noqa: PLR0913 - made in one place, by the hop, by names
        self,
        *,
        hop: str,
        service: str,
        endpoints: Sequence[str],
        transport: Transport,
        options: Sequence[Option],
        new_breaker: Callable[[], CircuitBreaker],
        on_serving: Callable[[], None],
        tls: ClientTls | None = None,
    ) -> None:
        self._hop = hop
        self._places = tuple(map(place_of, endpoints))
        self._transport = transport
        self._opener = Opener(transport, options, tls)
        self._new_breaker = new_breaker
        self._probe = HealthProbe(hop, service, transport=transport, on_serving=on_serving)
        self._tls = tls
        self._lookout = Lookout(hop, transport, tls)
        self._members: dict[str, _Member] = {}
        self._leaving: list[Endpoint] = []
        self._unknown_names: dict[str, EndpointHealth] = {
            place.written: EndpointHealth(place.written, since=time.monotonic()) for place in self._places if place.host
        }
        self._looked_up = transport.event()
        self._next_look_up = 0.0
        self._turn = itertools.count()
        self._rng = random.Random()  # noqa: S311 - spreads calls; nothing secret
        self._lock = threading.RLock()  # see mesh.resilience
        self.stopped = False
        self._end_upkeep: Callable[[], Any] | None = None
        self.endpoints: tuple[Endpoint, ...] = ()

    def start(self) -> None:
        """Connect to every address and begin to look names up."""
        if not self._unknown_names:
            self._looked_up.set()
        self._end_upkeep = self._transport.spawn(self._upkeep, f"{self._hop} endpoints")
        for place in self._places:
            if place.address:
                self._join(place, place.address)

    async def stop(self) -> None:
        """End every watch and every call."""
        with self._lock:
            self.stopped = True
            members, self._members, self.endpoints = tuple(self._members.values()), {}, ()
        self._looked_up.set()  # nobody need wait for it now
        for member in members:
            member.endpoint.leave()
        if self._end_upkeep is not None:
            await self._end_upkeep()
        await self._lookout.stop()
        for member in members:
            if member.end_renewal is not None:
                await member.end_renewal()
        for endpoint in (*(member.endpoint for member in members), *self._leaving):
            await self._transport.close_channel(endpoint.channel)
            endpoint.forget()
        for member in members:
            await member.end_watch()

    async def ready(self, deadline: Deadline) -> None:
        """Wait for the first look-up of names where no address serves yet; at once afterwards.

        Raises:
            DeadlineExceeded: it took longer than the caller waits.
        """
        if not self._looked_up.is_set() and not any(endpoint.serving for endpoint in self.endpoints):
            await self._looked_up.wait(deadline.remaining())
            deadline.require()

    @contextmanager
    def attempt(self, tried: Sequence[Endpoint] = (), *, evidence: bool = True) -> Iterator[Attempt]:
        """One call to the best endpoint that is not in ``tried``.

        Args:
            tried: endpoints to leave out.
            evidence: whether the outcome says something about the endpoint's work.

        Raises:
            Unavailable: none serves; with the worker's own reason where it gave one.
        """
        endpoint = self._take(tried, evidence=evidence)
        endpoint.count_call()
        try:
            if not evidence:
                yield Attempt(self, endpoint, None)
                return
            with endpoint.permit(alone=len(self.endpoints) < 2) as permit:
                yield Attempt(self, endpoint, permit)
        except Overloaded as error:
            # A caller in a hurry says nothing about those who have time.
            if error.retry is RetryAdvice.AFTER_DELAY and error.reason not in ABOUT_THE_DEADLINE:
                endpoint.busy_until = time.monotonic() + min(error.retry_after or 0.1, LONGEST_BUSY_SECONDS)
            raise
        finally:
            with self._lock:
                endpoint.in_flight -= 1

    def has_another(self, tried: Sequence[Endpoint], *, idle: bool = False) -> bool:
        """Whether an endpoint that is well is left beside those in ``tried``; ``idle``: one that is not busy either."""
        now = time.monotonic()
        worst = 0 if idle else 1
        ranks = (each.rank(now) for each in self.endpoints if each not in tried)
        return any(rank is not None and rank[0] <= worst for rank in ranks)

    def status(self) -> tuple[EndpointHealth, ...]:
        """Every endpoint now, and every name that leads nowhere."""
        return (*(endpoint.status() for endpoint in self.endpoints), *self._unknown_names.values())

    def servers(self) -> frozenset[tuple[str, float]]:
        """The addresses that serve now, and since when."""
        return frozenset((each.address, each.since) for each in self.endpoints if each.serving)

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _take(self, tried: Sequence[Endpoint], *, evidence: bool) -> Endpoint:
        with self._lock:
            # Equals take turns. A second attempt, or a question that is no work, would put the turns out of step.
            in_turn = evidence and not tried
            endpoint = self._best(tried, next(self._turn) if in_turn else self._rng.randrange(1024))
            if endpoint is None:
                raise self._nobody()
            endpoint.in_flight += 1
            return endpoint

    def _best(self, tried: Sequence[Endpoint], first: int) -> Endpoint | None:
        endpoints = self.endpoints
        now = time.monotonic()
        best, best_rank = None, None
        for offset in range(len(endpoints)):
            endpoint = endpoints[(first + offset) % len(endpoints)]
            rank = None if endpoint in tried else endpoint.rank(now)
            if rank is not None and (best_rank is None or rank < best_rank):
                best, best_rank = endpoint, rank
        return best

    def _nobody(self) -> MeshError:
        told = next((each for each in self.endpoints if each.health == NOT_SERVING), None)
        told = told or next((each for each in self.endpoints if each.diagnosis is not None), None)
        return told.refusal() if told is not None else unreachable(self._hop)

    # -- upkeep -------------------------------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        for turn in itertools.count():
            if self.stopped:
                return
            try:
                await self._look_names_up()
                if self._tls is not None:
                    self._renew_connections(self._tls)
                self._lookout.look((each.endpoint, each.place) for each in tuple(self._members.values()))
                await self._close_what_left()
                if turn % 2:
                    for endpoint in self.endpoints:
                        if endpoint.health == NOT_SERVING:
                            await self._probe.refresh_reason(endpoint)
            except Exception:
                log.exception("the upkeep of a hop's endpoints failed; it goes on", extra=fields(hop=self._hop))
            await self._transport.sleep(UPKEEP_SECONDS)

    async def _look_names_up(self) -> None:
        names = [place for place in self._places if place.host]
        all_well = all(endpoint.serving for endpoint in self.endpoints) and not self._unknown_names
        if not names or (all_well and time.monotonic() < self._next_look_up):
            return
        self._next_look_up = time.monotonic() + LOOK_UP_SECONDS
        for place in names:
            await self._look_up(place)
            if self.endpoints:
                self._looked_up.set()  # a caller need not wait for the other names
        self._looked_up.set()

    async def _look_up(self, place: Place) -> None:
        try:
            addresses = await self._transport.look_up(place.host, place.port)
        except (OSError, UnicodeError) as error:  # a label that is empty or too long cannot be encoded
            # What was found earlier stays: a resolver that is down must not take the hop with it.
            if not any(member.place is place for member in self._members.values()):
                self._not_found(place, error)
            return
        self._unknown_names.pop(place.written, None)
        for address in addresses:
            self._join(place, address)
        self._leave(place, frozenset(addresses))

    def _not_found(self, place: Place, error: OSError | UnicodeError) -> None:
        before = self._unknown_names.get(place.written)
        if before is None or before.health != UNREACHABLE:
            log.warning("an endpoint's name cannot be looked up", extra=fields(hop=self._hop, endpoint=place.written))
            self._unknown_names[place.written] = EndpointHealth(
                place.written,
                health=UNREACHABLE,
                since=time.monotonic(),
                reason=f"The name {place.host} cannot be looked up: {getattr(error, 'strerror', None) or 'no answer'}.",
                reason_code="NAME_NOT_FOUND",
            )

    def _join(self, place: Place, address: str) -> None:
        if self.stopped:
            return  # a look-up that took long came back after the end
        if (member := self._members.get(address)) is not None:
            member.named_at = time.monotonic()
            return
        self._members[address] = self._member(place, address, self._opener.open(place, address))
        self._publish()

    def _member(
        self, place: Place, address: str, connection: Connection, breaker: CircuitBreaker | None = None
    ) -> _Member:
        endpoint = Endpoint(
            hop=self._hop,
            written=place.written,
            address=address,
            channel=connection.channel,
            breaker=breaker or self._new_breaker(),
        )
        end_watch = self._transport.spawn(partial(self._probe.watch, endpoint), f"probe {address}")
        return _Member(endpoint, end_watch, place, connection.tls_version)

    def _renew_connections(self, tls: ClientTls) -> None:
        """Begin to connect anew where certificates have changed. The old connection ends with the last call on it."""
        now_valid = tls.refresh()
        for address, member in tuple(self._members.items()):
            if member.tls_version != now_valid and time.monotonic() >= member.renew_at:
                member.renew_at = time.monotonic() + RENEW_AGAIN_SECONDS
                # Beside the upkeep: a peer that hangs must not hold up the others.
                member.end_renewal = self._transport.spawn(partial(self._renew, address, member), f"renew {address}")

    async def _renew(self, address: str, member: _Member) -> None:
        """Connect anew to one endpoint.

        One that serves is left for one that answers only: a certificate that the peer refuses costs no call meanwhile.
        """
        try:
            connection = self._opener.open(member.place, address)
            is_taken = False
            try:
                is_connected = member.endpoint.health in (SERVING, NOT_SERVING)
                if not is_connected or await self._probe.answers(connection.channel, address):
                    is_taken = self._change_over(address, member, connection)
            finally:
                if not is_taken:
                    await self._transport.close_channel(connection.channel)
        except Exception:
            log.exception("connecting with a new certificate failed; it is tried again", extra=fields(hop=self._hop))

    def _change_over(self, address: str, member: _Member, connection: Connection) -> bool:
        with self._lock:
            if self.stopped or self._members.get(address) is not member:
                return False  # it left meanwhile
            old = member.endpoint
            # It is the same worker, and no better for a new certificate.
            fresh = self._member(member.place, address, connection, old.breaker)
            fresh.named_at = member.named_at
            if old.health in (SERVING, NOT_SERVING):
                fresh.endpoint.heard(old.health, old.failure)
            self._members[address] = fresh
            self._leaving.append(old)
            old.leave()
            self._publish()
            return True

    def _leave(self, place: Place, named: frozenset[str]) -> None:
        lately = time.monotonic() - LINGER_SECONDS
        with self._lock:
            for address, member in tuple(self._members.items()):
                if member.place is not place or address in named:
                    continue
                if member.endpoint.serving and member.named_at > lately:
                    continue
                del self._members[address]
                self._leaving.append(member.endpoint)
                member.endpoint.leave()
                log.info("an endpoint left", extra=fields(hop=self._hop, endpoint=place.written, address=address))
            self._publish()

    def _publish(self) -> None:
        with self._lock:
            if not self.stopped:
                self.endpoints = tuple(each.endpoint for each in self._members.values())

    async def _close_what_left(self) -> None:
        """Close the connections of endpoints that left, once their last call is done."""
        with self._lock:
            done = [endpoint for endpoint in self._leaving if endpoint.in_flight == 0]
        for endpoint in done:
            self._leaving.remove(endpoint)
            await self._transport.close_channel(endpoint.channel)
            endpoint.forget()
