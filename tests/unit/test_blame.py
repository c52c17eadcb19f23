"""Whose fault a refusal is: the table of the providers' replies as they send them, and the general rules."""

from __future__ import annotations

import itertools

import pytest

from core.domain.blame import DAY, HOUR, MINUTE, RULES, SEARCHED_CHARS, Ruling, Said, judge
from core.domain.outcome import Blame
from core.domain.reply import Phase, Reply

SESSION = (Phase.DNS, Phase.CONNECT, Phase.TLS, Phase.BANNER, Phase.EHLO, Phase.STARTTLS)
ACCOUNT, SENDER, RECIPIENT, MESSAGE, TRANSIENT = (
    Blame.ACCOUNT,
    Blame.SENDER,
    Blame.RECIPIENT,
    Blame.MESSAGE,
    Blame.TRANSIENT,
)
FINAL, LATER = True, False
UNTIL_EDITED = None
NO_PAUSE = None  # only an account is paused


def reply(*wire: str) -> Reply:
    """A reply from its lines as they come over the wire."""
    return Reply(int(wire[0][:3]), tuple(line[4:] for line in wire))


def verdict(ruling: Ruling) -> tuple[Blame, bool, float | None]:
    return ruling.blame, ruling.final, ruling.pause_seconds


# --- the rows of the providers' table --------------------------------------------------------------------------------

GMAIL_TOO_FAST = reply(
    "450-4.2.1 The user you are trying to contact is receiving email too quickly.",
    "450-4.2.1 Please resend your message at a later time. If the user is able to",
    "450-4.2.1 receive email at that time, your message will be delivered. For more",
    "450-4.2.1 information, go to",
    "450 4.2.1  https://support.google.com/mail/?p=ReceivingRate d2e1a72fcca58-7 - gsmtp",
)
GMAIL_OVER_QUOTA = reply(
    "452-4.2.2 The recipient's inbox is out of storage space. Please direct the",
    "452-4.2.2 recipient to",
    "452 4.2.2  https://support.google.com/mail/?p=OverQuotaTemp 41be03b00d2f7-7 - gsmtp",
)
GMAIL_NO_SUCH_USER = reply(
    "550-5.1.1 The email account that you tried to reach does not exist. Please try",
    "550-5.1.1 double-checking the recipient's email address for typos or",
    "550-5.1.1 unnecessary spaces. For more information, go to",
    "550 5.1.1  https://support.google.com/mail/?p=NoSuchUser 5b1f17b1804b1-4 - gsmtp",
)
GMAIL_DAILY = reply(
    "550-5.4.5 Daily user sending limit exceeded. For more information on Gmail",
    "550-5.4.5 sending limits go to",
    "550 5.4.5  https://support.google.com/a/answer/166852 a1-20020a05600c - gsmtp",
)
GMAIL_RELAY_DAILY = reply(
    "550-5.7.1 Daily SMTP relay limit exceeded for customer. For more information on",
    "550-5.7.1 SMTP relay sending limits please contact your administrator or review",
    "550 5.7.1  https://support.google.com/a/answer/6140680 d9443c01a7336-2 - gsmtp",
)
GMAIL_RELAY_PEAK = reply(
    "450-4.2.1 Peak SMTP relay limit exceeded for customer. This is a temporary",
    "450-4.2.1 error. For more information on SMTP relay sending limits please",
    "450-4.2.1 contact your administrator or review",
    "450 4.2.1  https://support.google.com/a/answer/6140680 - gsmtp",
)
GMAIL_UNUSUAL_RATE = reply(
    "421-4.7.28 Gmail has detected an unusual rate of email originating from your",
    "421-4.7.28 SPF domain [example.com]. To protect our users from spam, email sent",
    "421 4.7.28 from your domain has been temporarily rate limited. - gsmtp",
)
GMAIL_BAD_CREDENTIALS = reply(
    "535-5.7.8 Username and Password not accepted. For more information, go to",
    "535 5.7.8  https://support.google.com/mail/?p=BadCredentials n3-2002 - gsmtp",
)
GMAIL_APP_PASSWORD = reply(
    "534-5.7.9 Application-specific password required. For more information, go to",
    "534 5.7.9  https://support.google.com/mail/?p=InvalidSecondFactor - gsmtp",
)
GMAIL_TOO_MANY_LOGINS = reply(
    "454-4.7.0 Too many login attempts, please try again later. For more",
    "454-4.7.0 information, go to",
    "454 4.7.0  https://support.google.com/mail/answer/7126229 - gsmtp",
)
GMAIL_TOO_LARGE = reply(
    "552-5.3.4 Your message exceeded Google's message size limits. To view our message",
    "552-5.3.4 size guidelines, go to",
    "552 5.3.4  https://support.google.com/mail/?p=MaxSizeError - gsmtp",
)
GMAIL_TOO_MANY_RCPT = reply(
    "452-4.5.3 Your message has too many recipients. For more information regarding",
    "452-4.5.3 Google's sending limits, go to",
    "452 4.5.3  https://support.google.com/mail/?p=TooManyRecipientsError - gsmtp",
)

