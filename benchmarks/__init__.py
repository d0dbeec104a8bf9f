"""What flowledger promises in figures, measured: `python -m benchmarks` prints one table."""
