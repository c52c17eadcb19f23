"""`mpu drain`, `queue`, `history`, `retry`: the HTTP interface for people at a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from api.cli.client import Client, Json, KeyFile, Url, segment
from api.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    complain,
    duration,
    err,
    local_time,
    out,
    reply_text,
    say,
    show_json,
    size,
    table,
)

POLL_SECONDS = 0.2
BAR_AFTER_SECONDS = 1.0  # a drain that takes longer shows how far it is

DirectoryFilter = Annotated[str | None, typer.Option("--directory", "-d", help="Only this directory.")]
AccountFilter = Annotated[str | None, typer.Option("--account", "-a", help="Only this account.")]
RecipientFilter = Annotated[
    str | None, typer.Option("--recipient", "-r", help="An address, or a domain as @example.org.")
]
CodeFilter = Annotated[int | None, typer.Option("--code", help="SMTP code of the last reply.", min=200, max=599)]
StateFilter = Annotated[str | None, typer.Option("--state", "-s", help="waiting, claimed, deferred, held or badmail.")]
Limit = Annotated[int, typer.Option("--limit", "-n", help="Most rows.", min=1, max=1_000_000)]


def drain(
    directories: Annotated[list[str] | None, typer.Argument(help="Names; none: every directory.")] = None,
    include_deferred: Annotated[bool, typer.Option("--include-deferred", help="Try deferred mail too, once.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the end; it goes on after that.", min=0)] = 300,
    wait: Annotated[bool, typer.Option(help="Wait for the end.")] = True,
    url: Url = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Send now what is due. Exit code 0: nothing due is left and all was sent; 1: something was not, or time is up."""
    with Client(url, key_file) as client:
        body = {"directories": directories or None, "include_deferred": include_deferred}
        before = client.get("/queue")["totals"] if wait and not as_json else {}
        state = client.post("/drain", body, wait=False)
        expected = before.get("waiting", 0) + (before.get("deferred", 0) if include_deferred else 0)
        if wait:
            try:
                state = _follow(client, f"/drains/{state['id']}", state, timeout, expected)
            except KeyboardInterrupt:
                complain("no longer waiting; the drain goes on", f"DELETE {client.url}/drains/{state['id']} stops it.")
                raise typer.Exit(EXIT_INTERRUPTED) from None
        if as_json:
            show_json(state)
        else:
            _show_drain(state)
    if not wait:
        raise typer.Exit(EXIT_OK)
    left = any(row["blocked"] or row["skipped"] for row in state["directories"])
    fine = state["complete"] and not left and not (state["deferred"] or state["failed"] or state["unknown"])
    raise typer.Exit(EXIT_OK if fine else EXIT_FAILED)


def _follow(client: Client, path: str, state: dict[str, Any], timeout: float, expected: int) -> dict[str, Any]:
    until = time.monotonic() + timeout
    bar_from = time.monotonic() + BAR_AFTER_SECONDS
    with _bar(expected) as show:
        while state["state"] == "running" and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            state = client.get(path)
            if time.monotonic() >= bar_from:
                show(sum(state.get(name, 0) for name in ("sent", "deferred", "failed", "unknown", "done")))
    return state


