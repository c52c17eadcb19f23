"""Debian's Postfix, Exim and OpenSMTPD, each with a configuration of its own; all pass on to our scripted server."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from pathlib import Path

from tests.interop.mails import SIZE_LIMIT
from tests.interop.packages import Missing, Room, debian, needs_root, uid_of
from tests.interop.servers import PASSWORD, USER, Certificate, Passing, listening, why_not
from tests.support.smtp_server import SmtpServer

_MASTER = """\
{port} inet n - n - - smtpd
{tls_port} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""

_POSTFIX = """\
compatibility_level = 3.6
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.interop.example
mydestination =
mynetworks = 127.0.0.0/8
inet_protocols = ipv4
inet_interfaces = 127.0.0.1
relayhost = [127.0.0.1]:{sink}
maillog_file = /dev/stdout
alias_maps =
local_recipient_maps =
message_size_limit = {size}
smtputf8_enable = yes
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_tls_security_level = may
smtpd_tls_chain_files = {folder}/tls.pem
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{auth}
smtpd_tls_auth_only = yes
smtp_tls_security_level = none
"""

_EXIM = """\
primary_hostname = exim.interop.example
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = /var/spool/exim4
log_file_path = /var/spool/exim4/%slog
daemon_smtp_ports = {port} : {tls_port}
tls_on_connect_ports = {tls_port}
local_interfaces = 127.0.0.1
tls_advertise_hosts = *
tls_certificate = {chain}
tls_privatekey = {key}
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
chunking_advertise_hosts = *
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
pipelining_advertise_hosts = *
message_size_limit = {size}
acl_smtp_rcpt = accept
acl_smtp_data = accept
keep_environment =
add_environment =
queue_only = false
recipients_max = 1000
smtp_accept_queue_per_connection = 0
begin routers
out:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = {sink}
  hosts_avoid_tls = *
  allow_localhost
begin retry
* * F,1h,1s
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
"""

_OPENSMTPD = """\
pki localhost cert "{chain}"
pki localhost key "{key}"
table logins {{ "{user}" = "{password}" }}
smtp max-message-size "{size}"
listen on 127.0.0.1 port {port} tls pki localhost auth-optional <logins> hostname opensmtpd.interop.example
listen on 127.0.0.1 port {tls_port} smtps pki localhost auth-optional <logins> hostname opensmtpd.interop.example
action "out" relay host smtp://127.0.0.1:{sink}
match from any for any action "out"
"""


class Postfix(Passing):
    """smtpd, cleanup and smtp of Postfix. The logins are ours, over the protocol of Dovecot's auth service."""

    name = "Postfix"

    def __init__(self, root: Path, tls: Certificate, sink: SmtpServer) -> None:
        super().__init__(sink)
        self._root, self._tls = root, tls
        self._room: Room | None = None
        self._auth: asyncio.Server | None = None

    async def start(self) -> str:
        needs_root()
        package = debian("postfix", "postfix")
        users = ["postfix", "postdrop"]
        self._room = room = Room(package, self._root, users, ["/var/spool/postfix", "/var/lib/postfix"])
        os.chown(room.inside("/var/lib/postfix"), uid_of(users, "postfix"), -1)
        self._auth = await asyncio.start_server(_dovecot_auth, "127.0.0.1", 0)
        folder = self._root / "etc" / "postfix"
        folder.mkdir()
        (folder / "tls.pem").write_text(self._tls.key.read_text() + self._tls.chain.read_text())
        (folder / "master.cf").write_text(_MASTER.format(port=self.port, tls_port=self.tls_port))
        auth_port = self._auth.sockets[0].getsockname()[1]
        (folder / "main.cf").write_text(
            _POSTFIX.format(sink=self.sink.port, size=SIZE_LIMIT, folder="/etc/postfix", auth=auth_port)
        )
        for file in ("postfix-files", "dynamicmaps.cf"):
            if (package / "root/etc/postfix" / file).exists():
                shutil.copy(package / "root/etc/postfix" / file, folder)
        version = room.once("postconf -h mail_version").strip()
        await room.start("postfix start-fg")
        if not await listening(self.port):
            raise Missing(why_not(self.log()))
        return version

    async def stop(self) -> None:
        if self._room is not None:
            await self._room.stop()
        if self._auth is not None:
            self._auth.close()

    def log(self) -> str:
        return self._room.log if self._room else ""


