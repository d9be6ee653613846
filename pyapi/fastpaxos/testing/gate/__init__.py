"""A regression gate that works on a noisy machine: instruction counts and paired ratios. See docs/benchmarks.md."""
