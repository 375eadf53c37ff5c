"""Who is worth asking about, and how often one may ask.

A way of asking says where advice is wanted, and how much. What the table holds is then had for nothing; each other
position that comes up in a step is one question, however many games are in it, and `QueryBudget` says which may be put.
All of it is made of tensors of fixed shapes, stays on the device and asks it nothing.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.policy import action_probs, normalized_entropy
from envs.registry import unknown_name_message
from envs.rng import shift_right, splitmix64
from tutors.advice_table import UNLIMITED, first_index_of_equal, hash_keys

DEPTH, BITS = 4, 19  # rows and the logarithm of the columns of the sketch that counts visits: 16 MiB
THRESHOLDS: dict[str, float | None] = {  # the ways of asking, and the threshold of those that have one
    "chance": None,
    "early": None,
    "importance": 0.2,
    "mistake": 0.2,
    "uncertainty": 0.5,
    "visited": 3.0,
}


class QueryRequest(NamedTuple):
    """Where a student wants advice in N games."""

    wanted: Tensor  # (N,) bool
    score: Tensor  # (N,) float32: where there may be few questions, the largest are put
    u: Tensor  # (N,) float32 in [0, 1): decides between equal scores


def check_query_options(method: str, threshold: float | None, budget: int | None, per_step: int | None) -> None:
    """Raise ValueError for a way of asking that is not there, or limits that are none."""
    if method not in THRESHOLDS:
        raise ValueError(unknown_name_message("way of asking", method, THRESHOLDS))
    if threshold is not None and THRESHOLDS[method] is None:
        raise ValueError(f"--query-strategy {method} has no threshold: leave out --query-threshold")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"query_threshold is {threshold}; it must be at least 0")
    if budget is not None and budget < 0:
        raise ValueError(f"query_budget is {budget}; it must be at least 0")
    if per_step is not None and per_step < 1:
        raise ValueError(f"query_budget_per_step is {per_step}; it must be at least 1")


def consult_probability(step: Tensor, theta: int, p_init: float = 1.0, p_final: float = 0.1) -> Tensor:
    """Return P, 0-d float64, after `step` env steps, 0-d: from `p_init` to `p_final` over `theta` steps, then constant.

    Source: Toral & Lazebnik 2025, arXiv:2509.08329, as summarised: P = P_init - (step / theta)(P_init -
    P_final). Their theta is not known; ours is a setting.
    """
    progress = (step.double() / theta).clamp(max=1.0) if theta > 0 else torch.ones_like(step, dtype=torch.float64)
    return p_init - progress * (p_init - p_final)


def by_chance(probability: float | Tensor, u: Tensor) -> Tensor:
    """Ask with `probability`, for each row on its own. (N,) bool for luck (N,) in [0, 1)."""
    return u < torch.as_tensor(probability, dtype=torch.float32, device=u.device)


def importance(worth: Tensor, action_mask: Tensor) -> Tensor:
    """Return how much it matters what is done: the best legal action's worth less the worst one's. (N,) for (N, A).

    Source: Torrey & Taylor 2013, "Teaching on a budget", I(s) = max Q - min Q of the teacher's values. Ours are the
    student's, since a language model has none and asking it is what is to be saved; the student's were first taken by
    Amir et al. 2016, "Interactive teaching strategies for agent training". A policy's probabilities in their place are
    our own reading: they are far apart where it has made up its mind.
    """
    return worth.masked_fill(~action_mask, -torch.inf).amax(1) - worth.masked_fill(~action_mask, torch.inf).amin(1)


class Visits:
    """How often each position was met, in a sketch of fixed size.

    Never less than the truth; and with a chance of at least 1 - exp(-DEPTH) it is more by at most e / 2**BITS of all
    visits, 5 in a million: after millions of different positions each seems to have been met before. Source: the
    count-min sketch of Cormode & Muthukrishnan 2005, doi:10.1016/j.jalgor.2003.12.001. To ask about what is met most
    often is ours: those answers are used again.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.counts = torch.zeros(DEPTH << BITS, dtype=torch.int64, device=device)
        self.rows = torch.arange(DEPTH, device=device)[:, None]

    def add(self, keys: Tensor) -> Tensor:
        """Count a visit of each of `keys` (N, 2), and return how many each has had, those of this step included."""
        places = shift_right(splitmix64(hash_keys(keys) + self.rows), 64 - BITS) + (self.rows << BITS)  # (DEPTH, N)
        self.counts.index_add_(0, places.flatten(), torch.ones_like(places.flatten()))
        return self.counts[places].amin(0)


