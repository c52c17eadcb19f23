"""The check of an account against servers that fail at each step: which step, its cause and its remedy."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.domain.account import Account, AuthMethod, OAuth, OAuthGrant, OAuthProvider, ReplyRule, Security
from core.domain.outcome import Blame
from core.domain.reply import Phase
from core.smtp.dialogue import ConnectFailed, TokenFailed
from core.transport.check import Step, _Trial, check, send_as_address
from core.transport.remedies import in_a_check
from core.transport.smtp import fault_of
from tests.support.smtp_server import DEFAULT_EXTENSIONS, Close, Hang, Raw, Script, SmtpServer, certificate

NOW = time.time()
SECRET = "pl4nted-S3cret-7Q"
ALL = (*DEFAULT_EXTENSIONS, "CHUNKING")


@dataclass
class Tls:
    ca_file: str
    context: ssl.SSLContext
    authority: trustme.CA


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    authority, context = certificate()
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return Tls(str(file), context, authority)


def account(server: SmtpServer, **changes: Any) -> Account:
    values: dict[str, Any] = {"security": Security.NONE, "auth": AuthMethod.NONE, "host": "127.0.0.1"}
    return Account("main", **{"port": server.port, **values, **changes})


async def tried(value: Account, **options: Any) -> dict[str, Step]:
    began = time.perf_counter()
    steps = await check(value, now=NOW, **options)
    assert all(step.cause or step.detail for step in steps if not step.ok)
    assert sum(step.seconds for step in steps) <= time.perf_counter() - began, "no time is counted twice"
    assert sum(step.seconds for step in steps) > 0
    assert SECRET not in repr(steps)
    return {step.name: step for step in steps}


def fine(steps: dict[str, Step]) -> bool:
    return all(step.ok for step in steps.values() if step.required)


def the_failure(steps: dict[str, Step]) -> Step:
    (failed,) = [step for step in steps.values() if step.required and not step.ok]
    return failed


# --- where all is well ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
async def test_every_step_of_an_account_that_works(tls: Tls, security: Security) -> None:
    script = Script(extensions=ALL)
    server = SmtpServer(
        script,
        context=tls.context,
        implicit_tls=security is Security.TLS,
        mechanisms=["PLAIN", "LOGIN"],
        credentials={"shop@example.org": SECRET},
        auth_in_clear=False,
        require_auth=True,
    )
    async with server:
        value = account(
            server,
            host="localhost",
            security=security,
            auth=AuthMethod.AUTO,
            username="shop@example.org",
            password=SECRET,
            tls_ca_file=tls.ca_file,
        )
        steps = await tried(value)
        order = ["dns", "port", "banner", "ehlo", "tls", "certificate", "extensions", "login", "noop", "send_as"]
        assert set(steps) == set(order)
        if security is Security.STARTTLS:
            assert list(steps) == order
        assert all(step.ok and step.code == step.cause == step.remedy == "" for step in steps.values())
        assert steps["dns"].detail == "127.0.0.1 (1 IPv4)"
        assert steps["port"].detail == f"127.0.0.1 port {server.port}"
        assert "server.test" in steps["banner"].detail
        assert steps["tls"].detail.startswith("TLSv1.3 ")
        assert "localhost, 127.0.0.1" in steps["certificate"].detail
        assert "by trustme" in steps["certificate"].detail
        assert "days left" in steps["certificate"].detail
        assert "AUTH PLAIN LOGIN" in steps["extensions"].detail, "of the second EHLO"
        assert "SIZE 52428800" in steps["extensions"].detail
        assert steps["login"].detail == "shop@example.org with PLAIN"
        assert steps["send_as"].detail == "shop@example.org is taken: 250 2.1.0 ok"
        verbs = [line.split(" ")[0] for line in server.commands]
        assert verbs[-4:] == ["NOOP", "MAIL", "RSET", "QUIT"]
        assert server.commands[-3] == "MAIL FROM:<shop@example.org>"
        assert {"RCPT", "DATA", "BDAT"}.isdisjoint(verbs)
        assert server.messages == []


@pytest.mark.parametrize("missing", ["SIZE", "PIPELINING", "CHUNKING", "8BITMIME", "SMTPUTF8", "DSN"])
async def test_what_a_missing_extension_costs_is_said_and_no_failure(missing: str) -> None:
    async with SmtpServer(Script(extensions=ALL, hide={missing})) as server:
        steps = await tried(account(server))
    assert fine(steps)
    assert [name for name, step in steps.items() if not step.ok] == [f"extension_{missing.lower()}"]
    step = steps[f"extension_{missing.lower()}"]
    assert (step.required, step.code) == (False, "not_offered")
    assert step.cause
    assert step.remedy


# --- before TLS -------------------------------------------------------------------------------------------------------


async def test_a_name_that_is_not_there() -> None:
    steps = await tried(Account("main", "no-such-host.invalid"))
    assert list(steps) == ["dns"]
    assert steps["dns"].code == "dns_failed"
    assert "misspelt" in steps["dns"].cause


async def test_a_port_where_nothing_listens_and_one_that_clouds_block() -> None:
    async with SmtpServer() as server:
        port = server.port
    for number, words in ((port, "Nothing listens there"), (25, "port 25")):
        steps = await tried(Account("main", "127.0.0.1", number, security=Security.NONE))
        assert list(steps) == ["dns", "port"]
        assert steps["port"].code == "connect_failed"
        assert words in steps["port"].cause
        assert str(number) in steps["port"].detail
        assert "firewall" in steps["port"].remedy


async def test_a_name_that_leads_where_nothing_may_connect() -> None:
    async with SmtpServer() as server:
        steps = await tried(account(server, host="localhost"), allow_private=False)
        assert [(step.name, step.code) for step in steps.values()] == [("dns", "target_forbidden")]
        assert server.accepted == 0


@pytest.mark.parametrize(
    ("script", "step", "code", "words"),
    [
        ({"banner": "554 5.7.1 your address is on a list"}, "banner", "banner_refused", "turns this machine away"),
        ({"banner": Raw(b"SSH-2.0-OpenSSH_9.2\r\n")}, "banner", "protocol_error", "no mail server"),
        ({"at_accept": Close()}, "banner", "closed", "closed the connection"),
        ({"banner": Hang()}, "banner", "timeout", "port is one for TLS"),
        ({"ehlo": "550 5.7.1 bad name", "helo": "550 5.7.1 bad name"}, "ehlo", "ehlo_refused", "refuses the greeting"),
        ({"ehlo": Hang()}, "ehlo", "timeout", "too long"),
        ({"noop": Hang()}, "noop", "timeout", "too long"),
        ({"noop": Close()}, "noop", "closed", "closed the connection"),
        ({"noop": "454 4.3.0 not now"}, "noop", "noop_refused", "words"),
        ({"mail": {"*": Hang()}}, "send_as", "timeout", "too long"),
    ],
)
async def test_a_server_that_fails_on_the_way(script: dict[str, Any], step: str, code: str, words: str) -> None:
    # for a timeout it waits half of it
    limit = {"limit_seconds": 2.0} if code == "timeout" else {}
    async with SmtpServer(Script(**script)) as server:
        steps = await tried(account(server, from_address="shop@example.org"), **limit)
    failed = the_failure(steps)
    assert (failed.name, failed.code) == (step, code)
    assert words in failed.cause
    assert list(steps)[-1] == step or step == "noop"
    said = script.get("banner") or script.get("ehlo")
    if isinstance(said, str):
        assert said in failed.detail, "the server's own words"


async def test_it_ends_in_time_whatever_the_server_does() -> None:
    """Each reply comes, but slowly: no step is too slow, the whole is."""

    def slow(session: Any, _: str) -> Any:
        from tests.support.smtp_server import Late

        return Late(1.1, "220 hello" if not session.commands else "250 server.test")

    async with SmtpServer(Script(banner=slow, ehlo=slow, noop=slow)) as server:
        began = time.monotonic()
        steps = await tried(account(server), limit_seconds=3)
        assert time.monotonic() - began < 10
    assert the_failure(steps).name == "noop"
    assert "3 s" in the_failure(steps).detail


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ({"hide": {"STARTTLS"}}, "starttls_missing"),
        ({"starttls": "454 4.7.0 not now"}, "starttls_refused"),
        ({"starttls_inject": b"250 injected\r\n"}, "starttls_injection"),
    ],
)
async def test_starttls_that_can_not_be_had(tls: Tls, script: dict[str, Any], code: str) -> None:
    async with SmtpServer(Script(**script), context=tls.context) as server:
        steps = await tried(account(server, security=Security.STARTTLS, tls_ca_file=tls.ca_file))
    assert list(steps)[-1] == "tls"
    assert the_failure(steps).code == code
    assert the_failure(steps).remedy


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.NONE])
async def test_a_port_for_tls_where_it_is_not_expected(tls: Tls, security: Security) -> None:
    """The server waits for a handshake, we for its banner."""
    async with SmtpServer(context=tls.context, implicit_tls=True) as server:
        value = account(server, security=security, tls_ca_file=tls.ca_file)
        for limit in ({"limit_seconds": 1.0}, {"limit_seconds": 0.2}):  # the banner's time is up, or the whole's
            failed = the_failure(await tried(value, **limit))
            assert (failed.name, failed.code) == ("banner", "timeout")
            assert "port is one for TLS" in failed.cause
            assert "set security to tls" in failed.remedy
        assert (await tried(replace(value, security=Security.TLS, host="localhost")))["tls"].ok


async def test_a_server_that_is_silent_behind_tls_is_not_told_to_use_tls(tls: Tls) -> None:
    async with SmtpServer(Script(banner=Hang()), context=tls.context, implicit_tls=True) as server:
        value = account(server, security=Security.TLS, tls_ca_file=tls.ca_file, host="localhost")
        for limit in ({"limit_seconds": 1.0}, {"limit_seconds": 0.4}):  # the banner's time is up, or the whole's
            failed = the_failure(await tried(value, **limit))
            assert (failed.name, failed.code) == ("banner", "timeout")
            assert "TLS is up" in failed.cause
            assert "Check host, port and firewall; if" in failed.remedy


@pytest.mark.parametrize("port", [465, 587, 2465])
@pytest.mark.parametrize("security", Security)
def test_the_check_says_of_a_silent_banner_what_the_pause_says(port: int, security: Security) -> None:
    """Whichever time is up first: the banner's own, or the whole's."""
    settings = Account("main", "h", port, security=security)
    said = fault_of(settings, ConnectFailed(Phase.BANNER, "timeout", "no banner")).remedy
    trial = _Trial(settings, None, None, True, NOW, 1.0)
    for name in ("dns", "port", "tls"):
        trial.steps[name] = Step(name, True, 0.0)
    trial.ran_out_of_time(1.0)
    assert trial.steps["banner"].remedy == in_a_check(said)
    assert "by itself" not in trial.steps["banner"].remedy
    assert (f"Set security to tls: port {port}" in said) is (port != 587 and security is not Security.TLS)


@pytest.mark.parametrize(
    ("port", "security", "code", "words"),
    [
        (465, Security.STARTTLS, "timeout", "Set security to tls: port 465"),
        (465, Security.STARTTLS, "closed", "Set security to tls: port 465"),
        (2465, Security.NONE, "closed", "Set security to tls: port 2465"),
        (587, Security.STARTTLS, "timeout", "If the port is for TLS"),
        (587, Security.STARTTLS, "closed", "Nothing to do"),
        (465, Security.TLS, "timeout", "Check host, port and firewall; if"),
        (587, Security.TLS, "timeout", "Check host, port and firewall; if"),
        (465, Security.TLS, "closed", "Nothing to do"),
    ],
)
def test_the_pause_says_so_too(port: int, security: Security, code: str, words: str) -> None:
    fault = fault_of(Account("main", "h", port, security=security), ConnectFailed(Phase.BANNER, code, "no banner"))
    assert words in fault.remedy


async def test_a_login_that_is_answered_with_another_success_is_none() -> None:
    """RFC 4954 section 6: 235, and nothing else of 2yz."""
    async with SmtpServer(
        Script(auth="250 2.0.0 ok"), mechanisms=["PLAIN"], credentials={"u": SECRET}, auth_in_clear=True
    ) as server:
        value = account(server, auth=AuthMethod.AUTO, username="u", password=SECRET)
        failed = the_failure(await tried(value))
    assert (failed.name, failed.code) == ("login", "protocol_error")
    assert "250 to the login" in failed.detail
    assert "235" in failed.detail
    assert "operator" in failed.remedy


async def test_a_port_without_tls_where_tls_is_expected() -> None:
    async with SmtpServer() as server:
        steps = await tried(account(server, security=Security.TLS))
    assert (the_failure(steps).name, the_failure(steps).code) == ("tls", "tls_failed")
    assert "587 is starttls, 465 is tls" in the_failure(steps).remedy


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
async def test_what_is_wrong_with_a_certificate_is_told_apart(tls: Tls, security: Security, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    cases: list[tuple[ssl.SSLContext, str, str]] = [
        (certificate(authority=tls.authority, not_after=now - 12.5 * day)[1], "certificate_expired", "ended 13 days"),
        (certificate(authority=tls.authority, not_before=now + day)[1], "certificate_not_yet_valid", "clock"),
        (certificate("mx.example.org", authority=tls.authority)[1], "certificate_wrong_host", "mx.example.org"),
        (certificate()[1], "certificate_untrusted", "signed by trustme"),
        (self_signed(tmp_path, "127.0.0.1"), "certificate_self_signed", "signed by itself"),
    ]
    for context, code, words in cases:
        async with SmtpServer(context=context, implicit_tls=security is Security.TLS, mechanisms=["PLAIN"]) as server:
            value = account(
                server,
                security=security,
                tls_ca_file=tls.ca_file,
                auth=AuthMethod.AUTO,
                username="u",
                password=SECRET,
            )
            steps = await tried(value)
            failed = the_failure(steps)
            assert (failed.name, failed.code) == ("tls", code)
            assert steps["certificate"].code == code
            assert words in failed.cause + failed.remedy + steps["certificate"].detail
            assert failed.remedy
            assert not server.logins, "the password stays here"
            assert "AUTH" not in "".join(server.commands)


def self_signed(root: Path, address: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "appliance")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=90))
    made = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file = root / "appliance.pem"
    file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def test_a_certificate_that_ends_soon_is_a_warning(tls: Tls) -> None:
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    for days, ok in ((20.5, False), (21.5, True)):
        _, context = certificate(authority=tls.authority, not_after=now + datetime.timedelta(days=days))
        async with SmtpServer(context=context) as server:
            steps = await tried(account(server, security=Security.STARTTLS, tls_ca_file=tls.ca_file))
        assert fine(steps)
        assert steps["certificate"].ok is ok
        assert steps["certificate"].required is False
        assert f"{int(days)} days left" in steps["certificate"].detail
        assert steps["certificate"].code == ("" if ok else "certificate_ends_soon")


# --- the login --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (
            (
                "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit "
                "https://aka.ms/smtp_auth_disabled for more information."
            ),
            "smtp_auth_off_for_mailbox",
        ),
        ("534 5.7.9 Application-specific password required.", "app_password_needed"),
        ("454 4.7.0 Temporary authentication failure", "login_deferred"),
        (Close(), "closed"),
    ],
)
async def test_a_refused_login_is_explained(answer: Any, code: str) -> None:
    async with SmtpServer(Script(auth=answer), mechanisms=["PLAIN"]) as server:
        steps = await tried(account(server, auth=AuthMethod.AUTO, username="u", password=SECRET))
    failed = the_failure(steps)
    assert (failed.name, failed.code) == ("login", code)
    assert failed.cause
    assert failed.remedy
    if isinstance(answer, str):
        assert answer in failed.detail


async def test_a_login_that_is_not_offered() -> None:
    async with SmtpServer(mechanisms=["LOGIN"]) as server:
        steps = await tried(account(server, auth=AuthMethod.PLAIN, username="u", password=SECRET))
    assert (the_failure(steps).name, the_failure(steps).code) == ("login", "login_not_offered")
    assert "offered: LOGIN" in the_failure(steps).detail


class Tokens:
    def __init__(self, *given: str | Exception) -> None:
        self.given = list(given)

    async def __call__(self) -> str:
        one = self.given.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    async def refused(self, token: str) -> bool:
        return bool(self.given)

    def accepted(self, token: str) -> None:
        pass


OAUTH = OAuth(OAuthProvider.OTHER, OAuthGrant.CLIENT_CREDENTIALS)


async def test_the_token_is_a_step_of_its_own() -> None:
    async with SmtpServer(mechanisms=["XOAUTH2"], tokens={"u": SECRET}) as server:
        value = account(server, auth=AuthMethod.XOAUTH2, username="u", oauth=OAUTH)
        steps = await tried(value, token=Tokens("stale", SECRET))
        assert fine(steps)
        assert [name for name in steps if name in ("token", "login")] == ["token", "login"]
        trouble = TokenFailed("token_refused", "it said no", remedy="Log in again.", pause_seconds=None, passing=False)
        steps = await tried(value, token=Tokens(trouble))
        assert (the_failure(steps).name, the_failure(steps).code) == ("token", "token_refused")
        assert the_failure(steps).remedy == "Log in again."
        steps = await tried(value, token=Tokens("wrong"))
        assert (the_failure(steps).name, the_failure(steps).code) == ("login", "token_refused")


# --- send-as ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"from_address": "a@x.org", "senders": ("b@x.org",), "username": "c@x.org"}, ("a@x.org", True)),
        ({"senders": ("@x.org", "b@x.org"), "username": "c@x.org"}, ("b@x.org", True)),
        ({"senders": ("@x.org",), "username": "c@x.org"}, ("c@x.org", False)),
        ({"username": "AKIAEXAMPLE"}, (None, False)),
        ({}, (None, False)),
    ],
)
def test_who_is_asked_about(fields: dict[str, Any], asked: tuple[str | None, bool]) -> None:
    assert send_as_address(Account("main", "h", **fields)) == asked


@pytest.mark.parametrize(("chosen", "ok"), [(True, False), (False, True)])
async def test_a_refused_sender_is_a_finding_and_no_failure_of_the_login(chosen: bool, ok: bool) -> None:
    refusal = "550 5.7.60 SMTP; Client does not have permissions to send as this sender"
    script = Script(mail={"*": refusal})
    async with SmtpServer(script, mechanisms=["PLAIN"], credentials={"c@x.org": SECRET}) as server:
        more = {"from_address": "a@x.org"} if chosen else {}
        value = account(server, auth=AuthMethod.AUTO, username="c@x.org", password=SECRET, **more)
        steps = await tried(value)
        assert "QUIT" in server.commands
    assert steps["login"].ok
    assert steps["send_as"].code == "sender_refused"
    assert steps["send_as"].required is chosen
    assert refusal in steps["send_as"].detail
    assert "let this account send as" in steps["send_as"].cause
    assert steps["send_as"].remedy
    assert fine(steps) is ok


async def test_where_there_is_nothing_to_ask_it_says_so() -> None:
    async with SmtpServer() as server:
        steps = await tried(account(server))
        assert steps["send_as"].ok
        assert steps["send_as"].detail.startswith("skipped")
        assert not [line for line in server.commands if line.startswith("MAIL")]


async def test_a_sender_beyond_ascii_is_asked_about_where_the_server_can() -> None:
    for hide in (set(), {"SMTPUTF8"}):
        async with SmtpServer(Script(hide=set(hide))) as server:
            steps = await tried(account(server, from_address="jörg@example.org"))
            assert steps["send_as"].ok is (not hide)
            asked = [line for line in server.commands if line.startswith("MAIL")]
            assert asked == ([] if hide else ["MAIL FROM:<jörg@example.org> SMTPUTF8"])


async def test_without_tls_beyond_this_machine_it_is_said_what_that_means(monkeypatch: pytest.MonkeyPatch) -> None:
    async with SmtpServer() as server:
        assert "tls" not in await tried(account(server))
        monkeypatch.setattr("core.transport.check.is_loopback", lambda _: False)
        steps = await tried(account(server))
    assert (steps["tls"].code, steps["tls"].required) == ("no_tls", False)
    assert "in the clear" in steps["tls"].cause
    assert fine(steps)


async def test_an_accounts_own_rows_judge_the_sender_too() -> None:
    rule = ReplyRule(blame=Blame.TRANSIENT, code="550", text="greylisted")
    async with SmtpServer(Script(mail={"*": "550 greylisted, come back"})) as server:
        steps = await tried(account(server, from_address="a@x.org", reply_rules=(rule,)))
    assert "at the moment" in steps["send_as"].cause


async def test_a_server_that_wants_a_login_first() -> None:
    async with SmtpServer(require_auth=True) as server:
        steps = await tried(account(server, from_address="a@x.org"))
    assert (the_failure(steps).name, the_failure(steps).code) == ("send_as", "login_required")
