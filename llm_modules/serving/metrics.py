"""What Prometheus is told."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llm_modules.serving.jobs import Job

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.responses = Counter(
            "llm_modules_responses", "Responses by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "llm_modules_response_seconds", "From a request to the end of its response.", ["path"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "llm_modules_first_token_seconds", "From a request's arrival in the queue to its first token.", ["model"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._prompt = Counter("llm_modules_prompt_tokens", "Tokens of prompts.", ["model"], registry=registry)
        self._written = Counter("llm_modules_written_tokens", "Tokens of answers.", ["model"], registry=registry)
        self.source_read = Gauge(
            "llm_modules_source_read_tokens", "Tokens of prompts that the source read; fewer where it knew them.",
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("llm_modules_waiting_requests", "Requests that wait for a place.", registry=registry)
        self.writing = Gauge("llm_modules_writing_answers", "Answers being written.", registry=registry)

    def began(self, job: Job) -> None:
        """A prompt was read and its first token is known."""
        self._first.labels(job.module.name).observe(time.monotonic() - job.arrived)
        self._prompt.labels(job.module.name).inc(len(job.prompt_ids))

    def wrote(self, job: Job, num_tokens: int) -> None:
        """Answers of a job have left the engine, finished or not."""
        self._written.labels(job.module.name).inc(num_tokens)

    def render(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self._registry)
