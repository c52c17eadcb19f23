"""What a password may be read from, and above all from what not."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlmodel import Session

from core.domain.account import Account
from core.runtime.secret_sources import MAX_SECRET_BYTES, SecretMissing, SecretSources
from core.settings import Settings
from core.store import keys
from core.store.store import Store
from tests.support.clock import ManualClock

SECRET = "pl4nted-S3cret-7Q"
API_KEY = "the-services-own-api-key-" + "0" * 20
SEALING_KEY = "c2VjcmV0LWtleS1vZi10aGUtc2VydmljZS0wMDAwMDA="


def sources(root: Path, environ: dict[str, str] | None = None, **changes: Any) -> SecretSources:
    (root / "secrets").mkdir(exist_ok=True)
    (root / "data").mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "data_dir": root / "data",
        "secret_files": (root / "secrets",),
        "api_key": SecretStr(API_KEY),
        "secret_key": SecretStr(f"{SEALING_KEY},older-{SEALING_KEY}"),
    }
    return SecretSources(Settings(**{**values, **changes}), environ or {})


def file_with(root: Path, content: bytes | str, name: str = "office") -> str:
    path = root / "secrets" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return f"file:{path}"


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (SECRET, SECRET),
        (SECRET + "\n", SECRET),
        (SECRET + "\r\n", SECRET),
        (f" {SECRET} ", f" {SECRET} "),
        ("pässwört\n", "pässwört"),
    ],
)
def test_a_file_is_taken_as_it_is_but_for_the_last_line_end(tmp_path: Path, content: str, value: str) -> None:
    assert sources(tmp_path).resolve(file_with(tmp_path, content)) == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("two\nlines\n", "more than one line"),
        (SECRET + "\n\n", "more than one line"),
        ("nul\x00", "more than one line"),
        (b"\xff\xfe", "no UTF-8"),
        ("x" * (MAX_SECRET_BYTES + 1), "larger than"),
        (API_KEY + "\n", "key of the service"),
        (SEALING_KEY, "key of the service"),
        (f"older-{SEALING_KEY}\n", "key of the service"),
    ],
)
def test_what_no_password_can_be(tmp_path: Path, content: bytes | str, words: str) -> None:
    with pytest.raises(SecretMissing, match=words) as caught:
        sources(tmp_path).resolve(file_with(tmp_path, content))
    assert API_KEY not in str(caught.value)
    assert SEALING_KEY not in str(caught.value)
    assert not sources(tmp_path).readable(file_with(tmp_path, content))


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize(
    ("own", "form"),
    [
        ("secret.key", "{0}"),
        ("secret.key", "{1}"),
        ("secret.key", "# comment\n{0}\n{1}\n"),
        ("secret.key", "{3}"),
        ("secret.key", "prefix {1} suffix"),
        ("api-key", "{2}"),
        ("api-key", "{2}\r\n"),
    ],
)
def test_a_copy_of_a_key_that_lies_in_the_data_directory(tmp_path: Path, own: str, form: str, lines: bool) -> None:
    outside = sources(tmp_path, api_key=None, secret_key=None)
    keys = [Fernet.generate_key().decode(), Fernet.generate_key().decode(), "mpu_" + secrets.token_urlsafe(32)]
    content = form.format(*keys, keys[0].rstrip("="))
    reference = file_with(tmp_path, content)
    if "\n{1}" not in form or lines:
        assert outside.resolve(reference, lines=lines), "it is nobody's key yet"
    written = f"# Opens the passwords\n{keys[0]}\n{keys[1]}\n" if own == "secret.key" else keys[2] + "\n"
    (tmp_path / "data" / own).write_text(written)
    with pytest.raises(SecretMissing, match="key of the service") as caught:
        outside.resolve(reference, lines=lines)
    assert not any(key in str(caught.value) for key in keys)
    assert outside.own_key(reference) is not None
    (tmp_path / "secrets" / "link").hardlink_to(tmp_path / "data" / own)
    assert outside.own_key(f"file:{tmp_path}/secrets/link") is not None


async def test_api_keys_of_the_database_and_encryption_keys_in_use(tmp_path: Path) -> None:
    """Whatever their names, files and forms: made over HTTP, or brought along by an earlier start."""
    outside_settings = sources(tmp_path, api_key=None, secret_key=None)
    sealing = Fernet.generate_key().decode()
    brought = "brought-along-" + "7" * 20
    store = Store.open(str(tmp_path / "data"), clock=ManualClock(), secret_key=sealing)
    try:
        settings = Settings(data_dir=tmp_path / "data", secret_files=(tmp_path / "secrets",))
        outside = SecretSources(settings, {}, store=store)
        made, again = "mpu_" + secrets.token_urlsafe(32), "mpu_" + secrets.token_urlsafe(32)
        contents = [made, f"x{made}y", f"mpu_{made}", brought, f"{brought}\n", sealing, SECRET, again]
        references = [file_with(tmp_path, text, f"secret-{number}") for number, text in enumerate(contents)]
        assert all(outside.readable(reference) for reference in references if reference != references[5])

        def write(session: Session) -> None:
            for name, secret in (("made", made), ("brought", brought)):
                keys.create(session, name=name, scopes=["submit"], now=1.0, secret=secret)

        await store.write(write)
        assert [outside.own_key(reference) is not None for reference in references] == [True] * 6 + [False] * 2
        assert [outside.readable(reference) for reference in references] == [False] * 6 + [True] * 2
        assert outside_settings.readable(references[0]), "without the database nobody knows it"
    finally:
        store.close()
    os.rename(tmp_path / "data" / "mpu.sqlite3", tmp_path / "gone")
    with pytest.raises(SecretMissing, match="can't be told from"):
        outside.resolve(references[6])


def test_a_key_file_may_have_several_lines_but_never_the_services_own_key(tmp_path: Path) -> None:
    outside = sources(tmp_path)
    reference = file_with(tmp_path, '{\n\t"private_key": "x"\n}\n')
    assert outside.resolve(reference, lines=True) == '{\n\t"private_key": "x"\n}'
    with pytest.raises(SecretMissing, match="key of the service"):
        outside.resolve(file_with(tmp_path, f"# comment\n{SEALING_KEY}\n"), lines=True)


def test_files_elsewhere_can_not_be_named(tmp_path: Path) -> None:
    outside = sources(tmp_path)
    file_with(tmp_path, SECRET)
    below = tmp_path / "secrets" / "kubernetes.io" / "serviceaccount"
    below.mkdir(parents=True)
    (below / "token").write_text("the pod's own")
    (tmp_path / "elsewhere").write_text("another's")
    (tmp_path / "secrets" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "secrets" / "folder").symlink_to(tmp_path)
    twin = tmp_path / "secrets-twin"
    twin.mkdir()
    (twin / "x").write_text("another's")
    base = tmp_path / "secrets"
    for path in (
        "/etc/shadow",
        "/proc/self/environ",
        "etc/passwd",
        "",
        "/",
        f"{base}",
        f"{base}/",
        f"{base}/..",
        f"{base}/../elsewhere",
        f"{base}/link",
        f"{base}/folder/elsewhere",
        f"{base}/kubernetes.io/serviceaccount/token",
        f"{twin}/x",
        f"{base}/office\0",
    ):
        refusal = outside.refusal(f"file:{path}")
        assert refusal is not None, path
        assert "MPU_SECRET_FILES" in refusal
        with pytest.raises(SecretMissing):
            outside.resolve(f"file:{path}")
    assert outside.refusal(f"file:{base}/not-there-yet") is None, "it may be mounted later"


def test_files_as_kubernetes_mounts_them(tmp_path: Path) -> None:
    """secrets/office -> ..data/office, ..data -> ..2026_03_01: replaced at once when the secret changes."""
    outside = sources(tmp_path)
    base = tmp_path / "secrets"
    for day, value in (("..2026_03_01", "old"), ("..2026_03_02", "new")):
        (base / day).mkdir()
        (base / day / "office").write_text(value)
    (base / "..data").symlink_to("..2026_03_01")
    (base / "office").symlink_to("..data/office")
    assert outside.resolve(f"file:{base}/office") == "old"
    (base / "..new").symlink_to("..2026_03_02")
    os.rename(base / "..new", base / "..data")
    assert outside.resolve(f"file:{base}/office") == "new"


def test_what_is_no_file_does_not_hang(tmp_path: Path) -> None:
    outside = sources(tmp_path)
    os.mkfifo(tmp_path / "secrets" / "pipe")
    (tmp_path / "secrets" / "folder").mkdir()
    for name, words in (("pipe", "no regular file"), ("folder", "can't be read|no regular file"), ("gone", "No such")):
        with pytest.raises(SecretMissing, match=words):
            outside.resolve(f"file:{tmp_path}/secrets/{name}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_right_to_it(tmp_path: Path) -> None:
    reference = file_with(tmp_path, SECRET)
    os.chmod(reference.removeprefix("file:"), 0)
    with pytest.raises(SecretMissing, match="Permission denied"):
        sources(tmp_path).resolve(reference)


def test_files_of_the_service_itself(tmp_path: Path) -> None:
    """Even where somebody names the data directory as a place for secrets, or keeps the key of HTTPS there."""
    tls = {"tls_certificate_file": tmp_path / "secrets" / "c.pem", "tls_key_file": tmp_path / "secrets" / "k.pem"}
    outside = sources(tmp_path, None, secret_files=(tmp_path / "secrets", tmp_path / "data"), **tls)
    for path in (tmp_path / "data" / "secret.key", tmp_path / "data" / "api-key", tmp_path / "secrets" / "k.pem"):
        path.write_text(SECRET)
        assert outside.refusal(f"file:{path}") is not None, path


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("MPU_SECRET_OFFICE", True),
        ("MPU_SECRET_KEY", False),
        ("MPU_SECRET_KEY_FILE", False),
        ("MPU_secret_key", False),
        ("MPU_SECRET_FILES", False),
        ("MPU_SECRET_ENV_PREFIX", False),
        ("MPU_SECRET_", False),
        ("MPU_API_KEY", False),
        ("AWS_SECRET_ACCESS_KEY", False),
        ("PATH", False),
        ("MPU_SECRET_A B", False),
        ("", False),
    ],
)
def test_variables(tmp_path: Path, name: str, allowed: bool) -> None:
    outside = sources(tmp_path, {name: SECRET})
    assert (outside.refusal(f"env:{name}") is None) is allowed
    assert outside.readable(f"env:{name}") is allowed


def test_a_prefix_alone_is_told_as_such(tmp_path: Path) -> None:
    assert sources(tmp_path).refusal("env:MPU_SECRET_") == (
        "must have a name behind MPU_SECRET_ (MPU_SECRET_ENV_PREFIX)"
    )


def test_no_prefix_opens_the_services_own_variables_and_none_opens_nothing(tmp_path: Path) -> None:
    wide = sources(tmp_path, {"MPU_API_KEY": SECRET, "MPU_OFFICE": SECRET}, secret_env_prefix="MPU_")
    assert wide.resolve("env:MPU_OFFICE") == SECRET
    assert wide.refusal("env:MPU_API_KEY") is not None
    none = sources(tmp_path, {"MPU_SECRET_A": SECRET}, secret_env_prefix="")
    assert none.refusal("env:MPU_SECRET_A") is not None


def test_a_variable_that_is_not_set_and_one_that_is_the_services_key(tmp_path: Path) -> None:
    outside = sources(tmp_path, {"MPU_SECRET_B": API_KEY})
    with pytest.raises(SecretMissing, match="started without"):
        outside.resolve("env:MPU_SECRET_A")
    with pytest.raises(SecretMissing, match="key of the service"):
        outside.resolve("env:MPU_SECRET_B")


def test_credentials(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "office").write_text(SECRET + "\n")
    (tmp_path / "credentials" / "mpu_api_key").write_text(API_KEY + "\n")
    outside = sources(tmp_path, {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")})
    assert outside.resolve("credential:office") == SECRET
    assert outside.resolve(f"file:{tmp_path}/credentials/office") == SECRET
    for name in ("mpu_api_key", "gone", "..", ".", "../elsewhere", ""):
        assert not outside.readable(f"credential:{name}"), name
    with pytest.raises(SecretMissing, match="LoadCredential"):
        sources(tmp_path).resolve("credential:office")


@pytest.mark.parametrize("reference", ["", "office", "vault:office", "ENV:MPU_SECRET_A", "file"])
def test_other_words(tmp_path: Path, reference: str) -> None:
    refusal = sources(tmp_path).refusal(reference)
    assert refusal is not None
    assert "env:NAME" in refusal or "MPU_SECRET_FILES" in refusal


async def test_after_a_refused_login_another_value_is_worth_a_try_the_same_is_not(tmp_path: Path) -> None:
    reference = file_with(tmp_path, "old")
    password = sources(tmp_path).password_of(Account("main", "h", password_from=reference))
    assert password is not None
    assert await password() == "old"
    assert not await password.refused("old")
    file_with(tmp_path, "new")
    assert await password.refused("old")
    assert await password() == "new"
    os.unlink(reference.removeprefix("file:"))
    assert await password.refused("new"), "the next look says that it is gone"
    assert sources(tmp_path).password_of(Account("main", "h", password="x")) is None


async def test_no_look_at_a_file_stops_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount may hang, and each look at a file hangs with it."""
    password = sources(tmp_path).password_of(Account("main", "h", password_from=file_with(tmp_path, "old")))
    assert password is not None
    threads: list[int] = []
    opened = os.open

    def watched(*args: Any, **more: Any) -> int:
        threads.append(threading.get_ident())
        return opened(*args, **more)

    monkeypatch.setattr(os, "open", watched)
    assert await password() == "old"
    assert not await password.refused("old")
    assert len(threads) == 2
    assert threading.get_ident() not in threads
