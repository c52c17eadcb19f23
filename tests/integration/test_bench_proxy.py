"""The proxy of the benchmarks counts round trips by what had to be heard before something was said."""

from __future__ import annotations

import smtplib
import time

from benchmarks.mails import mail
from benchmarks.peers.clients import envelope
from benchmarks.peers.proxy import distance
from tests.support.smtp_server import ThreadedSmtpServer

_SECONDS = 0.01


def test_each_wait_for_the_server_is_one_round_trip() -> None:
    sender, recipient, data = envelope(mail(1, 4096))
    with ThreadedSmtpServer() as server, distance(server.port, _SECONDS) as (port, round_trips):
        with smtplib.SMTP("127.0.0.1", port) as connection:
            connection.ehlo()
            assert round_trips() == 2  # greeting, EHLO
            began = time.monotonic()
            connection.sendmail(sender, [recipient], data)
            connection.sendmail(sender, [recipient], data)
            seconds = time.monotonic() - began
            assert round_trips() == 2 + 2 * 4  # MAIL, RCPT, DATA, the final dot: it waits for each
        assert seconds >= 8 * 2 * _SECONDS
        assert [message.body for message in server.messages] == [data, data]


def test_what_is_sent_ahead_shares_a_round_trip() -> None:
    sender, recipient, _ = envelope(mail(1, 4096))
    with ThreadedSmtpServer() as server, distance(server.port, _SECONDS) as (port, round_trips):
        with smtplib.SMTP("127.0.0.1", port) as connection:
            connection.ehlo()
            before = round_trips()
            connection.send(f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n")
            assert [connection.getreply()[0] for _ in range(3)] == [250, 250, 354]
            assert round_trips() - before == 1
            connection.send(b"\r\n.\r\n")
            assert connection.getreply()[0] == 250
            assert round_trips() - before == 2


def test_a_connection_that_the_server_refuses_is_closed() -> None:
    with ThreadedSmtpServer() as server:
        port = server.port
    with distance(port, _SECONDS) as (proxied, _):
        try:
            smtplib.SMTP("127.0.0.1", proxied, timeout=10)
        except smtplib.SMTPServerDisconnected:
            return
        raise AssertionError("it greeted")
