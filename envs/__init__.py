"""Environments as batched tensors: rules alone, nothing of learning or of language models."""

from envs.registry import ENVS, make, make_game, parse_options

__all__ = ["ENVS", "make", "make_game", "parse_options"]
