from __future__ import annotations

from pathlib import Path

import pytest

from core.settings import Settings, SettingsError, load_settings

KEY = "k" * 40
SEALING, OLDER = "s" * 43 + "=", "o" * 43 + "="  # Fernet keys


def load(tmp_path: Path, options: dict[str, object] | None = None, **environ: str) -> Settings:
    return load_settings(options, environ={"MPU_DATA_DIR": str(tmp_path), **environ}).settings


def test_the_later_source_wins(tmp_path: Path) -> None:
    assert load(tmp_path).port == 8025
    (tmp_path / "mpu.toml").write_text("port = 1001\nlook_ahead = 7\n")
    assert load(tmp_path).port == 1001
    assert load(tmp_path, MPU_PORT="1002").port == 1002
    settings = load(tmp_path, {"port": 1003, "host": None}, MPU_PORT="1002")
    assert (settings.port, settings.host, settings.look_ahead) == (1003, "127.0.0.1", 7)


def test_a_file_named_is_used_and_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    with pytest.raises(SettingsError, match="can't be read"):
        load(tmp_path, MPU_CONFIG=str(file))
    file.write_text("grace_seconds = 3\n")
    loaded = load_settings(environ={"MPU_CONFIG": "/nowhere"}, config=file)
    assert (loaded.settings.grace_seconds, loaded.config_file) == (3, file)


def test_a_home_directory_may_be_named_as_a_shell_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mpu").mkdir()
    (tmp_path / "mpu" / "mpu.toml").write_text("grace_seconds = 3\n")
    (tmp_path / "other.toml").write_text("grace_seconds = 4\n")
    loaded = load_settings(environ={"MPU_DATA_DIR": "~/mpu"})
    assert (loaded.settings.grace_seconds, loaded.settings.data_dir) == (3, tmp_path / "mpu")
    assert loaded.config_file == tmp_path / "mpu" / "mpu.toml"
    assert load_settings(environ={"MPU_DATA_DIR": "~/mpu", "MPU_CONFIG": "~/other.toml"}).settings.grace_seconds == 4
    with pytest.raises(SettingsError, match="MPU_DATA_DIR: ~nobody-of-this-name has no home directory"):
        load_settings(environ={"MPU_DATA_DIR": "~nobody-of-this-name/mpu"})


@pytest.mark.parametrize(
    ("value", "roots"),
    [
        ("/a:/b", ("/a", "/b")),
        ("/a, /b,", ("/a", "/b")),
        ('["/a,b", "/c"]', ("/a,b", "/c")),
        ("/a/../b:/b", ("/b",)),
        ("", ()),
    ],
)
def test_pickup_roots_in_the_environment(tmp_path: Path, value: str, roots: tuple[str, ...]) -> None:
    assert load(tmp_path, MPU_PICKUP_ROOTS=value).pickup_roots == tuple(map(Path, roots))


def test_the_demo_lives_in_var_and_offers_it_as_pickup_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"demo": True}, environ={}).settings
    assert settings.data_dir == tmp_path / "var"
    assert settings.pickup_roots == (tmp_path / "var",)
    assert load_settings({}, environ={}).settings.pickup_roots == ()
    other = load_settings({"data_dir": tmp_path / "x"}, environ={"MPU_DEMO": "true"}).settings
    assert other.pickup_roots == (tmp_path / "x",)


@pytest.mark.parametrize(
    ("options", "environ", "toml", "named"),
    [
        ({}, {"MPU_PORT": "70000"}, "", "MPU_PORT: "),
        ({}, {"MPU_PORT": "eighty"}, "", "MPU_PORT: "),
        ({"port": -1}, {}, "", "--port: "),
        ({}, {}, "port = 70000", "port in "),
        ({}, {}, "prot = 1", "prot in .*no such setting"),
        ({}, {}, "port =", "no TOML"),
        ({}, {"MPU_PICKUP_ROOTS": "/"}, "", "MPU_PICKUP_ROOTS: .*root of the file system"),
        ({}, {"MPU_PICKUP_ROOTS": "[1"}, "", "MPU_PICKUP_ROOTS: .*JSON"),
        ({}, {"MPU_ALLOWED_SMTP_PORTS": "25,99999"}, "", "MPU_ALLOWED_SMTP_PORTS"),
        ({}, {"MPU_API_KEY": "tiny"}, "", "MPU_API_KEY: .*16 characters"),
        ({}, {"MPU_API_KEY": "s" * 20 + "\n"}, "", "MPU_API_KEY: .*visible ASCII"),
        ({}, {"MPU_API_KEY": "\u00e9" * 20}, "", "MPU_API_KEY: .*visible ASCII"),
        ({}, {"MPU_API_KEY": "s" * 501}, "", "MPU_API_KEY: .*500 characters"),
        ({}, {"MPU_API_KEY_FILE": "/nonexistent"}, "", "MPU_API_KEY_FILE: /nonexistent can't be read"),
        ({}, {"MPU_SECRET_FILES": "/"}, "", "MPU_SECRET_FILES: .*root of the file system"),
        ({}, {"MPU_SECRET_ENV_PREFIX": "A-B"}, "", "MPU_SECRET_ENV_PREFIX"),
        ({}, {"MPU_LOG_FORMAT": "xml"}, "", "MPU_LOG_FORMAT"),
        ({}, {"MPU_TLS_KEY_FILE": "/k"}, "", "go together"),
    ],
)
def test_errors_name_the_source_and_not_the_value(
    tmp_path: Path, options: dict[str, object], environ: dict[str, str], toml: str, named: str
) -> None:
    (tmp_path / "mpu.toml").write_text(toml)
    with pytest.raises(SettingsError, match=named) as caught:
        load(tmp_path, options, **environ)
    shown = str(caught.value)
    assert not any(value in shown for value in environ.values() if value in ("tiny", "eighty", "xml"))
    assert "sss" not in shown
    assert "\u00e9" not in shown


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, MPU_PORT="x", MPU_GRACE_SECONDS="-1")
    assert len(caught.value.problems) == 2


