"""One training run, beside reinforcement learning itself."""