OUTLOOK_CONCURRENT = reply(
    "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. "
    "[Hostname=AM0PR01MB1234.eurprd01.prod.exchangelabs.com]"
)
OUTLOOK_THREADS = reply(
    "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded. "
    "[Hostname=AM0PR01MB1234.eurprd01.prod.exchangelabs.com]"
)
OUTLOOK_QUOTA = reply(
    "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a "
    "permanent exception with message The message can't be submitted because the sender's submission quota was "
    "exceeded."
)
OUTLOOK_DAILY_RECIPIENTS = reply(
    "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients"
)
OUTLOOK_TENANT = reply(
    "550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for sending email to "
    "external recipients (tenant external recipient rate limit)"
)
OUTLOOK_TRIAL_TENANT = reply(
    "550 5.7.232 Your message can't be sent because your trial tenant has exceeded its daily limit for sending email "
    "to external recipients (tenant external recipient rate limit)"
)
OUTLOOK_SEND_AS = reply(
    "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process "
    "message due to a permanent exception with message Cannot submit message. 0.35250:5F000000, 1.36674:0A000000 "
    "[Hostname=AM0PR01MB1234.eurprd01.prod.exchangelabs.com]"
)
EXCHANGE_SEND_AS = reply("550 5.7.60 SMTP; Client does not have permissions to send as this sender")
OUTLOOK_FULL = reply(
    "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded; "
    "Failed to process message due to a permanent exception with message Cannot submit message."
)
OUTLOOK_BASIC_OFF = reply(
    "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. "
    "[AM0PR01CA0123.eurprd01.prod.exchangelabs.com 2026-03-01T10:00:00.000Z 08DC0123456789AB]"
)
OUTLOOK_UNSUCCESSFUL = reply(
    "535 5.7.3 Authentication unsuccessful [AM0PR01CA0123.eurprd01.prod.exchangelabs.com]",
)
OUTLOOK_ANONYMOUS = reply(
    "530 5.7.57 Client not authenticated to send mail. [AM0PR01CA0123.eurprd01.prod.exchangelabs.com]"
)
OUTLOOK_RETIRED = reply("550 5.7.30 Basic authentication is not supported for Client Submission.")
OUTLOOK_BUSY = reply(
    "451 4.7.500 Server busy. Please try again later from [192.0.2.7]. (S77719) "
    "[AM6EUR05FT012.eop-eur05.prod.protection.outlook.com]"
)
OUTLOOK_NO_RECIPIENT = reply(
    "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient bob@example.com not found by SMTP address lookup"
)
OUTLOOK_DISABLED = reply("550 5.2.1 Mailbox cannot be accessed [AM0PR01MB1234.eurprd01.prod.exchangelabs.com]")
OUTLOOK_TOO_LARGE = reply("552 5.3.4 Message size exceeds fixed maximum message size")
OUTLOOK_RECIPIENT_SIZE = reply("550 5.2.3 RESOLVER.RST.RecipSizeLimit; message too large for this recipient")
OUTLOOK_CONVERSION = reply(
    "554 5.6.0 STOREDRV.Submission.Exception:ConversionFailedException; Failed to process message due to a permanent "
    "exception with message Content conversion: Limits exceeded."
)

