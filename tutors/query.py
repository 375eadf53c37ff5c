"""Which positions the tutor is asked about: the query strategy, the query budget, and both at once.

A strategy says where advice is wanted. What the table knows then costs nothing; each other position of a step is one
query, however many env copies are in it, and the budget says which are allowed. Everything here is a function of
tensors of fixed shapes that stay on the device: it reads nothing back, and can be compiled and captured.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.policy import Decision, action_probs, normalized_entropy
from envs.base import Step
from envs.registry import unknown_name_message
from envs.rng import CounterRNG, shift_right, splitmix64
from tutors.advice_table import UNLIMITED, first_index_of_equal, hash_keys
from tutors.advisor import Advisor, Lookup
from tutors.base import Advice

SKETCH_ROWS, LOG2_SKETCH_COLUMNS = 4, 19  # of the sketch that counts visits: 16 MiB
THRESHOLDS: dict[str, float | None] = {  # the query strategies, and the default threshold of those that have one
    "chance": None,
    "early": None,
    "importance": 0.2,
    "mistake": 0.2,
    "uncertainty": 0.5,
    "visited": 3.0,
}


class AdviceQuery:
    """Selects where advice is wanted, looks it up, and selects what the tutor is asked about.

    Args:
        strategy: where advice is wanted.
        budget: how many queries are allowed.
        rng: draws for each env copy.
        env_steps: 0-d int64, the env's own counter, by which `rng` draws; it never moves.
        consult_probability: returns the consult probability now, a 0-d tensor.
        strength: 0-d, of the guidance; where it is 0 no advice is wanted. None: advice is wanted whatever it is.
        alone: (N,) bool: the env copies in which no advice is wanted. None: there are none.
    """

    def __init__(
        self,
        strategy: "QueryStrategy",
        budget: "QueryBudget",
        rng: CounterRNG,
        env_steps: Tensor,
        consult_probability: Callable[[], Tensor],
        strength: Tensor | None = None,
        alone: Tensor | None = None,
    ) -> None:
        self.strategy = strategy
        self.budget = budget
        self.rng = rng
        self.env_steps = env_steps
        self.consult_probability = consult_probability
        self.strength = strength
        self.alone = alone

    @torch.no_grad()
    def select(self, advisor: Advisor, step: Step, decision: Decision) -> Lookup:
        """Return what the table knows of a step's positions, and which of them are to be asked about."""
        positions = advisor.canonicalize(step.state)
        u = self.rng.uniform(self.env_steps, 2)
        probability = self.consult_probability()
        request = self.strategy.select(positions.keys, decision.scores, step.action_mask, probability, u)
        wanted = request.wanted if self.strength is None else request.wanted & (self.strength > 0)
        wanted = wanted if self.alone is None else wanted & ~self.alone
        lookup = advisor.lookup(positions, wanted)
        return Lookup(positions, lookup.advice, self.budget.allow(positions.keys, request, lookup.misses))

    def filter_followed(self, advice: Advice, decision: Decision) -> Advice:
        """Return the advice to follow, of what `Advisor.resolve` returned for the last `select`."""
        return self.strategy.filter_followed(advice, decision.greedy, self.budget)


class QueryRequest(NamedTuple):
    """Where a student wants advice in N env copies."""

    wanted: Tensor  # (N,) bool
    score: Tensor  # (N,) float32: if few queries are allowed, it is those with the highest score
    u: Tensor  # (N,) float32 in [0, 1): decides between equal scores


def check_query_options(strategy: str, threshold: float | None, budget: int | None, per_step: int | None) -> None:
    """Raise ValueError for an unknown strategy, or a limit out of range."""
    if strategy not in THRESHOLDS:
        raise ValueError(unknown_name_message("query strategy", strategy, THRESHOLDS))
    if threshold is not None and THRESHOLDS[strategy] is None:
        raise ValueError(f"--query-strategy {strategy} has no threshold: leave out --query-threshold")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"query_threshold is {threshold}; it must be at least 0")
    if budget is not None and budget < 0:
        raise ValueError(f"query_budget is {budget}; it must be at least 0")
    if per_step is not None and per_step < 1:
        raise ValueError(f"query_budget_per_step is {per_step}; it must be at least 1")


