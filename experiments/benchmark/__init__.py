"""What makes BENCHMARK.md."""
