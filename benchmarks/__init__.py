"""Measurements that the docs cite; see `benchmarks.run`."""