SES_CONNECTIONS = reply("421 Too many concurrent SMTP connections")
SES_DAILY = reply("454 Throttling failure: Daily message quota exceeded.")
SES_RATE = reply("454 Throttling failure: Maximum sending rate exceeded.")
SES_NOT_VERIFIED = reply(
    "554 Message rejected: Email address is not verified. The following identities failed the check in region "
    "EU-WEST-1: Shop <shop@example.com>, shop@example.com"
)
SES_TOO_LONG = reply("552 Message is too long.")

PUNISHMENTS = [
    reply("550 5.2.251 Sender throttled due to continuous mailbox full errors."),
    reply("550 5.2.252 Sender throttled due to continuous send as denied errors."),
    reply("550 5.2.253 Sender throttled due to continuous invalid license errors."),
    reply("550 5.2.254 Sender throttled due to continuous too many recipients errors."),
    reply("550 5.2.255 Sender throttled due to continuous invalid recipients errors."),
]


GMAIL_RELAY_USER = reply(
    "550-5.4.5 Daily SMTP relay sending limit exceeded for user. For more information",
    "550-5.4.5 on SMTP relay sending limits please contact your administrator or review",
    "550 5.4.5  https://support.google.com/a/answer/6140680 d9443c01a7336-2 - gsmtp",
)
GMAIL_WRAPPED = reply(  # no promise of a provider keeps the words that count on one line
    "550-5.7.1 Your organisation has reached its limit. Daily SMTP",
    "550-5.7.1 relay limit exceeded for customer.",
    "550 5.7.1  https://support.google.com/a/answer/6140680 d9443c01a7336-2 - gsmtp",
)
GMAIL_POLICY_RCPT = reply(
    "452-4.5.3 Domain policy size per transaction exceeded, please try this recipient in",
    "452 4.5.3 a separate transaction. d2e1a72fcca58-7 - gsmtp",
)
GMAIL_TEMPORARY = reply("421 4.3.0 Temporary System Problem. Try again later (10). d2-2002 - gsmtp")
GMAIL_BUSY = reply("421 4.4.5 Server busy, try again later. d2-2002 - gsmtp")
GMAIL_CLOSING = reply("421-4.7.0 Try again later, closing connection. (MAIL)", "421 4.7.0 d2-2002 - gsmtp")
GMAIL_BROWSER = reply(
    "534-5.7.14 <https://accounts.google.com/signin/continue?sarp=1&scc=1> Please log in",
    "534-5.7.14 via your web browser and then try again.",
    "534-5.7.14  Learn more at",
    "534 5.7.14  https://support.google.com/mail/answer/78754 n3-2002 - gsmtp",
)
OUTLOOK_MAILBOX_OFF = reply(
    "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit "
    "https://aka.ms/smtp_auth_disabled for more information. [AM0PR01CA0123.eurprd01.prod.exchangelabs.com]"
)
OUTLOOK_LOCKED = reply(
    "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy. Contact "
    "your administrator. [AM0PR01CA0123.eurprd01.prod.exchangelabs.com]"
)

AUTH, MAIL, RCPT, DATA, BODY, DOT = Phase.AUTH, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT
ENVELOPE, CONTENT = (MAIL, RCPT), (DATA, BODY, DOT)
MAIL_ON = (*ENVELOPE, *CONTENT)
LOGGED_IN = (AUTH, *MAIL_ON)
ANYWHERE = (Phase.BANNER, Phase.EHLO, *LOGGED_IN)
PER_RECIPIENT = (RCPT, *CONTENT)

