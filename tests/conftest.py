"""One thread for all tests: their tensors are small, and threads on a busy machine wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, here and in the programs that tests start
