"""STARTTLS: messages of 4 KB wait; ten connections to the server of the tests."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.peers.field import Field
from benchmarks.peers.sink import python_sink
from benchmarks.result import Context, Result

NAME = "tls"
ABOUT = "3,000 messages of 4 KB wait and are sent over 10 connections with STARTTLS, the certificate verified"

TIMES_AIOSMTPLIB = 3.0
NOTES = {
    "aiosmtplib": "10 connections; send_message of what email parsed",
    "aiosmtplib, octets": "10 connections; sendmail of the file as it is",
}


def run(context: Context) -> Result:
    """Messages a second of MPU and of aiosmtplib's pool."""
    ca_file = context.folder / "ca.pem"
    with ExitStack() as stack:
        port = stack.enter_context(python_sink(ca_file=ca_file))
        field = Field(context, stack, port, count=200 if context.small else 3000, size=4096)
        field.mpu(host="localhost", security="starttls", tls_ca_file=str(ca_file))
        field.library("aiosmtplib", "aiosmtplib", ca_file=ca_file)
        field.library("aiosmtplib, octets", "aiosmtplib", octets=True, ca_file=ca_file)
        field.race()
    field.rates("4 KB over TLS", "msg/s", 1, NOTES)
    field.wanted(TIMES_AIOSMTPLIB, "aiosmtplib")
    return field.result
