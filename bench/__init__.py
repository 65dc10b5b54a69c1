"""Benchmarks: suites that write result files, and the tables made of them."""