# where it can come, what is said, whose fault, for good, how long the account rests, longer each time, its name
TABLE = [
    # any 5xx at AUTH
    (
        (AUTH,),
        reply("504 5.7.4 Unrecognized authentication type"),
        ACCOUNT,
        LATER,
        UNTIL_EDITED,
        False,
        "login_refused",
    ),
    ((AUTH,), GMAIL_BROWSER, ACCOUNT, LATER, UNTIL_EDITED, False, "login_refused"),
    # fewer connections, 1 to 2 minutes
    (ANYWHERE, OUTLOOK_CONCURRENT, ACCOUNT, LATER, 90, False, "too_many_connections"),
    (ANYWHERE, OUTLOOK_THREADS, ACCOUNT, LATER, 90, False, "too_many_connections"),
    (ANYWHERE, SES_CONNECTIONS, ACCOUNT, LATER, 90, False, "too_many_connections"),
    # quotas: tried hourly
    (MAIL_ON, OUTLOOK_QUOTA, ACCOUNT, LATER, HOUR, False, "quota_exceeded"),
    (MAIL_ON, OUTLOOK_DAILY_RECIPIENTS, ACCOUNT, LATER, HOUR, False, "quota_exceeded"),
    (LOGGED_IN, GMAIL_DAILY, ACCOUNT, LATER, HOUR, False, "quota_exceeded"),
    (LOGGED_IN, GMAIL_RELAY_USER, ACCOUNT, LATER, HOUR, False, "quota_exceeded"),
    (LOGGED_IN, GMAIL_RELAY_DAILY, ACCOUNT, LATER, HOUR, False, "quota_exceeded"),
    (LOGGED_IN, GMAIL_WRAPPED, ACCOUNT, LATER, HOUR, False, "quota_exceeded"),
    (LOGGED_IN, SES_DAILY, ACCOUNT, LATER, HOUR, False, "quota_exceeded"),
    # the tenant
    (LOGGED_IN, OUTLOOK_TENANT, ACCOUNT, LATER, HOUR, False, "tenant_blocked"),
    (LOGGED_IN, OUTLOOK_TRIAL_TENANT, ACCOUNT, LATER, HOUR, False, "tenant_blocked"),
    # this From may not use this account
    (MAIL_ON, OUTLOOK_SEND_AS, SENDER, FINAL, NO_PAUSE, False, "sender_refused"),
    (MAIL_ON, EXCHANGE_SEND_AS, SENDER, FINAL, NO_PAUSE, False, "sender_refused"),
    (CONTENT, SES_NOT_VERIFIED, SENDER, FINAL, NO_PAUSE, False, "sender_refused"),
    # the mailbox that sends
    *[(LOGGED_IN, said, ACCOUNT, LATER, UNTIL_EDITED, False, "mailbox_refuses") for said in PUNISHMENTS],
    (CONTENT, OUTLOOK_FULL, ACCOUNT, LATER, UNTIL_EDITED, False, "mailbox_refuses"),
    # logins
    *[
        (LOGGED_IN, said, ACCOUNT, LATER, UNTIL_EDITED, False, "login_refused")
        for said in (
            OUTLOOK_BASIC_OFF,
            OUTLOOK_MAILBOX_OFF,
            OUTLOOK_LOCKED,
            OUTLOOK_UNSUCCESSFUL,
            OUTLOOK_ANONYMOUS,
            OUTLOOK_RETIRED,
            GMAIL_BAD_CREDENTIALS,
            GMAIL_APP_PASSWORD,
        )
    ],
    (LOGGED_IN, GMAIL_TOO_MANY_LOGINS, ACCOUNT, LATER, 15 * MINUTE, False, "login_throttled"),
    # the rate
    (LOGGED_IN, SES_RATE, ACCOUNT, LATER, 10, True, "sending_too_fast"),
    (LOGGED_IN, GMAIL_RELAY_PEAK, ACCOUNT, LATER, 10, True, "sending_too_fast"),
    # moods
    *[
        (MAIL_ON, said, TRANSIENT, LATER, NO_PAUSE, False, "try_later")
        for said in (OUTLOOK_BUSY, GMAIL_TEMPORARY, GMAIL_BUSY, GMAIL_CLOSING, GMAIL_UNUSUAL_RATE)
    ],
    # that recipient, later
    (PER_RECIPIENT, GMAIL_TOO_FAST, RECIPIENT, LATER, NO_PAUSE, False, "recipient_deferred"),
    (PER_RECIPIENT, GMAIL_OVER_QUOTA, RECIPIENT, LATER, NO_PAUSE, False, "recipient_deferred"),
    # more recipients than one transaction may have
    *[
        ((RCPT,), said, MESSAGE, LATER, NO_PAUSE, False, "too_many_recipients")
        for said in (
            GMAIL_TOO_MANY_RCPT,
            GMAIL_POLICY_RCPT,
            reply("452 4.5.3 Recipient limit reached"),
            reply("452 Too many recipients"),
            reply("552 Too many recipients"),
            reply("552 5.5.3 Too many recipients"),
        )
    ],
    # that recipient, never
    (PER_RECIPIENT, GMAIL_NO_SUCH_USER, RECIPIENT, FINAL, NO_PAUSE, False, "recipient_refused"),
    (PER_RECIPIENT, OUTLOOK_NO_RECIPIENT, RECIPIENT, FINAL, NO_PAUSE, False, "recipient_refused"),
    (PER_RECIPIENT, OUTLOOK_DISABLED, RECIPIENT, FINAL, NO_PAUSE, False, "recipient_refused"),
    # that message, never
    *[
        (MAIL_ON, said, MESSAGE, FINAL, NO_PAUSE, False, "message_refused")
        for said in (
            OUTLOOK_TOO_LARGE,
            GMAIL_TOO_LARGE,
            OUTLOOK_RECIPIENT_SIZE,
            OUTLOOK_CONVERSION,
            SES_TOO_LONG,
            reply("550 5.6.0 Lone CR or LF in body (see RFC2822 section 2.3)"),
            reply("554 5.6.211 Invalid MIME Content: Single text value size (32780) exceeded allowed maximum"),
        )
    ],
    ((MAIL, *CONTENT), reply("501 5.5.2 Cannot decode response"), MESSAGE, FINAL, NO_PAUSE, False, "message_refused"),
    # the server has lost the session, or blocks all that comes from here: nothing about the mail
    (
        (MAIL, RCPT),
        reply("503 5.5.1 Error: authentication expired, send AUTH first"),
        ACCOUNT,
        LATER,
        MINUTE,
        True,
        "login_required",
    ),
    *[
        ((MAIL, RCPT, *CONTENT), said, TRANSIENT, LATER, NO_PAUSE, False, "try_later")
        for said in (
            reply("503 5.5.1 Error: nested MAIL command"),
            reply("500 5.5.1 unrecognized command"),
            reply("502 5.5.1 Command not implemented"),
            reply("555 5.5.4 Unsupported option: SIZE"),
        )
    ],
    ((MAIL, RCPT, DOT), reply("535 Authentication required"), ACCOUNT, LATER, UNTIL_EDITED, False, "login_required"),
    *[
        ((MAIL, RCPT, DOT), said, ACCOUNT, LATER, HOUR, False, "account_blocked")
        for said in (
            reply("550 5.7.64 TenantAttribution; Relay Access Denied"),
            reply("550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP."),
            reply(
                "550 5.1.8 Access denied, bad outbound sender. For more information please go to http://go.microsoft.com/fwlink/"
            ),
            reply("550 5.7.501 Access denied, spam abuse detected. Please contact customer support."),
            reply("550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains"),
            reply("550 5.7.606 Access denied, banned sending IP [192.0.2.7]"),
        )
    ],
    (
        (MAIL, RCPT),
        reply("554 5.7.1 <unknown[192.0.2.7]>: Client host rejected: Access denied"),
        ACCOUNT,
        LATER,
        HOUR,
        False,
        "account_blocked",
    ),
    (
        (MAIL, RCPT),
        reply("554 5.7.1 Service unavailable; Client host [192.0.2.7] blocked using zen.spamhaus.org"),
        ACCOUNT,
        LATER,
        HOUR,
        False,
        "account_blocked",
    ),
]


