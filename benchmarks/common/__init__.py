"""What all benchmarks share: command line, results, tables, figures, processes, weights, data."""

__all__ = ["BenchmarkError"]


class BenchmarkError(Exception):
    """A benchmark cannot run; the message says why, and what to do."""
