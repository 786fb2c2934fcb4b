"""What /metrics tells, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each: when it began

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHARE = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_PAIRS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The instruments of one server.

    Stages: `read` (body to checked request), `queue`, `score` (one batch, hand-over included), `write`; of a question
    `retrieve`, `rank`, `mark`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter("tmkd_requests", "Requests answered", ["route", "status"], registry=here)
        self.seconds = Histogram(
            "tmkd_request_seconds", "From headers to answer", ["route"], buckets=_SECONDS, registry=here
        )
        self.stage = Histogram("tmkd_stage_seconds", "Time by stage", ["stage"], buckets=_SECONDS, registry=here)
        self.fill = Histogram(
            "tmkd_batch_fill_ratio", "Estimated tokens, of the budget", ["model"], buckets=_SHARE, registry=here
        )
        self.batch_pairs = Histogram("tmkd_batch_pairs", "Pairs of a batch", ["model"], buckets=_PAIRS, registry=here)
        self.waiting = Gauge("tmkd_queue_pairs", "Pairs that wait", ["model"], registry=here)
        self.pairs = Counter("tmkd_pairs", "Pairs scored", ["model"], registry=here)
        self.rejected = Counter("tmkd_rejected", "Requests refused for want of room or time", ["reason"], registry=here)
        self.buffered = Gauge("tmkd_buffered_bytes", "Bytes of requests read or answered now", registry=here)
        self.up = Gauge("tmkd_scorer_up", "Whether the scoring process is there", ["model"], registry=here)
        self.restarts = Gauge("tmkd_scorer_restarts", "Processes started after the first", ["model"], registry=here)

    def text(self) -> bytes:
        """The exposition."""
        found: bytes = generate_latest(self.registry)
        return found
