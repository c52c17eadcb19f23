"""One pass over one directory without a service: what `mpu process DIR --send` does.

The same spool, claims, logs and settlement as in the service, so any number of these and of services may work on one
directory at a time: each mail goes once. With a store outcomes are in its history; without one the directory's own logs
and sidecars say all that a later process needs (spool.md). Accounts that fail are not tried again in this pass.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from core.cycle import Blocks, Cycle
from core.delivery import Delivered, Delivery
from core.domain.account import Account, Directory, SenderRoute
from core.domain.circuit import Pause
from core.domain.clock import Clock
from core.domain.outcome import Outcome
from core.runtime.oauth_secrets import Followers
from core.runtime.outlets import Outlets
from core.runtime.queue import shown
from core.runtime.secret_sources import SecretSources
from core.runtime.tokens import Remember, Tokens, forget
from core.runtime.transports import transport_of
from core.settings import Settings
from core.slots import OpenMessages
from core.spool.directory import DirectorySpool
from core.store.ledger import Ledger
from core.store.slowdowns import Slowed
from core.store.usage import Used

WRITER_WAIT_SECONDS = 1.0  # beside quiet_seconds: how long files that may still be written are waited for
WRITER_LOOK_SECONDS = 0.25


@dataclass(slots=True)
class Processed:
    """What one pass did, and what is left lying there."""

    messages: Counter[Outcome] = field(default_factory=Counter)
    recipients: Counter[Outcome] = field(default_factory=Counter)
    blocked: Blocks = field(default_factory=Blocks)  # could not go now, and why
    left_alone: dict[str, str] = field(default_factory=dict)  # file name -> why it was not touched
    pauses: dict[str, Pause] = field(default_factory=dict)  # accounts that can't be used, and why
    cut_off: int = 0  # in flight when the grace time was over
    stopped: bool = False

    @property
    def left(self) -> int:
        """Messages that were not sent."""
        not_sent = self.messages.total() - self.messages[Outcome.SENT]
        return not_sent + self.blocked.total() + len(self.left_alone) + self.cut_off


async def process(
    directory: Directory,
    accounts: Sequence[tuple[Account, Pause | None]],
    *,
    routes: Sequence[SenderRoute] = (),
    clock: Clock,
    ledger: Ledger,
    settings: Settings,
    remember: Remember = forget,
    followers: Followers | None = None,
    outside: SecretSources | None = None,
    used: Mapping[str, Iterable[Used]] = MappingProxyType({}),
    slowed: Mapping[str, Slowed] = MappingProxyType({}),
    include_deferred: bool = False,
    on_delivered: Callable[[Delivered], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> Processed:
    """Send what is due in the directory, through its accounts; ends when nothing can go now, or on `stop`.

    `accounts`: those that the directory and the sender routes name, with an operator's pause where there is one.
    `remember` and `followers` store a refresh token that changes; `outside` leads to secrets that lie elsewhere;
    `used`: what accounts with limits sent in the last 24 hours; `slowed`: what servers asked accounts to slow down to.
    What a quota has no room for soon is left. Raises DirectoryUnavailable.
    """
    stop = stop or asyncio.Event()
    outside = outside or SecretSources(settings)
    tokens = Tokens(settings, clock, remember, followers, outside=outside)
    outlets = Outlets(
        clock=clock,
        chance=random.random,
        make_transport=lambda account: transport_of(account, settings, clock, tokens, outside),
        remember=lambda _name, _pause: None,
        on_open=lambda _name: None,
    )
    outlets.quotas.restore(used)
    for account, pause in accounts:
        outlets.set(account, pause, slowed.get(account.name))
    outlets.set_sender_routes(routes)
    result = Processed()

    def note(_directory: Directory, delivered: Delivered) -> None:
        if delivered.outcome is not None:
            result.messages[delivered.outcome] += 1
            result.recipients.update(outcome.outcome for outcome in delivered.recipients)
            on_delivered(delivered)

    cycle = Cycle(
        directory,
        DirectorySpool(directory, clock=clock),
        Delivery(
            outlets,
            ledger,
            clock=clock,
            chance=random.random,
            host_name=socket.getfqdn(),
            max_header_bytes=settings.max_header_bytes,
        ),
        outlets,
        clock=clock,
        open_messages=OpenMessages(settings.max_open_messages),
        look_ahead=settings.look_ahead,
        scan_batch=settings.scan_batch,
        on_delivered=note,
    )

    def let_go(_: object) -> None:
        cycle.nudge()
        outlets.quotas.close()

    stopping = asyncio.get_running_loop().create_task(stop.wait())
    stopping.add_done_callback(let_go)
    try:
        await cycle.ready()
        report = await cycle.run(include_deferred=include_deferred, stop=stop.is_set)
        result.blocked = report.blocked
        await _wait_for_writers(cycle, stop)
    finally:
        stopping.cancel()
        cycle.begin_stop()
        if not await cycle.drained(settings.grace_seconds):
            result.cut_off = cycle.in_flight
        await ledger.flush()
        paused = {name: outlets.pause_of(name) for name in outlets.names}
        await outlets.close()
        await tokens.close()
        await cycle.close()
    result.stopped = stop.is_set()
    result.pauses = {name: pause for name, pause in paused.items() if pause is not None}
    result.left_alone = {shown(name): problem.error.detail for name, problem in cycle.problems.items()}
    result.left_alone |= {shown(name): "it may still be written" for name in cycle.writing}
    return result


async def _wait_for_writers(cycle: Cycle, stop: asyncio.Event) -> None:
    """Where leases can't be had, files written just now rest `quiet_seconds`; then the cycle takes them by itself."""
    looks = int((cycle.directory.quiet_seconds + WRITER_WAIT_SECONDS) / WRITER_LOOK_SECONDS)
    while cycle.writing and looks > 0 and not stop.is_set():
        await asyncio.sleep(WRITER_LOOK_SECONDS)
        looks -= 1
