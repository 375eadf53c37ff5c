"""A language model small enough for a laptop: recipe and weights."""
