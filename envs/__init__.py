"""Environments as batched tensors: rules alone, nothing of learning or of language models."""

from envs.module_guard import refuse_library

refuse_library()

from envs.registry import ENVS, make, make_game, parse_options  # noqa: E402 (importing PyTorch takes seconds)

__all__ = ["ENVS", "make", "make_game", "parse_options"]