@pytest.mark.parametrize(
    ("phase", "said", "blame", "final", "pause_seconds", "passing", "code"),
    [(phase, *row) for phases, *row in TABLE for phase in phases],
)
def test_a_reply_of_the_table_is_blamed_as_the_table_says(
    phase: Phase, said: Reply, blame: Blame, final: bool, pause_seconds: float | None, passing: bool, code: str
) -> None:
    ruling = judge(phase, said)
    assert (*verdict(ruling), ruling.passing, ruling.code) == (blame, final, pause_seconds, passing, code)


def test_each_row_but_the_general_ones_is_met_by_a_real_reply() -> None:
    met = [
        next(rule for rule in RULES if phase in rule.phases and rule.matches(Said.of(said)))
        for phases, said, *_ in TABLE
        for phase in phases
    ]
    particular = [rule for rule in RULES if rule.codes.pattern not in ("...", "5..") or rule.text or rule.enhanced]
    assert [rule for rule in particular if rule not in met and rule.ruling.code != "login_required"] == []


def test_only_the_rest_of_too_many_recipients_is_the_messages_and_not_final() -> None:
    """By this delivery.py knows what goes in a new transaction at once."""
    assert judge(Phase.RCPT, GMAIL_TOO_MANY_RCPT).code == "too_many_recipients"
    rest_now = {r.ruling.code for r in RULES if r.ruling.blame is MESSAGE and not r.ruling.final}
    assert rest_now == {"too_many_recipients"}