async def _dovecot_auth(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Dovecot's authentication protocol 1.1, as much of it as PLAIN needs."""
    writer.write(b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t0123456789abcdef\nDONE\n")
    expected = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
    while line := await reader.readline():
        words = line.decode().rstrip("\n").split("\t")
        if words[0] == "AUTH":
            right = f"resp={expected}" in words
            writer.write((f"OK\t{words[1]}\tuser={USER}\n" if right else f"FAIL\t{words[1]}\n").encode())
    writer.close()


class Exim(Passing):
    """exim4-daemon-light."""

    name = "Exim"

    def __init__(self, root: Path, tls: Certificate, sink: SmtpServer) -> None:
        super().__init__(sink)
        self._root, self._tls = root, tls
        self._room: Room | None = None

    async def start(self) -> str:
        needs_root()
        package = debian("exim", "exim4-daemon-light", "exim4-base", "libidn12")
        users = ["Debian-exim"]
        self._room = room = Room(package, self._root, users, ["/var/spool/exim4"])
        os.chown(room.inside("/var/spool/exim4"), uid_of(users, users[0]), uid_of(users, users[0]))
        folder = self._root / "etc" / "exim4"
        folder.mkdir()
        for path in (self._tls.chain, self._tls.key):
            shutil.copy(path, folder)
            os.chown(folder / path.name, uid_of(users, users[0]), -1)
        (folder / "exim4.conf").write_text(
            _EXIM.format(
                port=self.port, tls_port=self.tls_port, sink=self.sink.port, size=SIZE_LIMIT, user=USER,
                password=PASSWORD, chain=f"/etc/exim4/{self._tls.chain.name}", key=f"/etc/exim4/{self._tls.key.name}",
            )
        )  # fmt: skip
        version = room.once("exim4 -C /etc/exim4/exim4.conf -bV").split()[2]
        await room.start("exim4 -C /etc/exim4/exim4.conf -bdf -q1m")
        if not await listening(self.port):
            raise Missing(why_not(self.log()))
        return version

    async def stop(self) -> None:
        if self._room is not None:
            await self._room.stop()

    def log(self) -> str:
        if self._room is None:
            return ""
        logs = sorted(self._room.inside("/var/spool/exim4").glob("*log"))
        return self._room.log + "".join(path.read_text(errors="replace")[-1000:] for path in logs if path.is_file())


class OpenSmtpd(Passing):
    """Debian's portable OpenSMTPD."""

    name = "OpenSMTPD"

    def __init__(self, root: Path, tls: Certificate, sink: SmtpServer) -> None:
        super().__init__(sink)
        self._root, self._tls = root, tls
        self._room: Room | None = None

    async def start(self) -> str:
        needs_root()
        package = debian("opensmtpd", "opensmtpd", "libevent-2.1-7")
        users = ["opensmtpd", "opensmtpq"]
        self._room = room = Room(package, self._root, users, ["/var/spool/smtpd", "/var/lib/opensmtpd", "/run"])
        room.inside("/var/spool/smtpd").chmod(0o711)
        (room.inside("/var/lib/opensmtpd") / "empty").mkdir()
        for path in (self._tls.chain, self._tls.key):
            shutil.copy(path, self._root / "etc")
        encrypted = room.once(f"/usr/libexec/opensmtpd/encrypt {PASSWORD}").strip()
        (self._root / "etc" / "smtpd.conf").write_text(
            _OPENSMTPD.format(
                port=self.port, tls_port=self.tls_port, sink=self.sink.port, size=SIZE_LIMIT, user=USER,
                password=encrypted, chain=f"/etc/{self._tls.chain.name}", key=f"/etc/{self._tls.key.name}",
            )
        )  # fmt: skip
        version = room.once("smtpd -h 2>&1 | sed -n 's/version: OpenSMTPD //p'").strip()
        await room.start("smtpd -d -f /etc/smtpd.conf")
        if not await listening(self.port):
            raise Missing(why_not(self.log()))
        return version

    async def stop(self) -> None:
        if self._room is not None:
            await self._room.stop()

    def log(self) -> str:
        return self._room.log if self._room else ""
