"""What is counted and measured, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fairy2i_runtime.version import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        info = Gauge("fairy2i_server_info", "Always 1", ["model", "version"], registry=self.registry)
        info.labels(model, __version__).set(1)
        self.requests = Counter(
            "fairy2i_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.answers = Counter(
            "fairy2i_answers", "Answers by how they ended: eos, stop, length, context, interrupted, failed", ["end"],
            registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "fairy2i_prompt_tokens", "Tokens of prompts: run, or found in a kept cache", ["source"], registry=self.registry
        )
        self.answer_tokens = Counter("fairy2i_answer_tokens", "Tokens of answers", registry=self.registry)
        self.lookup_tokens = Counter(
            "fairy2i_lookup_tokens", "Tokens run ahead by looking up (drafted), and those that were right (accepted)", ["what"],
            registry=self.registry,
        )  # fmt: skip
        self.running = self._gauge("fairy2i_answers_running", "Answers being written")
        self.waiting = self._gauge("fairy2i_requests_waiting", "Requests waiting for one of those to end")
        self.kept = self._gauge("fairy2i_caches_kept", "Key-value caches kept for a follow-up")
        self.kept_bytes = self._gauge("fairy2i_caches_kept_bytes", "Memory of the kept caches")
        self.cache_lookups = Counter(
            "fairy2i_cache_lookups", "Prompts that went on from a kept cache (hit) or did not (miss)", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.wait_seconds = self._histogram("fairy2i_wait_seconds", "From a request to the beginning of its first run")
        self.first_text_seconds = self._histogram("fairy2i_first_text_seconds", "From a request to its first text")
        self.answer_seconds = self._histogram("fairy2i_answer_seconds", "From a request to the end of its answer")

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, registry=self.registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, buckets=_SECONDS, registry=self.registry)