def consult_probability(env_steps: Tensor, theta: int, p_init: float = 1.0, p_final: float = 0.1) -> Tensor:
    """Return P, 0-d float64, after `env_steps`, 0-d: from `p_init` to `p_final` over `theta` steps, then constant.

    Source: Toral & Lazebnik 2025, arXiv:2509.08329, as summarised: P = P_init - (step / theta)(P_init -
    P_final). Their theta is not known; ours is a setting.
    """
    if theta <= 0:
        progress = torch.ones_like(env_steps, dtype=torch.float64)
    else:
        progress = (env_steps.double() / theta).clamp(max=1.0)
    return p_init - progress * (p_init - p_final)


def by_chance(probability: float | Tensor, u: Tensor) -> Tensor:
    """Select each row independently with `probability`, (N,) bool for `u` (N,) in [0, 1)."""
    return u < torch.as_tensor(probability, dtype=torch.float32, device=u.device)


def importance(values: Tensor, action_mask: Tensor) -> Tensor:
    """Return the best legal action's value less the worst one's, (N,) for (N, A): how much the choice matters.

    Source: Torrey & Taylor 2013, "Teaching on a budget", I(s) = max Q - min Q of the teacher's values. Ours are the
    student's, since a language model has none and queries are what is to be saved; the student's were first taken by
    Amir et al. 2016, "Interactive teaching strategies for agent training". A policy's probabilities in their place are
    our own reading: they are far apart where the policy is decided.
    """
    return values.masked_fill(~action_mask, -torch.inf).amax(1) - values.masked_fill(~action_mask, torch.inf).amin(1)


class VisitSketch:
    """Counts how often each position was visited, in a sketch of fixed size.

    A count is never below the truth; with a probability of at least 1 - exp(-SKETCH_ROWS) it is above it by at most
    e / 2**LOG2_SKETCH_COLUMNS of all visits, 5 in a million: after millions of different positions each seems to have
    been visited before. Source: the count-min sketch of Cormode & Muthukrishnan 2005,
    doi:10.1016/j.jalgor.2003.12.001. To ask about what is visited most often is ours: those answers are used again.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.counts = torch.zeros(SKETCH_ROWS << LOG2_SKETCH_COLUMNS, dtype=torch.int64, device=device)
        self.rows = torch.arange(SKETCH_ROWS, device=device)[:, None]

    def add(self, keys: Tensor) -> Tensor:
        """Count one visit of each of `keys` (N, 2), and return each one's visits, those of this step included."""
        columns = shift_right(splitmix64(hash_keys(keys) + self.rows), 64 - LOG2_SKETCH_COLUMNS)
        cells = columns + (self.rows << LOG2_SKETCH_COLUMNS)  # (SKETCH_ROWS, N)
        self.counts.index_add_(0, cells.flatten(), torch.ones_like(cells.flatten()))
        return self.counts[cells].amin(0)

    def remove(self, keys: Tensor) -> None:
        """Count one visit less of each of `keys` (N, 2)."""
        before = self.counts.clone()
        self.add(keys)
        self.counts.copy_(2 * before - self.counts)


