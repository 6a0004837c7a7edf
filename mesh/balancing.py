"""Which endpoint gets a call: the one that serves and has the fewest calls in flight.

gRPC's core could balance, eject and retry by its service config. It is not used for that, because it judges by status
codes alone: sixty calls that their own clients cancelled, or that were invalid, made it eject every endpoint of three
(docs/adr/0012). Here each outcome counts as its row in the error table says, a busy endpoint is not a broken one, and
a second attempt goes where the first one was not.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mesh.channel import Option, Place, place_of
from mesh.deadline import Deadline
from mesh.endpoint import NOT_SERVING, UNREACHABLE, Endpoint, EndpointHealth, unreachable
from mesh.errors import MeshError, Overloaded, RetryAdvice
from mesh.probe import HealthProbe
from mesh.resilience import CircuitBreaker
from mesh.resilience.breaker import Permit
from mesh.telemetry import fields, get_logger
from mesh.transport import Transport

log = get_logger(__name__)

UPKEEP_SECONDS = 0.5
LOOK_UP_SECONDS = 5.0
"""How often a name is looked up while all is well; while one of its endpoints does not serve, at every upkeep."""
LINGER_SECONDS = 30.0
"""A serving address that its name no longer gives stays for so long: many resolvers answer with a part of the list."""
LONGEST_BUSY_SECONDS = 1.0
"""An endpoint that says it is busy is passed over for at most this long, while another one is not."""


@dataclass(slots=True)
class Attempt:
    """One call on its way to one endpoint."""

    endpoint: Endpoint
    permit: Permit | None

    def peer_answered(self) -> None:
        """The first frame of a stream arrived."""
        if self.permit is not None:
            self.permit.peer_answered()


@dataclass(slots=True)
class _Member:
    """An endpoint with what runs for it."""

    endpoint: Endpoint
    end_watch: Callable[[], Any]
    place: Place
    named_at: float = field(default_factory=time.monotonic)


class Balancer:
    """The endpoints of a hop.

    Args:
        hop: its name.
        service: full gRPC name.
        endpoints: as configured; names are looked up again and again.
        transport: how to wait.
        options: of the channels.
        new_breaker: makes the breaker of an endpoint.
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
    ) -> None:
        self._hop = hop
        self._places = tuple(map(place_of, endpoints))
        self._transport = transport
        self._options = tuple(options)
        self._new_breaker = new_breaker
        self._probe = HealthProbe(hop, service, transport=transport, on_serving=on_serving)
        self._members: dict[str, _Member] = {}
        self._leaving: list[Endpoint] = []
        self._unknown_names: dict[str, EndpointHealth] = {
            place.written: EndpointHealth(place.written, since=time.monotonic()) for place in self._places if place.host
        }
        self._looked_up = transport.event()
        self._next_look_up = 0.0
        self._turn = itertools.count()
        self._lock = threading.Lock()
        self._end_upkeep: Callable[[], Any] | None = None
        self.endpoints: tuple[Endpoint, ...] = ()

    def start(self) -> None:
        """Connect to every address and begin to look names up."""
        for place in self._places:
            if place.address:
                self._join(place, place.address)
        if not self._unknown_names:
            self._looked_up.set()
        self._end_upkeep = self._transport.spawn(self._upkeep, f"{self._hop} endpoints")

    async def stop(self) -> None:
        """End every watch and every call."""
        members, self._members, self.endpoints = tuple(self._members.values()), {}, ()
        for member in members:
            member.endpoint.leave()
        if self._end_upkeep is not None:
            await self._end_upkeep()
        for endpoint in (*(member.endpoint for member in members), *self._leaving):
            await self._transport.close_channel(endpoint.channel)
        for member in members:
            await member.end_watch()

    async def ready(self, deadline: Deadline) -> None:
        """Wait for the first look-up of names; at once afterwards."""
        if not self._looked_up.is_set():
            await self._looked_up.wait(deadline.remaining())

    @contextmanager
    def attempt(self, tried: Sequence[Endpoint] = ()) -> Iterator[Attempt]:
        """One call to the best endpoint that is not in ``tried``.

        Raises:
            Unavailable: none serves; with the worker's own reason where it gave one.
        """
        endpoint = self._take(tried)
        try:
            # Alone it cannot be ejected, and the hop's own breaker sees the same calls.
            if len(self.endpoints) < 2:
                yield Attempt(endpoint, None)
                return
            with endpoint.permit() as permit:
                yield Attempt(endpoint, permit)
        except Overloaded as error:
            if error.retry is RetryAdvice.AFTER_DELAY:
                endpoint.busy_until = time.monotonic() + min(error.retry_after or 0.1, LONGEST_BUSY_SECONDS)
            raise
        finally:
            with self._lock:
                endpoint.in_flight -= 1

    def has_another(self, tried: Sequence[Endpoint]) -> bool:
        """Whether an endpoint that is well is left beside those in ``tried``."""
        now = time.monotonic()
        ranks = (each.rank(now) for each in self.endpoints if each not in tried)
        return any(rank is not None and rank[0] <= 1 for rank in ranks)

    def status(self) -> tuple[EndpointHealth, ...]:
        """Every endpoint now, and every name that leads nowhere."""
        return (*(endpoint.status() for endpoint in self.endpoints), *self._unknown_names.values())

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _take(self, tried: Sequence[Endpoint]) -> Endpoint:
        with self._lock:
            endpoint = self._best(tried)
            if endpoint is None:
                raise self._nobody()
            endpoint.in_flight += 1
            return endpoint

    def _best(self, tried: Sequence[Endpoint]) -> Endpoint | None:
        endpoints = self.endpoints
        now = time.monotonic()
        best, best_rank = None, None
        # Beginning elsewhere each time, so that equals take turns.
        first = next(self._turn)
        for offset in range(len(endpoints)):
            endpoint = endpoints[(first + offset) % len(endpoints)]
            rank = None if endpoint in tried else endpoint.rank(now)
            if rank is not None and (best_rank is None or rank < best_rank):
                best, best_rank = endpoint, rank
        return best

    def _nobody(self) -> MeshError:
        told = next((each for each in self.endpoints if each.health == NOT_SERVING), None)
        return told.refusal() if told is not None else unreachable(self._hop)

    # -- upkeep -------------------------------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        for turn in itertools.count():
            try:
                await self._look_names_up()
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
        self._looked_up.set()

    async def _look_up(self, place: Place) -> None:
        try:
            addresses = await self._transport.look_up(place.host, place.port)
        except OSError as error:
            # What was found earlier stays: a resolver that is down must not take the hop with it.
            if not any(member.place is place for member in self._members.values()):
                self._not_found(place, error)
            return
        self._unknown_names.pop(place.written, None)
        for address in addresses:
            self._join(place, address)
        self._leave(place, frozenset(addresses))

    def _not_found(self, place: Place, error: OSError) -> None:
        before = self._unknown_names.get(place.written)
        if before is None or before.health != UNREACHABLE:
            log.warning("an endpoint's name cannot be looked up", extra=fields(hop=self._hop, endpoint=place.written))
            self._unknown_names[place.written] = EndpointHealth(
                place.written,
                health=UNREACHABLE,
                since=time.monotonic(),
                reason=f"The name {place.host} cannot be looked up: {error.strerror or 'no answer'}.",
                reason_code="NAME_NOT_FOUND",
            )

    def _join(self, place: Place, address: str) -> None:
        if (member := self._members.get(address)) is not None:
            member.named_at = time.monotonic()
            return
        # The name stands in the request's authority, for proxies that route by it.
        authority = (("grpc.default_authority", f"{place.host}:{place.port}"),) if place.host else ()
        endpoint = Endpoint(
            hop=self._hop,
            written=place.written,
            address=address,
            channel=self._transport.open(address, (*self._options, *authority)),
            breaker=self._new_breaker(),
        )
        end_watch = self._transport.spawn(partial(self._probe.watch, endpoint), f"probe {address}")
        self._members[address] = _Member(endpoint, end_watch, place)
        self.endpoints = tuple(each.endpoint for each in self._members.values())

    def _leave(self, place: Place, named: frozenset[str]) -> None:
        lately = time.monotonic() - LINGER_SECONDS
        for address, member in tuple(self._members.items()):
            if member.place is not place or address in named:
                continue
            if member.endpoint.serving and member.named_at > lately:
                continue
            del self._members[address]
            self._leaving.append(member.endpoint)
            member.endpoint.leave()
            member.endpoint.forget()
            log.info("an endpoint left", extra=fields(hop=self._hop, endpoint=place.written, address=address))
        self.endpoints = tuple(each.endpoint for each in self._members.values())

    async def _close_what_left(self) -> None:
        """Close the connections of endpoints that left, once their last call is done."""
        done = [endpoint for endpoint in self._leaving if endpoint.in_flight == 0]
        self._leaving = [endpoint for endpoint in self._leaving if endpoint.in_flight]
        for endpoint in done:
            await self._transport.close_channel(endpoint.channel)