def test_no_pause_with_an_end_lasts_longer_than_a_day() -> None:
    assert max(rule.ruling.pause_seconds or 0 for rule in RULES) <= DAY


@pytest.mark.parametrize(
    ("sender", "recipients", "named", "blame"),
    [
        ("shop@example.com", ["bob@example.net"], "shop@example.com", SENDER),
        ("Shop@Example.com", ["bob@example.net"], "shop@example.com, bob@example.net", SENDER),
        ("bounce@example.com", ["bob@example.net"], "Shop <shop@example.com>", SENDER),  # the From header's
        ("shop@example.com", ["bob@example.net", "eve@example.net"], "bob@example.net", MESSAGE),  # the sandbox's
        ("shop@example.com", ["Bob@Example.net"], "bob@example.net", MESSAGE),
        ("shop@example.com", ["shop@example.com"], "shop@example.com", SENDER),
        ("shop@example.com", ["bob@example.net"], "example.com", SENDER),  # a domain: no address named
    ],
)
def test_an_unverified_address_is_the_senders_fault_only_where_it_names_the_sender(
    sender: str, recipients: list[str], named: str, blame: Blame
) -> None:
    said = reply(
        f"554 Message rejected: Email address is not verified. The following identities failed the check in region "
        f"US-EAST-1: {named}"
    )
    ruling = judge(Phase.DOT, said, sender=sender, recipients=recipients)
    assert (ruling.blame, ruling.final) == (blame, True)


# --- the general rules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", SESSION)
@pytest.mark.parametrize(
    "said",
    [
        reply("554 5.7.1 Service unavailable; client host [192.0.2.7] blocked"),
        reply("550 5.7.3 Go away"),  # what would be for good after a login is not before it
        reply("550 5.7.30 Basic authentication is not supported"),
        reply("550 5.7.233 Tenant exceeded"),
        reply("550 5.2.251 Sender throttled"),
        reply("500 unknown command"),
        reply("421 4.3.2 Service not available"),
        reply("421-4.7.0 Try again later, closing connection. (EHLO)", "421 4.7.0 x1-2002 - gsmtp"),
        reply("421 4.7.28 Unusual rate of mail"),
        OUTLOOK_BUSY,
        reply("451 greylisted"),
        reply("599 never heard of"),
    ],
)
def test_before_the_login_every_refusal_is_the_accounts_and_passes(phase: Phase, said: Reply) -> None:
    ruling = judge(phase, said)
    assert (*verdict(ruling), ruling.passing) == (ACCOUNT, LATER, MINUTE, True)


@pytest.mark.parametrize("code", [500, 501, 503, 504, 530, 534, 535, 538, 550, 554, 599])
@pytest.mark.parametrize("text", ["", "5.7.0 no", "5.7.8 no", "5.1.1 no", "5.6.0 no", "no"])
def test_a_refused_login_pauses_until_somebody_acts(code: int, text: str) -> None:
    ruling = judge(Phase.AUTH, Reply(code, (text,)))
    assert (*verdict(ruling), ruling.code) == (ACCOUNT, LATER, UNTIL_EDITED, "login_refused")


@pytest.mark.parametrize(
    "said", ["454 4.7.0 Temporary authentication failure", "421 4.7.0 Try again later", "432 wait"]
)
def test_a_login_that_is_put_off_passes(said: str) -> None:
    ruling = judge(Phase.AUTH, reply(said))
    assert (*verdict(ruling), ruling.passing, ruling.code) == (ACCOUNT, LATER, MINUTE, True, "login_deferred")


