"""Sender routes that none of their accounts may serve, as people are told."""

from __future__ import annotations

import pytest

from core.domain.account import SenderRoute
from core.domain.senders import SendAs
from core.runtime.sender_rules import sender_route_rules

ANN = SendAs(frozenset({"ann@a.example"}))
ELSEWHERE = SenderRoute(("ann@a.example",), ("main",))
BUT = ", but as addresses that have a route of their own"


@pytest.mark.parametrize(
    ("routes", "told"),
    [
        ([SenderRoute(("@a.example",), ("strict",))], []),
        ([SenderRoute(("@b.example",), ("strict",))], ["no account of the route may send as '@b.example'"]),
        (
            [SenderRoute(("@a.example",), ("strict",)), ELSEWHERE],
            [f"no account of the route may send as '@a.example'{BUT}"],
        ),
        ([SenderRoute(("@a.example",), ("strict", "main")), ELSEWHERE], []),
    ],
)
def test_a_route_that_nobody_may_serve_is_told_with_what_stands_in_its_way(
    routes: list[SenderRoute], told: list[str]
) -> None:
    errors = sender_route_rules(routes, (), {"strict": ANN, "main": SendAs()})
    assert [error.detail for error in errors] == told
