"""The benchmarks: that they time what they say."""
