"""What makes MODEL_ZOO.md and BENCHMARK.md; not installed."""
