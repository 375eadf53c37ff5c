"""How fast every stage is, beside other programs on the same machine in the same run: `python -m benchmarks`."""