@pytest.mark.parametrize(
    ("phase", "said", "blame", "final"),
    [
        (Phase.MAIL, "550 5.7.1 Sender address rejected", SENDER, FINAL),
        (Phase.MAIL, "553 5.1.8 Sender domain does not exist", SENDER, FINAL),
        (Phase.MAIL, "550 5.1.1 No such sender", SENDER, FINAL),  # no recipient was named yet
        (Phase.MAIL, "450 4.2.1 Later", TRANSIENT, LATER),
        (Phase.MAIL, "451 4.3.0 Error in processing", TRANSIENT, LATER),
        (Phase.RCPT, "550 No such user", RECIPIENT, FINAL),
        (Phase.RCPT, "553 5.1.3 Bad address syntax", RECIPIENT, FINAL),
        (Phase.RCPT, "501 5.5.2 Syntax error in this address", RECIPIENT, FINAL),
        (Phase.RCPT, "599 what", RECIPIENT, FINAL),
        (Phase.RCPT, "451 4.7.1 Greylisted", RECIPIENT, LATER),
        (Phase.RCPT, "498 what", RECIPIENT, LATER),
        (Phase.DATA, "554 No valid recipients", MESSAGE, FINAL),
        (Phase.DATA, "451 4.3.0 Later", TRANSIENT, LATER),
        (Phase.BODY, "552 5.2.2 Stop", MESSAGE, FINAL),
        (Phase.DOT, "554 5.7.1 Spam message rejected", MESSAGE, FINAL),
        (Phase.DOT, "599 what", MESSAGE, FINAL),
        (Phase.DOT, "451 4.3.0 Queue file write error", TRANSIENT, LATER),
        (Phase.DOT, "421 4.4.2 Timeout", TRANSIENT, LATER),
        (Phase.RSET, "500 what", TRANSIENT, LATER),  # says nothing of any message
        (Phase.QUIT, "500 what", TRANSIENT, LATER),
    ],
)
def test_what_no_row_knows_goes_by_its_phase(phase: Phase, said: str, blame: Blame, final: bool) -> None:
    ruling = judge(phase, reply(said))
    assert verdict(ruling) == (blame, final, NO_PAUSE)


@pytest.mark.parametrize(
    ("phase", "said", "blame", "final"),
    [
        (Phase.RCPT, "550 4.2.1 Too quickly", RECIPIENT, FINAL),
        (Phase.RCPT, "450 5.1.1 No such user", RECIPIENT, LATER),
        (Phase.DOT, "450 5.6.0 Content", TRANSIENT, LATER),
        (Phase.DOT, "554 4.7.500 Busy", MESSAGE, FINAL),
        (Phase.RCPT, "450 5.7.233 Tenant", RECIPIENT, LATER),
    ],
)
def test_the_code_wins_over_a_contradicting_enhanced_code(phase: Phase, said: str, blame: Blame, final: bool) -> None:
    assert verdict(judge(phase, reply(said)))[:2] == (blame, final)