class QueryStrategy:
    """Where a student wants advice.

    chance       with the consult probability, wherever that falls: the paper's
    early        everywhere: until the budget is spent (Torrey & Taylor 2013, early advising)
    importance   where `importance` is over the threshold
    mistake      there too, but advice counts only where it differs from the student's greedy action: see `heed`
    uncertainty  where `normalized_entropy` is over the threshold
    visited      from the threshold's visit on

    Only `chance` knows the consult probability. Where no advice is wanted the table's is not used either.

    Args:
        method: one of these.
        threshold: that of THRESHOLDS if not given.
        has_policy: whether the student's scores are log-probabilities; else they are values.
    """

    def __init__(self, method: str, threshold: float | None, has_policy: bool, device: str | torch.device) -> None:
        self.method, self.has_policy = method, has_policy
        self.threshold = THRESHOLDS[method] if threshold is None else threshold
        self.visits = Visits(device) if method == "visited" else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a run that goes on must have again: the visits, where they are counted."""
        return {} if self.visits is None else {"visits": self.visits.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with what `state_dict` returned."""
        if self.visits is not None:
            self.visits.counts.copy_(state["visits"])

    def wish(
        self, keys: Tensor, scores: Tensor, action_mask: Tensor, probability: float | Tensor, u: Tensor
    ) -> QueryRequest:
        """Return where advice is wanted.

        Args:
            keys: (N, 2) of the positions.
            scores: (N, A), what the student makes of the actions.
            legal: (N, A) bool.
            probability: the consult probability.
            luck: (N, 2) in [0, 1).
        """
        chance, ties = u.unbind(1)
        if self.threshold is None:
            wanted = by_chance(probability, chance) if self.method == "chance" else torch.ones_like(chance).bool()
            return QueryRequest(wanted, torch.zeros_like(ties), ties)
        if self.visits is not None:
            score = self.visits.add(keys).float()
            return QueryRequest(score >= self.threshold, score, ties)
        probs = action_probs(scores, action_mask, self.has_policy)
        if self.method == "uncertainty":
            score = normalized_entropy(probs, action_mask)
        else:
            score = importance(probs if self.has_policy else scores, action_mask)
        return QueryRequest(score > self.threshold, score, ties)

    def heed(self, wanted: Tensor, differs: Tensor, rations: "QueryBudget") -> Tensor:
        """Return where advice is to be followed, (N,) bool, of where it was wanted.

        Mistake-correcting (Torrey & Taylor 2013): the tutor speaks only where the student errs, and only that is
        counted. Their tutor is at hand and looks on; ours must be asked before it can be known whether it differs. So
        what agreed is given back to the budget of the run, which then bounds corrections and not what is paid: an
        agreeing answer costs its question, once in a position as long as the table keeps it. A step's limit bounds
        questions all the same. They compare with the action that the student is about to take, we with its greedy one.
        """
        if self.method != "mistake":
            return wanted
        rations.refund(differs)
        return wanted & differs


class QueryBudget:
    """How many questions may be put, in a run and in a step.

    A question is a position that is wanted and that the table does not hold, once a step however many games are in it.
    It counts whether the store knows it, a tutor answers it or nobody does, so a run spends the same whatever was
    asked before it. The table answers for nothing, also when the budget is spent. At a desk that does not wait a
    position counts again in every step until its answer is there.

    Args:
        budget: of the run; None for no end. What is left is in `left`, a 0-d int64 tensor.
        per_step: those of the highest scores are put; None for no end.
    """

    def __init__(self, budget: int | None, per_step: int | None, device: str | torch.device) -> None:
        self.budget, self.per_step = budget, per_step
        self.total = UNLIMITED if budget is None else budget
        self.left = torch.tensor(self.total, device=device)
        self.first = torch.zeros(0, dtype=torch.int64, device=device)  # of the last step: see `admit`
        self.asked = self.first.bool()

    def admit(self, keys: Tensor, wish: QueryRequest, missing: Tensor) -> Tensor:
        """Return about which rows a question is put, (N,) bool, of those `missing` in the table; and charge for them.

        The first row of a position stands for all of them, with the highest score among them.
        """
        if self.budget is None and self.per_step is None:
            return missing
        self.first = first_index_of_equal(keys)
        score = torch.full_like(wish.score, -torch.inf)
        score.scatter_reduce_(0, self.first, wish.score.masked_fill(~missing, -torch.inf), "amax")
        order = wish.u.argsort(stable=True)
        order = order[score[order].argsort(stable=True, descending=True)]
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        most = self.left if self.per_step is None else self.left.clamp(max=self.per_step)
        put = (score > -torch.inf) & (place < most)
        if self.budget is not None:
            self.left -= put.sum()
        self.asked = missing & put[self.first]
        return self.asked

    def refund(self, counts: Tensor) -> None:
        """Give back the last step's questions of which no row `counts` (N,) bool."""
        if self.budget is not None:
            worth = torch.where(self.asked, 1 + counts.long(), 0)
            best = torch.zeros_like(worth).scatter_reduce_(0, self.first, worth, "amax")
            self.left += (best == 1).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on must have again."""
        return {"total": self.total, "left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what `state_dict` returned: what was spent is spent, whatever the budget is now."""
        self.left.copy_((self.total - (state["total"] - state["left"])).clamp(min=0))

    def report(self) -> dict[str, float]:
        """Return what is left, as TensorBoard tags; nothing where there is no end. Reads it back."""
        return {} if self.budget is None else {"tutor/budget_left": float(self.left)}

    def summary(self) -> dict[str, int]:
        """Return what is left of a run's budget; nothing where there is no end."""
        return {} if self.budget is None else {"budget_left": int(self.left)}