class BalancedChannel:
    """What a generated stub takes for a channel: its methods go to whichever endpoint is chosen for each call."""

    def unary_unary(self, path: str, *arguments: Any, **options: Any) -> BalancedMethod:
        """One request, one reply."""
        return BalancedMethod("unary_unary", path, arguments, options)

    def unary_stream(self, path: str, *arguments: Any, **options: Any) -> BalancedMethod:
        """One request, many replies."""
        return BalancedMethod("unary_stream", path, arguments, options)

    def stream_unary(self, path: str, *arguments: Any, **options: Any) -> BalancedMethod:
        """Many requests, one reply."""
        return BalancedMethod("stream_unary", path, arguments, options)

    def stream_stream(self, path: str, *arguments: Any, **options: Any) -> BalancedMethod:
        """Many requests, many replies."""
        return BalancedMethod("stream_stream", path, arguments, options)


class BalancedMethod:
    """A method of a service, not yet of an endpoint.

    Attributes:
        name: the method's own name, without its service's.
    """

    __slots__ = ("_arguments", "_kind", "_options", "_path", "name")

    def __init__(self, kind: str, path: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.name = path.rpartition("/")[2]
        self._kind = kind
        self._path = path
        self._arguments = arguments
        self._options = options

    def on(self, endpoint: Endpoint) -> Any:
        """The same method at ``endpoint``."""
        return endpoint.method(self._kind, self._path, *self._arguments, **self._options)