@pytest.mark.parametrize(
    ("phase", "said", "blame", "final"),
    [
        # the codes of quotas without their words
        (RCPT, "550 5.4.5 Congestion at the destination", RECIPIENT, FINAL),
        (RCPT, "550 5.4.5 The recipient's mailbox quota is exceeded", RECIPIENT, FINAL),
        (RCPT, "550 5.7.1 Relaying denied", RECIPIENT, FINAL),
        (DOT, "550 5.7.1 Message rejected: its content looks like spam", MESSAGE, FINAL),
        (DOT, "550 5.7.1 Daily report of rejected mail: limit your links", MESSAGE, FINAL),
        (DOT, "550 5.1.9 no", MESSAGE, FINAL),
        (DOT, "550 5.1.91 no", MESSAGE, FINAL),
        (DOT, "554 5.2.0 STOREDRV.Submission.Exception:CorruptDataException; Failed", MESSAGE, FINAL),
        (DOT, "454 Throttling failure: of some other kind", TRANSIENT, LATER),
        (DOT, "451 4.3.0 Daily message quota exceeded", TRANSIENT, LATER),
        # of the tenant, of the mailbox
        (DOT, "550 5.7.23 SPF validation failed", MESSAGE, FINAL),
        (RCPT, "550 5.7.231 no", RECIPIENT, FINAL),
        (RCPT, "550 5.7.2333 no", RECIPIENT, FINAL),
        (RCPT, "550 5.2.250 something else", RECIPIENT, FINAL),
        (DOT, "550 5.2.256 something else", MESSAGE, FINAL),
        (RCPT, "554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException", RECIPIENT, FINAL),
        (DOT, "554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException", MESSAGE, FINAL),
        # of connections, logins and rates
        (RCPT, "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded", RECIPIENT, LATER),
        (MAIL, "421 4.3.2 Service shutting down", TRANSIENT, LATER),
        (MAIL, "421 4.7.1 Too many errors on this connection", TRANSIENT, LATER),
        (RCPT, "550 5.7.3 Security conversion required", RECIPIENT, FINAL),
        (DOT, "550 5.7.8 no", MESSAGE, FINAL),
        (DOT, "554 5.7.30 no", MESSAGE, FINAL),
        (MAIL, "450 4.2.1 Mailbox busy", TRANSIENT, LATER),
        # of the sender
        (DOT, "550 5.7.6 no", MESSAGE, FINAL),
        (RCPT, "550 5.7.504 Recipient address rejected: Access denied", RECIPIENT, FINAL),
        (RCPT, "550 5.1.8 <jo@nowhere>: Sender address rejected: Domain not found", RECIPIENT, FINAL),
        (DOT, "554 Message rejected: Address blacklisted.", MESSAGE, FINAL),
        # of recipients
        (RCPT, "552 5.2.2 Mailbox full", RECIPIENT, FINAL),
        (DOT, "452 4.5.3 Too many recipients", TRANSIENT, LATER),
        (DOT, "552 Too many recipients", MESSAGE, FINAL),
        (RCPT, "452 4.3.1 Insufficient system storage", RECIPIENT, LATER),
        (RCPT, "450 4.2.2 Mailbox full", RECIPIENT, LATER),
        (MAIL, "550 5.1.10 no", SENDER, FINAL),
        # of the message
        (MAIL, "501 5.5.4 Invalid arguments", SENDER, FINAL),
        (RCPT, "501 5.5.2 Syntax error", RECIPIENT, FINAL),
        (DOT, "552 5.2.30 no", MESSAGE, FINAL),
    ],
)
def test_look_alikes_go_by_the_general_rule(phase: Phase, said: str, blame: Blame, final: bool) -> None:
    assert verdict(judge(phase, reply(said))) == (blame, final, NO_PAUSE)


def test_of_a_reply_without_end_only_the_beginning_is_searched() -> None:
    said = Reply(550, tuple(f"5.4.5 {'daily ' * 80}" for _ in range(1000)))
    assert verdict(judge(DOT, said)) == (MESSAGE, FINAL, NO_PAUSE)
    assert max(map(len, Said.of(said).texts)) == SEARCHED_CHARS


@pytest.mark.parametrize("said", ["530 5.7.0 Must issue a STARTTLS command first", "538 Encryption required"])
def test_a_login_or_tls_asked_for_too_late_is_the_accounts_fault(said: str) -> None:
    assert verdict(judge(Phase.MAIL, reply(said))) == (ACCOUNT, LATER, UNTIL_EDITED)


def test_every_row_can_be_reached() -> None:
    """A row behind a wider one would be dead."""
    shadowed = [
        (first, second)
        for first, second in itertools.combinations(RULES, 2)
        if first.phases >= second.phases
        and first.codes == second.codes
        and first.text is None
        and first.enhanced in (None, second.enhanced)
    ]
    assert shadowed == []


@pytest.mark.parametrize("phase", [*SESSION, Phase.AUTH])
def test_no_row_blames_anybody_but_the_account_before_mail(phase: Phase) -> None:
    assert {rule.ruling.blame for rule in RULES if phase in rule.phases} == {ACCOUNT}


@pytest.mark.parametrize("phase", SESSION)
def test_no_row_pauses_without_an_end_before_the_login(phase: Phase) -> None:
    assert None not in [rule.ruling.pause_seconds for rule in RULES if phase in rule.phases]


def test_who_pauses_an_account_says_what_to_do() -> None:
    assert [rule for rule in RULES if rule.ruling.blame is ACCOUNT and not rule.ruling.remedy] == []
