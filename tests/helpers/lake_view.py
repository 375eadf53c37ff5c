"""A prompt view of Gymnasium's FrozenLake, whose expert goes right where it can, else down."""

import torch
from torch import Tensor

from envs.base import State
from tutors.prompts.base import PromptView


class LakeView(PromptView):
    """The field that one stands on."""

    game, name, version, labels, instructions = "gym:FrozenLake-v1", "field", 1, tuple("LDRU"), ""

    def key(self, state: State) -> Tensor:
        field = state["obs"].argmax(1)
        return torch.stack([field, torch.zeros_like(field)], 1)

    def render(self, state: State) -> list[str]:
        return [str(field) for field in state["obs"].argmax(1).tolist()]

    def expert_values(self, state: State, depth: int) -> Tensor:
        is_at_edge = state["obs"].argmax(1) % 4 == 3
        return torch.stack([torch.tensor([0, int(edge), 1 - int(edge), 0]) for edge in is_at_edge.tolist()])
