"""A prompt view of the probe game Echo."""

import torch
from torch import Tensor

from envs.base import State
from tests.helpers.probes import Echo
from tutors.prompts.base import PromptView


class EchoView(PromptView):
    """The hidden column, of which only one is best; columns beside it may be illegal."""

    game, name, version, labels, instructions = "echo", "told", 1, tuple("ABCD"), ""
    walls = True

    def key(self, state: State) -> Tensor:
        return torch.stack([state["hidden"], torch.zeros_like(state["hidden"])], 1)

    def render(self, state: State) -> list[str]:
        return [str(hidden) for hidden in state["hidden"].tolist()]

    def action_mask(self, state: State) -> Tensor:
        return Echo(4, self.walls).observe(state)[1]

    def expert_values(self, state: State, depth: int) -> Tensor:
        return torch.nn.functional.one_hot(state["hidden"], 4)
