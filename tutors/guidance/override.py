"""Override: where advice was asked for and given, the tutor's action is taken.

With the decaying consult probability of `tutors.asking` this is the method of Toral & Lazebnik 2025,
arXiv:2509.08329. The tutor's best action is taken, as of a model that names one.
"""

import torch
from torch import Tensor

from agents.base import Guidance, Proposal


class Override(Guidance):
    """Take the tutor's best action in place of the student's."""

    def choose(self, proposal: Proposal, advised: Tensor, wanted: Tensor) -> Tensor:
        given = wanted & (advised.sum(1) > 0)
        return torch.where(given, advised.argmax(1), proposal.action)
