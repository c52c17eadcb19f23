"""Figures for Prometheus. No addresses in labels."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from core.delivery import Delivered
from core.domain.account import Directory
from core.domain.message import State
from core.domain.outcome import Outcome
from core.runtime.outlets import Outlets
from core.runtime.views import QueueView

_SENT = Outcome.SENT  # with every message (core/domain)
_LATENCY_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)


class _Histogram:
    """Counts by bucket, added up when they are asked for: one addition for each value."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(_LATENCY_BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one. A clock that was set back makes no negative ones."""
        seconds = max(seconds, 0.0)
        self._counts[bisect_left(_LATENCY_BUCKETS, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """As Prometheus has it: each bucket with all below it."""
        bounds = [*map(floatToGoString, _LATENCY_BUCKETS), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)


class _Deliveries(Collector):
    """What came of messages. Of our own, since counting with the library's classes takes a tenth of a mail's time."""

    def __init__(self) -> None:
        self.recipients: Counter[tuple[str, str, str]] = Counter()  # directory, account, outcome
        self.duration: defaultdict[str, _Histogram] = defaultdict(_Histogram)  # by account
        self.latency: defaultdict[str, _Histogram] = defaultdict(_Histogram)  # by directory

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        recipients = CounterMetricFamily(
            "mpu_recipients", "Recipients by outcome", labels=["directory", "account", "outcome"]
        )
        for labels, count in self.recipients.items():
            recipients.add_metric(labels, count)
        yield recipients
        for name, about, label, histograms in (
            ("mpu_delivery_duration_seconds", "One attempt, from MAIL to the last reply", "account", self.duration),
            (
                "mpu_pickup_latency_seconds",
                "From the file's last change to the server's 250",
                "directory",
                self.latency,
            ),
        ):
            family = HistogramMetricFamily(name, about, labels=[label])
            for value, histogram in histograms.items():
                histogram.add_to(family, [value])
            yield family


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
        self._deliveries = _Deliveries()
        self.registry.register(self._deliveries)
        self._paused = Gauge("mpu_account_paused", "1 while the account is paused", ["account"], registry=self.registry)
        self._out_of_quota = Gauge(
            "mpu_account_out_of_quota", "1 while the next message waits for the account's limits or pace", ["account"],
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
        self._runs = CounterMetric("mpu_runs", "Runs of a directory's cycle", ["directory"], registry=self.registry)

    def delivered(self, directory: Directory, delivered: Delivered) -> None:
        """Count what came of one message."""
        name, counts = directory.name, self._deliveries
        for attempt in delivered.attempts:
            account = attempt.account
            for outcome in attempt.outcomes:
                counts.recipients[name, account, outcome.outcome._value_] += 1
            counts.duration[account].observe(attempt.ended_at - attempt.started_at)
        if delivered.outcome is _SENT and delivered.attempts:
            counts.latency[name].observe(delivered.attempts[-1].ended_at - delivered.arrived_at)

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