class QueryStrategy:
    """Where a student wants advice.

    chance       with the consult probability, everywhere: the paper's
    early        everywhere: until the budget is spent (Torrey & Taylor 2013, early advising)
    importance   where `importance` is above the threshold
    mistake      there too, but advice is followed only where it differs from the greedy action: see `filter_followed`
    uncertainty  where `normalized_entropy` is above the threshold
    visited      from the threshold's visit on

    Only `chance` uses the consult probability. Where no advice is wanted the table's is not used either.

    Args:
        name: one of these.
        threshold: that of THRESHOLDS if None.
        has_policy: whether the student's scores are log-probabilities; otherwise they are action values.
        device: where all tensors live.
    """

    def __init__(self, name: str, threshold: float | None, has_policy: bool, device: str | torch.device) -> None:
        self.name = name
        self.threshold = THRESHOLDS[name] if threshold is None else threshold
        self.has_policy = has_policy
        self.visits = VisitSketch(device) if name == "visited" else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the visits, if they are counted."""
        return {} if self.visits is None else {"visits": self.visits.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        if self.visits is not None:
            self.visits.counts.copy_(state["visits"])

    def select(
        self, keys: Tensor, scores: Tensor, action_mask: Tensor, probability: float | Tensor, u: Tensor
    ) -> QueryRequest:
        """Return where advice is wanted.

        Args:
            keys: (N, 2) int64, of the positions.
            scores: (N, A) float32, of the student's decision.
            action_mask: (N, A) bool.
            probability: the consult probability.
            u: (N, 2) in [0, 1).
        """
        u_select, u_tie = u.unbind(1)
        if self.threshold is None:
            everywhere = torch.ones_like(u_select).bool()
            wanted = by_chance(probability, u_select) if self.name == "chance" else everywhere
            return QueryRequest(wanted, torch.zeros_like(u_tie), u_tie)
        if self.visits is not None:
            score = self.visits.add(keys).float()
            return QueryRequest(score >= self.threshold, score, u_tie)
        probs = action_probs(scores, action_mask, self.has_policy)
        if self.name == "uncertainty":
            score = normalized_entropy(probs, action_mask)
        else:
            score = importance(probs if self.has_policy else scores, action_mask)
        return QueryRequest(score > self.threshold, score, u_tie)

    def filter_followed(self, advice: Advice, greedy: Tensor, budget: "QueryBudget") -> Advice:
        """Return the advice that is to be followed, given the student's greedy actions, (N,) int64.

        Mistake-correcting (Torrey & Taylor 2013): the tutor speaks only where the student errs, and only that is
        counted. Their tutor watches at no cost; ours must be asked before it can be known whether it differs. So
        what agreed is refunded to the budget of the run, which then bounds corrections and not what is paid: an
        agreeing answer costs its query, once in a position as long as the table keeps it. A step's limit bounds
        queries all the same. They compare with the action that the student is about to take, we with its greedy one.
        """
        if self.name != "mistake":
            return advice
        differs = advice.valid & (advice.probs.argmax(1) != greedy)
        budget.refund(differs)
        return Advice(advice.probs * differs[:, None], differs, advice.label_mass * differs)


class QueryBudget:
    """How many queries are allowed, in a run and in a step.

    A query is a position that is wanted and that the table does not know, once a step however many env copies are in
    it. It counts whether the store knows it, a tutor answers it or neither does, so a run spends the same whatever was
    asked before it. The table answers at no cost, also when the budget is spent. With an asynchronous tutor a
    position counts again in every step until its answer is there.

    Args:
        total: of the run; None: no limit. What is left is in `left`, a 0-d int64 tensor.
        per_step: those of the highest scores are allowed; None: no limit.
        device: where all tensors live.
    """

    def __init__(self, total: int | None, per_step: int | None, device: str | torch.device) -> None:
        self.is_limited = total is not None
        self.total = UNLIMITED if total is None else total
        self.per_step = per_step
        self.left = torch.tensor(self.total, device=device)
        self.first = torch.zeros(0, dtype=torch.int64, device=device)  # of the last step: each row's first equal row
        self.allowed = self.first.bool()

    def allow(self, keys: Tensor, request: QueryRequest, misses: Tensor) -> Tensor:
        """Return which rows may be asked about, (N,) bool, of those that are `misses`; and charge for them.

        The first row of a position stands for all of them, with the highest score among them.
        """
        if not self.is_limited and self.per_step is None:
            return misses
        self.first = first_index_of_equal(keys)
        score = torch.full_like(request.score, -torch.inf)
        score.scatter_reduce_(0, self.first, request.score.masked_fill(~misses, -torch.inf), "amax")
        order = request.u.argsort(stable=True)
        order = order[score[order].argsort(stable=True, descending=True)]
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        limit = self.left if self.per_step is None else self.left.clamp(max=self.per_step)
        is_query = (score > -torch.inf) & (rank < limit)
        if self.is_limited:
            self.left -= is_query.sum()
        self.allowed = misses & is_query[self.first]
        return self.allowed

    def refund(self, counts: Tensor) -> None:
        """Give back the last step's queries of which no row `counts`, (N,) bool."""
        if self.is_limited:
            worth = torch.where(self.allowed, 1 + counts.long(), 0)
            best = torch.zeros_like(worth).scatter_reduce_(0, self.first, worth, "amax")
            self.left += (best == 1).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the budget and what is left of it."""
        return {"total": self.total, "left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned: what was spent is spent, whatever the budget is now."""
        self.left.copy_((self.total - (state["total"] - state["left"])).clamp(min=0))

    def counters(self) -> dict[str, int]:
        """Return what is left of the run's budget; nothing without a limit. Reads it back."""
        return {"budget_left": int(self.left)} if self.is_limited else {}
