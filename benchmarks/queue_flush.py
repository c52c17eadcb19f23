"""5,000 messages of 4 KB wait; ten connections to one server."""

from __future__ import annotations

from benchmarks.peers import Missing
from benchmarks.peers.field import Field
from benchmarks.result import Context, Result

NAME = "queue_flush"
ABOUT = "5,000 messages of 4 KB wait and are sent over 10 connections to smtp-sink"

TIMES_POSTFIX = 5.0
TIMES_AIOSMTPLIB = 6.0
TIMES_GENERATOR = 0.35
NOTES = {
    "Postfix": "postqueue -f of its deferred queue",
    "Exim": "4 queue runners",
    "aiosmtplib": "10 connections; send_message of what email parsed",
    "aiosmtplib, octets": "10 connections; sendmail of the file as it is",
    "smtplib": "1 connection; send_message of what email parsed",
    "smtp-source": "20 connections; no disk, no history",
}


def run(context: Context) -> Result:
    """Everybody's messages a second."""
    try:
        with Field.before_smtp_sink(context, count=300 if context.small else 5000, size=4096) as field:
            field.mpu()
            field.postfix()
            field.exim()
            field.library("aiosmtplib", "aiosmtplib")
            field.library("aiosmtplib, octets", "aiosmtplib", octets=True)
            field.library("smtplib", "smtplib")
            field.generator()
            field.race()
    except Missing as missing:
        return Result(left_out=[f"all: {missing}"])
    field.rates("4 KB", "msg/s", 1, NOTES)
    field.wanted(TIMES_POSTFIX, "Postfix")
    field.wanted(TIMES_AIOSMTPLIB, "aiosmtplib")
    field.wanted(TIMES_GENERATOR, "smtp-source")
    return field.result