@contextmanager
def _bar(expected: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, shown from its first use; nothing where that is no terminal."""
    columns = (TextColumn("messages"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=err(), transient=True, disable=not err().is_terminal)
    task = progress.add_task("", total=expected or None)

    def show(done: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=max(expected, done) or None)

    try:
        yield show
    finally:
        progress.stop()


def _show_drain(state: dict[str, Any]) -> None:
    columns = ("directory", "sent", "deferred", "failed", "unknown", "remaining", "not sent because")
    rows = [
        (
            row["directory"],
            *(row[name] for name in columns[1:6]),
            [row["skipped"]] if row["skipped"] else [_blocked(item) for item in row["blocked"]],
        )
        for row in state["directories"]
    ]
    out().print(table(columns, rows, right=columns[1:6]))
    word = {"running": "still running", "done": "done", "stopped": "stopped before its end"}[state["state"]]
    sent = f"{state['sent']} messages sent ({state['recipients']['sent']} recipients)"
    say(f"{word} after {state['duration_seconds']:.1f} s: {sent}")


def _blocked(item: dict[str, Any]) -> str:
    account = f" ({item['account']})" if item["account"] else ""
    until = f" until {local_time(item['until'])}" if item["until"] else ""
    return f"{item['count']} {item['reason'].replace('_', ' ')}{account}{until}"


def queue(
    state: StateFilter = None,
    directory: DirectoryFilter = None,
    account: AccountFilter = None,
    recipient: RecipientFilter = None,
    code: CodeFilter = None,
    messages: Annotated[bool, typer.Option("--messages", "-m", help="List the messages.")] = False,
    reasons: Annotated[bool, typer.Option("--reasons", help="Why mail waits.")] = False,
    limit: Limit = 50,
    url: Url = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """What waits: counts by directory; with a filter or --messages the messages; with --reasons why."""
    filters = {"state": state, "directory": directory, "account": account, "recipient": recipient, "code": code}
    with Client(url, key_file) as client:
        if reasons:
            answer = client.get("/queue/reasons")
            show_json(answer) if as_json else _show_reasons(answer["items"])
        elif messages or any(value is not None for value in filters.values()):
            items = list(client.items("/queue/messages", limit, **filters))
            show_json({"items": items}) if as_json else _show_messages(items, limit)
        else:
            answer = client.get("/queue")
            show_json(answer) if as_json else _show_counts(answer)


def _show_counts(answer: dict[str, Any]) -> None:
    counts = ("waiting", "claimed", "deferred", "held", "badmail")
    rows = [*answer["items"], {**answer["totals"], "directory": "total"}]
    shown = [
        (row["directory"], *(row[name] for name in counts), size(row["bytes"]), duration(row["oldest_seconds"]))
        for row in rows
    ]
    out().print(table(("directory", *counts, "size", "oldest"), shown, right=(*counts, "size", "oldest")))


def _show_messages(items: list[dict[str, Any]], limit: int) -> None:
    columns = ("id", "state", "attempts", "size", "arrived", "due", "why")
    rows = [
        (
            item["id"],
            item["state"],
            item["attempts"],
            size(item["size_bytes"]),
            local_time(item["arrived_at"]),
            local_time(item["due_at"]),
            _why(item),
        )
        for item in items
    ]
    out().print(table(columns, rows, right=("attempts", "size")))
    _say_if_cut(items, limit)


def _why(item: dict[str, Any]) -> str:
    waits = (item["waiting_for"] or "").replace("_", " ")
    reply = "" if str(item["code"]) in item["reason"] else reply_text(item["code"], item["enhanced_code"], "")
    return ": ".join(part for part in (waits, " ".join(filter(None, (reply, item["reason"])))) if part)


def _show_reasons(items: list[dict[str, Any]]) -> None:
    columns = ("messages", "oldest", "blame", "account", "reply", "what to do")
    rows = [
        (
            item["messages"],
            duration(item["oldest_seconds"]),
            item["blame"],
            item["account"],
            reply_text(item["code"], item["enhanced_code"], item["text"]),
            item["remedy"],
        )
        for item in items
    ]
    out().print(table(columns, rows, right=columns[:2]))


def history(
    status: Annotated[
        str | None, typer.Option("--status", "-s", help="sent, deferred, failed, unknown, deleted.")
    ] = None,
    recipient: RecipientFilter = None,
    sender: Annotated[str | None, typer.Option(help="The envelope's sender.")] = None,
    directory: DirectoryFilter = None,
    account: AccountFilter = None,
    internet_message_id: Annotated[str | None, typer.Option(help="The header's Message-ID.")] = None,
    since: Annotated[str | None, typer.Option(help="From this time on (RFC 3339, or a day).")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    message: Annotated[
        str | None, typer.Option("--message", help="The whole life of the message with this id.")
    ] = None,
    limit: Limit = 50,
    url: Url = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """What was sent, and what wasn't and why: a row a recipient, newest first."""
    times = {"since": _moment(since, "--since"), "until": _moment(until, "--until")}
    with Client(url, key_file) as client:
        if message is not None:
            life = client.get(f"/messages/{segment(message)}")
            show_json(life) if as_json else _show_life(life)
            return
        filters = {"status": status, "recipient": recipient, "sender": sender, "directory": directory}
        more = {"account": account, "internet_message_id": internet_message_id}
        items = list(client.items("/history", limit, **filters, **more, **times))
    if as_json:
        show_json({"items": items})
        return
    columns = ("time", "status", "sender", "recipient", "subject", "account", "reply")
    rows = [
        (
            local_time(item["at"]),
            item["status"] + (" (maybe twice)" if item["possible_duplicate"] else ""),
            item["sender"] or "<>",
            item["recipient"],
            item["subject"],
            item["account"],
            reply_text(item["code"], item["enhanced_code"], item["text"]),
        )
        for item in items
    ]
    out().print(table(columns, rows))
    _say_if_cut(items, limit)


def _moment(text: str | None, option: str) -> str | None:
    """A day or time without offset is local time; the API wants an offset."""
    from datetime import datetime

    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.astimezone()).isoformat()
    except ValueError:
        raise typer.BadParameter("is no time; write 2026-03-01 or 2026-03-01T14:30", param_hint=option) from None


