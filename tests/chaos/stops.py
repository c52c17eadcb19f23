"""P12: SIGTERM under load, the server answers within the grace time: nothing claimed is left, nothing is doubled."""

from __future__ import annotations

import os
import random
import signal

from tests.chaos.child import faults_in, place_at, serving, set_up, work_off
from tests.chaos.mails import hand_over, letters
from tests.chaos.result import Plan, Row, reckon
from tests.chaos.server import Ledger, server
from tests.support.service import service


def stops(plan: Plan) -> list[Row]:
    """200 stops; some of them of the whole `mpu serve`."""
    count, through_service = plan.size(200, 8), plan.size(20, 0)
    row = Row("P12", "SIGTERM under load", count)
    chance = random.Random(plan.seed)
    place = place_at(plan.root)
    mails = letters(chance, "s", plan.size(10_000, 320))
    row.messages = len(mails)
    ledger = Ledger(plan.root / "ledger")
    in_time, share = 0, len(mails) // count
    with server(ledger.path, round_trip_seconds=0.005) as port:
        set_up(place, port)
        for number in range(count):
            batch = mails[number * share : (number + 1) * share]
            ledger.read()
            under_load = False
            if number < count - through_service:
                child = serving(place)
                hand_over(place.pickup, batch, chance)
                ledger.wait_for(chance.randrange(share // 2))
                under_load = bool(place.names())
                os.kill(child.pid, signal.SIGTERM)
                code = child.wait()
            else:
                with service(place.data, place.pickup.parent) as running:
                    hand_over(place.pickup, batch, chance)
                    ledger.wait_for(chance.randrange(share // 2))
                    under_load = bool(place.names())
                    code = running.stop()
            row.expect(code == 0, f"stop {number}: exit code {code}")
            claimed = [n for n in place.names() if n.endswith(".lck")]
            row.expect(not claimed, f"stop {number}: still claimed: {claimed[:5]}")
            row.expect(not place.logs_left(), f"stop {number}: logs left over: {place.logs_left()[:5]}")
            in_time += under_load
        work_off(place)
    reckoning = reckon(mails, ledger.read())
    row.lost, row.doubles_allowed, row.doubles_seen = len(reckoning.lost), 0, reckoning.doubled.total()
    row.misses += [f"{mailbox} was lost" for mailbox in reckoning.lost]
    row.misses += [f"{mailbox} came more than once" for _, mailbox in reckoning.doubled]
    row.misses += [f"{key} arrived otherwise than it should" for key in reckoning.damaged]
    row.misses += faults_in(place.log)
    row.expect(in_time >= count // 2, f"only {in_time} stops came under load: the run shows little")
    row.notes = f"{in_time} of them with mail waiting or in flight"
    return [row]
