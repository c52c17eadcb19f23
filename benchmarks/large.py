"""200 messages of 1 MB wait; ten connections to one server."""

from __future__ import annotations

from benchmarks.peers import Missing
from benchmarks.peers.field import Field
from benchmarks.result import Context, Result

NAME = "large"
ABOUT = "200 messages of 1 MB wait and are sent over 10 connections to smtp-sink"

TIMES_GENERATOR = 0.95
TIMES_POSTFIX = 1.0
_OCTETS = 1 << 20
NOTES = {
    "Postfix": "postqueue -f of its deferred queue",
    "aiosmtplib": "10 connections; sendmail of the file as it is",
    "smtplib": "1 connection; sendmail of the file as it is",
    "smtp-source": "20 connections; no disk, no history",
}


def run(context: Context) -> Result:
    """Everybody's MB (of 1,000,000 octets) a second."""
    try:
        with Field.before_smtp_sink(context, count=20 if context.small else 200, size=_OCTETS) as field:
            field.mpu()
            field.postfix()
            field.library("aiosmtplib", "aiosmtplib", octets=True)
            field.library("smtplib", "smtplib", octets=True)
            field.generator()
            field.race()
    except Missing as missing:
        return Result(left_out=[f"all: {missing}"])
    field.rates("1 MB", "MB/s", _OCTETS / 1e6, NOTES)
    field.wanted(TIMES_GENERATOR, "smtp-source")
    field.wanted(TIMES_POSTFIX, "Postfix")
    return field.result
