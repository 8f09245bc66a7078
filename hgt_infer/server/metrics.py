"""What Prometheus reads: counts and times of requests, and those that the engines keep themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from hgt_infer.generator import Generator

ROUTES = frozenset(
    ("/", "/v1/completions", "/v1/models", "/health", "/health/live", "/health/ready", "/metrics")
)
"""Other paths are counted together: a client must not be able to make a label."""
_BUCKETS = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts that were computed.",
    "generated_tokens": "Tokens that were sampled.",
    "steps": "Steps, each of which computes one token of every running sequence.",
    "finished": "Sequences that ended by themselves.",
    "cancelled": "Sequences whose caller went away.",
    "failed": "Sequences that ended with an error.",
}
_GAUGES = {
    "running": "Sequences in a slot.",
    "waiting": "Sequences that wait for a slot.",
}
_HISTOGRAMS = {
    "time_to_first_token": "From a sequence's submission to its first token.",
    "inter_token": "Between two tokens of a sequence.",
}


class Metrics:
    """The metrics of a service.

    Args:
        generators: by the name of their model.
    """

    def __init__(self, generators: Mapping[str, Generator]) -> None:
        self._generators = generators
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "hgt_infer_http_requests", "Requests that were answered.", ["path", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "hgt_infer_http_request_seconds", "From a request's head to the end of its answer.", ["path"],
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered; status 0 where its client had gone before."""
        path = path if path in ROUTES else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the engines have counted by now."""
        stats = {name: generator.stats() for name, generator in self._generators.items()}
        for kind, numbers in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for name, what in numbers.items():
                number = kind(f"hgt_infer_{name}", what, labels=["model"])
                for model, values in stats.items():
                    number.add_metric([model], getattr(values, name))
                yield number
        slots = GaugeMetricFamily("hgt_infer_slots", "Sequences that can run at once.", labels=["model"])
        for model, generator in self._generators.items():
            slots.add_metric([model], generator.num_slots)
        yield slots
        for name, what in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"hgt_infer_{name}_seconds", what, labels=["model"])
            for model, values in stats.items():
                histogram = getattr(values, f"{name}_s")
                buckets = [
                    *((f"{bound:.3g}", count) for bound, count in histogram.cumulative),
                    ("+Inf", histogram.count),
                ]
                family.add_metric([model], buckets, histogram.sum_s)
            yield family
