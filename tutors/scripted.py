"""A tutor that searches instead of reading: the control of every experiment, with an accuracy dial.

It costs nothing but time on the device, and it never fails.
"""

from collections import Counter

import torch
from torch import Tensor

from envs.base import State
from envs.rng import bits_to_uniform, sample_legal, splitmix64
from tutors.base import Advice, Tutor
from tutors.prompts.base import PromptView


class ScriptedTutor(Tutor):
    """Names one of the search's best moves with probability `accuracy`, else any legal one.

    Like a language model at temperature 0 it says the same about a position whenever it is asked; unless it is `fresh`,
    like one that samples its answers.

    Args:
        view: which positions are the same, and what a search holds of them.
        accuracy: in [0, 1]. A random move may be a best one too.
        depth: how far the search looks ahead, in moves of both sides.
        seed: which positions it is wrong about.
        fresh: it may be wrong about others whenever it is asked.
    """

    def __init__(
        self, view: PromptView, accuracy: float = 1.0, depth: int = 4, seed: int = 0, fresh: bool = False
    ) -> None:
        if not 0 <= accuracy <= 1:
            raise ValueError(f"a tutor's accuracy lies between 0 and 1, not at {accuracy}")
        if depth < 1:
            raise ValueError(f"a search looks at least 1 disc ahead, not {depth}")
        self.view, self.accuracy, self.depth, self.seed, self.fresh = view, accuracy, depth, seed, fresh
        self.name = "scripted"
        self.identity = {"tutor": "scripted", "depth": depth, "accuracy": accuracy, "seed": seed, "fresh": fresh}
        self.stats: Counter[str] = Counter()

    def advise(self, state: State) -> Advice:
        values, action_mask = self.view.expert_values(state, self.depth), self.view.action_mask(state)
        rows = len(values)
        key = self.view.key(state)
        time = self.stats["asked"] if self.fresh else 0
        chance = splitmix64(
            key[:, 0] ^ splitmix64(key[:, 1] + self.seed) ^ splitmix64(torch.full_like(key[:, 0], time))
        )
        right = bits_to_uniform(chance) < self.accuracy
        best = (values == values.amax(1, keepdim=True)) & action_mask
        action = sample_legal(torch.where(right[:, None], best, action_mask), bits_to_uniform(splitmix64(chance)))
        self.stats["asked"] += rows
        return one_hot(action, action_mask.shape[1])


def one_hot(action: Tensor, num_actions: int) -> Advice:
    """Return advice that names one action a row, without a doubt."""
    probs = torch.nn.functional.one_hot(action, num_actions).float()
    sure = torch.ones(len(action), device=action.device)
    return Advice(probs, sure.bool(), sure)
