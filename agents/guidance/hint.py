"""Hint: the student's network sees what the tutor would do, beside its observation, and decides itself.

It sees the tutor's distribution over the actions and a flag that says whether there is advice, A + 1 numbers that are
all 0 where there is none: an evaluation never has any. What it decides before it has seen them serves the query
strategy only. Source: hints in the observation, arXiv:2510.08779, whose hint is one action, asked for every few steps,
in an ASCII grid; ours are numbers that join the observation at the network's first dense layer, with weights that begin
at 0. A state is valued with the hint that came with it; without one where none is known: at the end of a rollout, in
the newest transition of a replay buffer, and where an episode was truncated. With the consult probability the hints
become rarer, so that the student learns to go without.
"""

from agents.guidance.base import Guidance


class Hint(Guidance):
    """Show the advice to the student."""

    stores_advice = uses_advice_as_input = True
