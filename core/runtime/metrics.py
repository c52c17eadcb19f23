"""Figures for Prometheus. No addresses in labels."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from core.delivery import Delivered
from core.domain.account import Directory
from core.domain.message import State
from core.domain.outcome import Outcome
from core.runtime.outlets import Outlets
from core.runtime.views import QueueView

_LATENCY_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)


class Metrics:
    """One registry a relay, so that several in one process don't mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._messages = Gauge(
            "mpu_queue_messages", "Messages by state", ["directory", "state"], registry=self.registry
        )
        self._oldest = Gauge(
            "mpu_queue_oldest_seconds", "Age of the oldest waiting or deferred message", ["directory"],
            registry=self.registry,
        )  # fmt: skip
        self._recipients = Counter(
            "mpu_recipients", "Recipients by outcome", ["directory", "account", "outcome"], registry=self.registry
        )
        self._duration = Histogram(
            "mpu_delivery_duration_seconds", "One attempt, from MAIL to the last reply", ["account"],
            buckets=_LATENCY_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._latency = Histogram(
            "mpu_pickup_latency_seconds", "From the file's last change to the server's 250", ["directory"],
            buckets=_LATENCY_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._paused = Gauge("mpu_account_paused", "1 while the account is paused", ["account"], registry=self.registry)
        self._out_of_quota = Gauge(
            "mpu_account_out_of_quota", "1 while the next message waits for the account's limits", ["account"],
            registry=self.registry,
        )  # fmt: skip
        self._used = Gauge(
            "mpu_account_last_day", "Sent in the last 24 hours, by accounts with limits", ["account", "what"],
            registry=self.registry,
        )  # fmt: skip
        self._rate = Gauge(
            "mpu_account_slowed_to_per_second", "Messages a second, while the server asks for fewer", ["account"],
            registry=self.registry,
        )  # fmt: skip
        self._runs = Counter("mpu_runs", "Runs of a directory's cycle", ["directory"], registry=self.registry)
        # finding a child by its labels takes longer than counting; these are never removed
        self._recipients_of = cache(self._recipients.labels)
        self._duration_of = cache(self._duration.labels)
        self._latency_of = cache(self._latency.labels)

    def delivered(self, directory: Directory, delivered: Delivered) -> None:
        """Count what came of one message."""
        name = directory.name
        for attempt in delivered.attempts:
            account = attempt.account
            for outcome in attempt.outcomes:
                self._recipients_of(name, account, outcome.outcome._value_).inc()
            self._duration_of(account).observe(max(attempt.ended_at - attempt.started_at, 0.0))
        if delivered.outcome is Outcome.SENT and delivered.attempts:
            self._latency_of(name).observe(max(delivered.attempts[-1].ended_at - delivered.arrived_at, 0.0))

    def ran(self, directory: Directory) -> None:
        """Count a run."""
        self._runs.labels(directory.name).inc()

    def render(self, queue: QueueView, outlets: Outlets) -> bytes:
        """The text of GET /metrics."""
        self._messages.clear()
        self._oldest.clear()
        self._paused.clear()
        for row in queue.items:
            for state in State:
                self._messages.labels(row.directory, state.value).set(getattr(row, state.value))
            self._oldest.labels(row.directory).set(row.oldest_seconds or 0.0)
        for gauge in (self._out_of_quota, self._used, self._rate):
            gauge.clear()
        for quota in outlets.quotas:
            _, messages, recipients = quota.used()
            self._out_of_quota.labels(quota.name).set(0 if quota.next_at() is None else 1)
            self._used.labels(quota.name, "messages").set(messages)
            self._used.labels(quota.name, "recipients").set(recipients)
            rate = quota.slowed_to()
            if rate is not None:
                self._rate.labels(quota.name).set(rate)
        for name in outlets.names:
            self._paused.labels(name).set(1 if outlets.pause_of(name) is not None else 0)
        return generate_latest(self.registry)