def test_secrets_come_from_files_and_stay_out_of_sight(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    settings = load(tmp_path, MPU_API_KEY_FILE=str(tmp_path / "key"), MPU_SECRET_KEY="s" * 44)
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY
    shown = f"{settings!r} {settings} {settings.model_dump_json()}"
    assert KEY not in shown
    assert "s" * 44 not in shown
    assert load(tmp_path, MPU_API_KEY_FILE=str(tmp_path / "key"), MPU_API_KEY="other" * 8).api_key != settings.api_key


def test_secrets_come_from_systemds_credentials_where_nothing_else_says_them(tmp_path: Path) -> None:
    (tmp_path / "mpu_api_key").write_text(KEY + "\n")
    (tmp_path / "mpu_secret_key").write_text(SEALING)
    (tmp_path / "office").write_text("password of an account")
    settings = load(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert settings.api_key is not None
    assert settings.secret_key is not None
    assert (settings.api_key.get_secret_value(), settings.secret_key.get_secret_value()) == (KEY, SEALING)
    other = load(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path), MPU_API_KEY="other" * 8)
    assert other.api_key is not None
    assert other.api_key.get_secret_value() == "other" * 8
    assert load(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "none")).api_key is None
    (tmp_path / "mpu_api_key").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"CREDENTIALS_DIRECTORY: .*mpu_api_key can't be read"):
        load(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (SEALING, SEALING),
        (f"# Opens the passwords.\n{SEALING}\n", SEALING),  # as MPU writes it
        (f"# Opens the passwords.\n{SEALING}\n{OLDER}\n", f"{SEALING},{OLDER}"),
        (f"{SEALING}, {OLDER}\n", f"{SEALING},{OLDER}"),
        (f"{SEALING}\r\n  # older:\r\n\r\n{OLDER}\r\n", f"{SEALING},{OLDER}"),
    ],
)
def test_a_key_file_of_mpu_is_one_for_the_start_too(tmp_path: Path, content: str, value: str) -> None:
    (tmp_path / "k").write_bytes(content.encode())
    settings = load(tmp_path, MPU_SECRET_KEY_FILE=str(tmp_path / "k"))
    assert settings.secret_key is not None
    assert settings.secret_key.get_secret_value() == value


@pytest.mark.parametrize("content", ["# nothing else", "hunter2-sss", f"{SEALING}\nhunter2-sss", SEALING[:-4]])
def test_what_is_no_key_file_names_the_setting_and_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "k").write_text(content)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, MPU_SECRET_KEY_FILE=str(tmp_path / "k"))
    assert str(caught.value).startswith(f"MPU_SECRET_KEY_FILE: {tmp_path / 'k'} holds no Fernet key")
    assert "sss" not in str(caught.value)
    (tmp_path / "mpu_secret_key").write_text(content)
    with pytest.raises(SettingsError, match=r"^CREDENTIALS_DIRECTORY: .*mpu_secret_key holds no Fernet key"):
        load(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path))


def test_passwords_of_accounts_are_no_misspelt_variables(tmp_path: Path) -> None:
    environ = {"MPU_DATA_DIR": str(tmp_path), "MPU_SECRET_OFFICE": "x", "MPU_MAIL_OFFICE": "x"}
    assert load_settings(environ=environ).unknown_variables == ("MPU_MAIL_OFFICE",)
    (tmp_path / "mpu.toml").write_text('secret_env_prefix = "MPU_MAIL_"\n')
    assert load_settings(environ=environ).unknown_variables == ("MPU_SECRET_OFFICE",)
    (tmp_path / "mpu.toml").write_text('secret_env_prefix = ""\n')
    assert load_settings(environ=environ).settings.secret_env_prefix == ""


def test_a_misspelt_variable_is_reported(tmp_path: Path) -> None:
    loaded = load_settings(
        environ={"MPU_DATA_DIR": str(tmp_path), "MPU_PIKUP_ROOTS": "/a", "MPU_URL": "http://x", "HOME": "/"}
    )
    assert loaded.unknown_variables == ("MPU_PIKUP_ROOTS",)


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
