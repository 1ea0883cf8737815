"""What an operator may count: requests, replies, waiting and seconds. No text, and no label that a client chooses."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from warmline.safety.levels import Level
from warmline.safety.policy import TIERS

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "warmline_requests", "Answers by route and status.", ("route", "status"), registry=self.registry
        )
        self.replies = Counter(
            "warmline_replies", "Replies by level and source.", ("level", "source"), registry=self.registry
        )
        self.running = Gauge("warmline_replies_running", "Replies that are being written.", registry=self.registry)
        self.waiting = Gauge("warmline_requests_waiting", "Requests that wait for a place.", registry=self.registry)
        self.first_text = Histogram(
            "warmline_first_text_seconds", "Place to first words or card.", registry=self.registry, buckets=SECONDS
        )
        self.reply = Histogram(
            "warmline_reply_seconds", "Place to the end of the reply.", registry=self.registry, buckets=SECONDS
        )
        for level in Level:
            for source in TIERS:
                self.replies.labels(level.label, source)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
