"""Which account a message goes through: in which order they are asked, and which of them may be used now."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from core.domain.account import Account, Directory, FromPolicy, SenderRoute, Strategy
from core.domain.routing import (
    Ground,
    Refusal,
    Route,
    SenderRoutes,
    Shares,
    Standing,
    choose,
    order_of,
    standings,
)
from core.domain.senders import ANYONE, SendAs, send_as, sender_key

T = 1_800_000_000.0
UNTIL_5 = ("account_paused", T + 5)
UNTIL_3 = ("account_paused", T + 3)
FOR_GOOD = ("account_paused", None)
QUOTA = ("quota", T + 9)

SHOP, JO, OTHER, SUB = "shop@x.example", "jo@x.example", "me@y.example", "a@sub.x.example"


@dataclass
class Accounts:
    """Accounts by name with what they say of senders, and what is in the way of some."""

    senders: dict[str, SendAs] = field(default_factory=dict)
    way: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def send_as(self, name: str) -> SendAs | None:
        return self.senders.get(name)

    def in_the_way(self, name: str) -> Refusal | None:
        self.asked.append(name)
        return Refusal(name, *self.way[name]) if name in self.way else None


def accounts(text: str) -> Accounts:
    """`a b:shop@x.example,@y.example`: a takes any sender, b these."""
    found = {}
    for word in text.split():
        name, _, senders = word.partition(":")
        found[name] = SendAs(frozenset(senders.split(","))) if senders else ANYONE
    return Accounts(found)


def names(text: str) -> tuple[str, ...]:
    return tuple(word.partition(":")[0] for word in text.split())


# --- which may be used now --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "matter", "tried", "taken", "refused", "until"),
    [
        ("", {}, "", None, [], None),
        ("a", {}, "", "a", [], None),
        ("a b", {}, "", "a", [], None),
        ("b a", {}, "", "b", [], None),  # the order given, not the alphabet's
        ("a b", {"a": ("disabled", None)}, "", "b", [("a", "disabled", None)], None),
        ("a b", {}, "a", "b", [("a", "tried", None)], None),
        ("a b", {"a": UNTIL_5}, "", "b", [("a", "account_paused", T + 5)], T + 5),
        ("a b", {"a": FOR_GOOD}, "", "b", [("a", "account_paused", None)], None),
        ("a b", {"a": QUOTA}, "", "b", [("a", "quota", T + 9)], T + 9),
        ("a b", {"b": UNTIL_5}, "", "a", [], None),
        ("a:@y.example b", {}, "", "b", [("a", "sender_not_allowed", None)], None),
        ("a:shop@x.example b", {}, "", "a", [], None),
        ("a:@x.example b", {}, "", "a", [], None),
        (
            "a:@y.example b:@x.example c",
            {"a": UNTIL_3, "b": UNTIL_5},
            "",
            "c",
            [("a", "sender_not_allowed", None), ("b", "account_paused", T + 5)],
            T + 5,  # not that of the one that may never send it
        ),
        (
            "a b c d",
            {"a": UNTIL_5, "b": FOR_GOOD, "c": UNTIL_3, "d": QUOTA},
            "",
            None,
            [
                ("a", "account_paused", T + 5),
                ("b", "account_paused", None),
                ("c", "account_paused", T + 3),
                ("d", "quota", T + 9),
            ],
            T + 3,
        ),
        ("a b", {}, "a b", None, [("a", "tried", None), ("b", "tried", None)], None),
        ("a:@y.example", {}, "a", None, [("a", "sender_not_allowed", None)], None),
    ],
)
def test_the_first_that_may_be_used_is_taken(
    given: str,
    matter: dict[str, tuple[str, float | None]],
    tried: str,
    taken: str | None,
    refused: list[tuple[str, str, float | None]],
    until: float | None,
) -> None:
    known = accounts(given)
    known.way = matter
    route = choose(names(given), SHOP, send_as=known.send_as, in_the_way=known.in_the_way, tried=tried.split())
    assert route == Route(taken, tuple(Refusal(*each) for each in refused))
    assert route.until == until


def test_an_account_is_asked_what_is_in_its_way_only_where_it_could_be_used() -> None:
    known = accounts("tried strict:@y.example paused")
    known.way = {"paused": FOR_GOOD}
    route = choose(
        ("gone", "strict", "tried", "paused"),
        SHOP,
        send_as=known.send_as,
        in_the_way=known.in_the_way,
        tried=["tried"],
    )
    assert [r.reason for r in route.refusals] == ["unknown", "sender_not_allowed", "tried", "account_paused"]
    assert known.asked == ["paused"]


@pytest.mark.parametrize(
    ("given", "matter", "never"),
    [
        ("a:@y.example", {}, True),
        ("a:@y.example b:@z.example", {"a": UNTIL_5}, True),
        ("a:@y.example b", {}, False),  # b takes it
        ("a:@y.example b", {"b": UNTIL_5}, False),  # b will
        ("a:@y.example b", {"b": ("disabled", None)}, False),  # b may be enabled
        ("a:@y.example gone", {}, False),
        ("", {}, False),
    ],
)
def test_mail_that_no_account_may_ever_send_is_told_from_mail_that_waits(
    given: str, matter: dict[str, tuple[str, float | None]], never: bool
) -> None:
    known = accounts(given)
    known.senders.pop("gone", None)
    known.way = matter
    assert choose(names(given), SHOP, send_as=known.send_as, in_the_way=known.in_the_way).never is never


# --- who may send as whom ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("senders", "sender", "allowed"),
    [
        ((), SHOP, True),
        (("shop@x.example",), "shop@X.EXAMPLE", True),
        (("shop@X.Example",), "shop@x.example", True),
        (("shop@x.example",), "Shop@x.example", True),
        (("SHOP@X.Example",), "shop@x.example", True),
        (("Shop@x.example",), "sHOP@X.EXAMPLE", True),
        (("shop@x.example",), "shop1@x.example", False),
        (('"A B"@x.example',), '"a b"@x.example', True),
        (("bücher@x.example",), "BüCHER@x.example", True),
        (("bücher@x.example",), "BÜCHER@x.example", False),  # only ASCII letters
        (("\u212aelvin@x.example",), "kelvin@x.example", False),  # the Kelvin sign is no k
        (("shop@x.example",), JO, False),
        (("@x.example",), JO, True),
        (("@X.example",), "jo@x.EXAMPLE", True),
        (("@x.example",), SUB, False),  # a subdomain only by its own entry
        (("@x.example", "@sub.x.example"), SUB, True),
        (("@sub.x.example",), JO, False),
        (("@x.example",), "a@notx.example", False),
        (("@bücher.example",), "a@xn--bcher-kva.example", True),
        (("a@bücher.example",), "a@xn--bcher-kva.example", True),
        (("@x.example",), '"a@y.example"@x.example', True),
        (("@y.example",), '"a@y.example"@x.example', False),
        (("@x.example",), "", True),  # the null sender
    ],
)
def test_who_may_send_as_whom(senders: tuple[str, ...], sender: str, allowed: bool) -> None:
    assert send_as(Account("a", "h", senders=senders)).allows(sender_key(sender)) is allowed


@pytest.mark.parametrize(
    ("policy", "senders", "allowed", "anyone"),
    [
        (FromPolicy.KEEP, (), True, True),
        (FromPolicy.KEEP, ("own@z.example",), False, False),
        (FromPolicy.REPLACE, ("own@z.example",), True, True),
        (FromPolicy.REPLY_TO, ("@z.example",), True, True),
        (FromPolicy.REPLACE, (SHOP,), False, False),  # its own address is what it sends as, and it may not
    ],
)
def test_where_from_is_rewritten_the_accounts_address_is_the_one_that_counts(
    policy: FromPolicy, senders: tuple[str, ...], allowed: bool, anyone: bool
) -> None:
    rules = send_as(Account("a", "h", from_address="own@Z.example", from_policy=policy, senders=senders))
    assert (rules.allows(sender_key(SHOP)), rules.anyone) == (allowed, anyone)
    assert rules.allows("")


# --- in which order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sender", "order"),
    [
        ("a b c", SHOP, "a b c"),
        ("a b:@x.example c:shop@x.example", SHOP, "c b a"),
        ("a b:@x.example c:shop@x.example", JO, "b a c"),
        ("a b:@x.example c:shop@x.example", OTHER, "a b c"),  # those that may not come last, and are refused
        ("a:@x.example b:@x.example c", SHOP, "a b c"),
        ("c:@x.example a:shop@x.example,@x.example b:shop@x.example", SHOP, "a b c"),
        ("b:@x.example a", SUB, "a b"),
        ("b:@x.example a", "", "a b"),  # nobody names the null sender
        ("a:@x.example b:@y.example", "", "a b"),
    ],
)
def test_by_sender_those_that_name_the_sender_come_first(given: str, sender: str, order: str) -> None:
    directory = Directory("in", "/in", names(given), Strategy.BY_SENDER)
    found = order_of(directory, sender_key(sender), routes=None, send_as=accounts(given).send_as)
    assert list(found) == order.split()


ROUTES = SenderRoutes(
    [
        SenderRoute(("@x.example", "@bücher.example"), ("domain", "spare")),
        SenderRoute(("shop@X.example",), ("address",)),
        SenderRoute(("@sub.x.example",), ("sub",)),
        SenderRoute(("@x.example",), ("late",)),  # not saved by the API: the first counts
    ]
)


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize(
    ("sender", "order"),
    [
        (SHOP, ["address"]),
        ("shop@X.EXAMPLE", ["address"]),
        ("Shop@x.example", ["address"]),
        ("SHOP@X.EXAMPLE", ["address"]),
        (JO, ["domain", "spare"]),
        (SUB, ["sub"]),
        ("a@other.x.example", ["own"]),
        ("a@xn--bcher-kva.example", ["domain", "spare"]),
        (OTHER, ["own"]),
        ("", ["own"]),
    ],
)
def test_a_sender_route_comes_before_every_strategy(strategy: Strategy, sender: str, order: list[str]) -> None:
    directory = Directory("in", "/in", ("own",), strategy)
    found = order_of(directory, sender_key(sender), routes=ROUTES, send_as=accounts("own").send_as)
    assert list(found) == order


def turns(shares: Shares, count: int, usable: str | None = None) -> list[str]:
    """Who has the next turns, if only these could be used."""
    found = []
    for _ in range(count):
        account = next(name for name in shares.order() if usable is None or name in usable.split())
        shares.take(account)
        found.append(account)
    return found


@pytest.mark.parametrize(
    ("given", "weights", "expected"),
    [
        ("a", (), "aaaa"),
        ("ab", (), "abababab"),
        ("ba", (), "baba"),
        ("ab", (3, 1), "abaaabaa"),
        ("ab", (1, 3), "abbbabbb"),
        ("abc", (5, 1, 1), "abcaaaaabcaaaa"),
        ("abc", (2, 0, 1), "acaaca"),
        ("ab", (0, 0), "aaaa"),
        ("ab", (2,), "abaaba"),  # a missing weight is 1
    ],
)
def test_balance_gives_turns_by_weight(given: str, weights: tuple[int, ...], expected: str) -> None:
    assert turns(Shares(tuple(given), weights), len(expected)) == list(expected)


@pytest.mark.parametrize("weights", [(3, 1), (7, 5, 3), (1000, 999, 1), (1, 1, 1, 1, 97)])
def test_every_round_of_turns_has_the_exact_shares(weights: tuple[int, ...]) -> None:
    given = "abcde"[: len(weights)]
    shares = Shares(tuple(given), weights)
    for _ in range(3):
        assert Counter(turns(shares, sum(weights))) == dict(zip(given, weights, strict=True))


def test_an_account_without_weight_helps_out_only_where_no_other_can() -> None:
    shares = Shares(("spare", "a", "b"), (0, 1, 1))
    assert turns(shares, 2, "spare") == ["spare", "spare"]
    assert turns(shares, 4) == ["a", "b", "a", "b"]
    assert turns(shares, 2, "spare b") == ["b", "b"]


def test_who_could_not_be_used_for_a_while_has_nothing_to_catch_up_on() -> None:
    shares = Shares(("a", "b"))
    assert turns(shares, 2) == list("ab")
    assert turns(shares, 50, "b") == ["b"] * 50
    assert turns(shares, 8) == list("aabababa")


def test_a_turn_through_a_sender_routes_account_counts_for_nobody() -> None:
    shares = Shares(("a", "b"))
    shares.take("elsewhere")
    assert turns(shares, 4) == list("abab")


def test_an_account_keeps_a_message_that_needs_several_transactions() -> None:
    directory = Directory("in", "/in", ("a", "b", "c"), Strategy.BALANCE)
    shares = Shares(directory.accounts)
    shares.take("a")
    for last, order in ((None, "bca"), ("a", "abc"), ("c", "cba"), ("gone", "bca")):
        found = order_of(directory, SHOP, routes=None, send_as=accounts("a b c").send_as, shares=shares, last=last)
        assert "".join(found) == order, last


# --- why --------------------------------------------------------------------------------------------------------------


def test_standings_say_of_each_why_it_stands_there_and_what_is_in_its_way() -> None:
    given = "a b:@x.example c:shop@x.example d:@y.example"
    known = accounts(given)
    known.way = {"c": UNTIL_5}
    by_sender = Directory("in", "/in", names(given), Strategy.BY_SENDER)

    def stand(directory: Directory, sender: str, routes: SenderRoutes | None = None) -> list[Standing]:
        found = standings(
            directory, sender_key(sender), routes=routes, send_as=known.send_as, in_the_way=known.in_the_way
        )
        return list(found)

    assert stand(by_sender, SHOP) == [
        Standing("c", Ground.ADDRESS, SHOP, Refusal("c", *UNTIL_5)),
        Standing("b", Ground.DOMAIN, "@x.example"),
        Standing("a", Ground.ANYONE),
        Standing("d", Ground.REST, "", Refusal("d", "sender_not_allowed")),
    ]
    routes = SenderRoutes([SenderRoute(("@x.example",), ("b", "gone"))])
    assert stand(by_sender, JO, routes) == [
        Standing("b", Ground.SENDER_ROUTE, "@x.example"),
        Standing("gone", Ground.SENDER_ROUTE, "@x.example", Refusal("gone", "unknown")),
    ]
    balance = Directory("in", "/in", ("a", "b"), Strategy.BALANCE, (3, 1))
    assert stand(balance, OTHER) == [
        Standing("a", Ground.TURN, "3"),
        Standing("b", Ground.TURN, "1", Refusal("b", "sender_not_allowed")),
    ]
    assert stand(Directory("in", "/in", ("a",)), SHOP, routes)[0].ground is Ground.SENDER_ROUTE
    assert stand(Directory("in", "/in", ("a",)), OTHER, routes) == [Standing("a", Ground.ORDER)]
