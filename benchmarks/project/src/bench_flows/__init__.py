"""The flows that the benchmarks run."""