def _show_life(life: dict[str, Any]) -> None:
    facts = ("id", "state", "directory", "file_name", "internet_message_id", "sender", "subject", "reason")
    out().print(table(("", ""), [(name.replace("_", " "), life.get(name)) for name in facts if life.get(name)]))
    _show_columns(life["recipients"], "recipient", "status", "account", "code", "enhanced_code", "text")
    attempts = [{**row, "started_at": local_time(row["started_at"])} for row in life["attempts"]]
    if attempts:
        words = ("number", "started_at", "account", "server", "phase", "outcome", "code", "enhanced_code", "text")
        _show_columns(attempts, *words)


def _show_columns(rows: list[dict[str, Any]], *columns: str) -> None:
    shown = [[row[name] for name in columns] for row in rows]
    out().print(table([name.replace("_", " ") for name in columns], shown))


def _say_if_cut(items: list[dict[str, Any]], limit: int) -> None:
    if len(items) >= limit:
        say(f"only the first {limit}; --limit shows more")


def retry(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of messages, as `mpu queue --messages` shows.")] = None,
    state: StateFilter = None,
    directory: DirectoryFilter = None,
    account: AccountFilter = None,
    recipient: RecipientFilter = None,
    code: CodeFilter = None,
    every: Annotated[bool, typer.Option("--all", help="Every message; needed where there is no filter.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what a filter matches.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Try deferred mail and badmail again now: single messages by id, or all that a filter matches."""
    chosen = {"state": state, "directory": directory, "account": account, "recipient": recipient, "code": code}
    filters = {name: value for name, value in chosen.items() if value is not None}
    if bool(ids) == bool(filters or every) or (ids and dry_run):
        complain("name ids, or a filter, or --all", "mpu retry --state badmail --directory NAME --dry-run")
        raise typer.Exit(EXIT_USAGE)
    with Client(url, key_file) as client:
        if ids:
            rows = [client.post(f"/queue/messages/{segment(message_id)}/retry") for message_id in ids]
            show_json({"items": rows}) if as_json else _show_messages(rows, len(rows) + 1)
            return
        operation = client.post("/queue/messages/retry", {"filter": filters, "all": every, "dry_run": dry_run})
        operation = _follow(client, f"/operations/{operation['id']}", operation, 3600, operation.get("matched", 0))
    if as_json:
        show_json(operation)
    elif dry_run:
        say(f"{operation['matched']} messages match; nothing was changed")
    else:
        say(f"{operation['done']} of {operation['matched']} messages are tried again; {operation['skipped']} skipped")
    if operation["failed"] or operation["state"] != "done":
        complain(f"{operation['failed']} failed", operation["detail"])
        raise typer.Exit(EXIT_FAILED)
