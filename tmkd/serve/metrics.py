"""What /metrics shows, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

disable_created_metrics()  # no second series with the time each began

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHARE = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_PAIRS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The metrics of one server.

    The stages of a request are `read` (the body, until it is checked), `queue`, `score` (one batch, with the way to the
    scoring process and back) and `write`; those of a question are `retrieve`, `rank` and `mark`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter("tmkd_requests", "Requests answered", ["route", "status"], registry=here)
        self.seconds = Histogram(
            "tmkd_request_seconds", "Seconds from headers to answer", ["route"], buckets=_SECONDS, registry=here
        )
        self.stage = Histogram("tmkd_stage_seconds", "Seconds by stage", ["stage"], buckets=_SECONDS, registry=here)
        self.fill = Histogram(
            "tmkd_batch_fill_ratio",
            "Estimated tokens, by the most of a batch",
            ["model"],
            buckets=_SHARE,
            registry=here,
        )
        self.batch_pairs = Histogram("tmkd_batch_pairs", "Pairs of a batch", ["model"], buckets=_PAIRS, registry=here)
        self.waiting = Gauge("tmkd_queue_pairs", "Pairs that wait", ["model"], registry=here)
        self.pairs = Counter("tmkd_pairs", "Pairs scored", ["model"], registry=here)
        self.truncated = Counter(
            "tmkd_pairs_truncated", "Pairs longer than the model reads, of which it read a part", ["model"],
            registry=here,
        )  # fmt: skip
        self.states = Counter(
            "tmkd_states", "Passages read by a cached student, by where their states came from", ["source"],
            registry=here,
        )  # fmt: skip
        self.cache_bytes = Gauge("tmkd_state_cache_bytes", "Bytes of the states in the cache", registry=here)
        self.rejected = Counter("tmkd_rejected", "Requests refused: no room, or no time", ["reason"], registry=here)
        self.buffered = Gauge("tmkd_buffered_bytes", "Bytes of requests that are read or answered", registry=here)
        self.up = Gauge("tmkd_scorer_up", "Whether the scoring process is there", ["model"], registry=here)
        self.restarts = Gauge("tmkd_scorer_restarts", "Processes started after the first", ["model"], registry=here)

    def count_states(self, counts: tuple[int, int, int]) -> None:
        """Count passages whose states came from the store, from the cache, and were computed."""
        for source, count in zip(("store", "cache", "computed"), counts, strict=True):
            self.states.labels(source).inc(count)

    def text(self) -> bytes:
        """The text that /metrics answers."""
        found: bytes = generate_latest(self.registry)
        return found
