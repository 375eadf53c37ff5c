"""A tutor that searches instead of reading: the control of every experiment, with an adjustable accuracy.

It costs only time on the device, and it never fails.
"""

from collections import Counter

import torch
from torch import Tensor

from envs.base import State
from envs.rng import bits_to_uniform, sample_legal, splitmix64
from tutors.base import Advice, Tutor
from tutors.positions import best_actions
from tutors.prompts.base import PromptView


class ScriptedTutor(Tutor):
    """Names one of the search's best actions with probability `accuracy`, otherwise any legal one.

    With `names_all` it names all best actions, each with the same probability: one of several that are equally good,
    picked anew in every position, is a noisy teacher.

    Like a language model at temperature 0 it gives the same answer about a position whenever it is asked; if it is
    `stochastic`, it makes new errors every time, like a model that samples its answers.

    Args:
        view: which positions are equivalent, and the expert's values.
        accuracy: in [0, 1]. A random action may be a best one too.
        depth: how far the search looks ahead, in moves of both sides.
        seed: decides in which positions it errs.
        stochastic: whether it errs in other positions every time it is asked.
        names_all: whether it names all best actions where it is right.
    """

    def __init__(
        self,
        view: PromptView,
        accuracy: float = 1.0,
        depth: int = 4,
        seed: int = 0,
        stochastic: bool = False,
        names_all: bool = False,
    ) -> None:
        if not 0 <= accuracy <= 1:
            raise ValueError(f"tutor_accuracy is {accuracy}; it must lie between 0 and 1")
        if depth < 1:
            raise ValueError(f"tutor_depth is {depth}; it must be at least 1")
        self.view = view
        self.accuracy = accuracy
        self.depth = depth
        self.seed = seed
        self.stochastic = stochastic
        self.names_all = names_all
        self.name = "scripted"
        # the advice store knows `stochastic` by its name of version 0.7
        self.identity: dict[str, object] = {
            "tutor": "scripted",
            "depth": depth,
            "accuracy": accuracy,
            "seed": seed,
            "fresh": stochastic,
        }
        if names_all:
            self.identity["names_all"] = True
        self.stats: Counter[str] = Counter()

    def advise(self, state: State) -> Advice:
        values, action_mask = self.view.expert_values(state, self.depth), self.view.action_mask(state)
        key = self.view.key(state)
        time = self.stats["asked"] if self.stochastic else 0
        bits = splitmix64(key[:, 0] ^ splitmix64(key[:, 1] + self.seed) ^ splitmix64(torch.full_like(key[:, 0], time)))
        is_right = bits_to_uniform(bits) < self.accuracy
        best = best_actions(values, action_mask)
        action = sample_legal(torch.where(is_right[:, None], best, action_mask), bits_to_uniform(splitmix64(bits)))
        self.stats["asked"] += len(values)
        advice = one_hot(action, action_mask.shape[1])
        if not self.names_all:
            return advice
        shares = best / best.sum(1, keepdim=True)
        return Advice(torch.where(is_right[:, None], shares, advice.probs), advice.valid, advice.label_mass)


def one_hot(action: Tensor, num_actions: int) -> Advice:
    """Return advice that gives one action a row, (B,) int64, all probability."""
    probs = torch.nn.functional.one_hot(action, num_actions).float()
    label_mass = torch.ones(len(action), device=action.device)
    return Advice(probs, label_mass.bool(), label_mass)
