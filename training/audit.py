"""The audit of an episode review: what a model found acts only as far as the student does better with it.

A finding says which action is best in a state. The state is played on from twice, with the same random numbers: one arm
does that action first, the other what the student does there, and both go on with the greedy student alone, to the end
of the episode or for `MAX_ARM_STEPS`. The difference of the two returns is evidence that no imitation can fake.
Findings that name the same action in the same position share their evidence; where its mean is negative, they are
dropped. Then what is left is tried as a whole, since an action that pays once need not pay whenever its position comes
up: from the same states, with other random numbers, one arm follows all kept findings to its end, the other none.

Each of the two mean differences must be above 0 by a one-sided test at 5 % (Student's t over findings); else the model
is refused, and nothing of it acts.

A reward that was fitted to a model's comparisons is refused unless, over episodes that were not read, its sums have a
rank correlation with the returns that is above 0 by such a test.

Source: rollouts from a state with common random numbers are the vine of TRPO (Schulman et al. 2015, arXiv:1502.05477)
and the tests of rollout-based policy iteration (arXiv:0805.2027); numbers, budget and rules are ours.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents import Agent
from envs.base import Game, State, cat_states, select_rows, state_to
from envs.rng import ENV_STREAM, CounterRNG

AUDIT_SEED = 3_000_017  # added to a run's seed: its random numbers are those of no other part of the run
MAX_PAIRS = 8  # of arms after which a question gets no more
MAX_ARM_STEPS = 20
MAX_ENV_STEPS = 8_000
MAX_SHARE = 0.05  # of the env steps that are left of the run
MIN_SAMPLES = 5  # with fewer there is no verdict, and so no trust
CONFIDENCE = 0.95  # one-sided; the interval of 90 % has the same lower end


class AuditedFinding(NamedTuple):
    """A state in which an action was named."""

    question: Hashable  # equal where the same action was named in the same position
    state: State  # one row: the env's own state, not the canonical one
    action: int  # the env's own action
    time_left: int | None  # time steps until the episode is truncated; None: no time limit


@dataclass(frozen=True)
class Verdict:
    """A statistic that must be above 0, with its interval of 90 %."""

    value: float
    low: float
    high: float
    samples: int

    @property
    def is_refused(self) -> bool:
        """Whether the statistic is not known to be above 0."""
        return not self.low > 0

    def report(self) -> dict[str, Any]:
        """Return the verdict for JSON; no interval where nothing is known."""
        interval = [round(self.low, 4), round(self.high, 4)] if math.isfinite(self.high - self.low) else None
        return {"value": round(self.value, 4), "interval": interval, "samples": self.samples}

    def __str__(self) -> str:
        return f"{self.value:+.3f}, 90 % interval [{self.low:+.3f}, {self.high:+.3f}], {self.samples} samples"


@dataclass(frozen=True)
class Audit:
    """What an audit of findings came to."""

    differences: tuple[float | None, ...]  # of the returns, by finding: the mean of its question's; None: not tested
    alone: Verdict  # about the mean difference of the findings, each by itself
    together: Verdict  # about the mean difference of all that are kept
    env_steps: int

    @property
    def is_refused(self) -> bool:
        """Whether nothing acts."""
        return self.alone.is_refused or self.together.is_refused

    def keeps(self, index: int) -> bool:
        """Return whether a finding acts."""
        return not self.is_refused and helps(self.differences[index])

    def report(self) -> dict[str, Any]:
        """Return the audit as summary.json and analysis.json show it."""
        kept = sum(self.keeps(index) for index in range(len(self.differences)))
        return {
            "refused": self.is_refused,
            "kept": kept,
            "dropped": len(self.differences) - kept,
            "untested": sum(difference is None for difference in self.differences),
            "alone": self.alone.report(),
            "together": self.together.report(),
            "env_steps": self.env_steps,
        }


def helps(difference: float | None) -> bool:
    """Return whether a finding of this mean difference may act."""
    return difference is not None and difference >= 0


Policy = Callable[[State, Tensor, Tensor], Tensor]  # from the state, the observation and the mask to actions (B,)


class Auditor:
    """Plays on from states of a student's episodes.

    Args:
        game: the rules; the states are its own.
        agent: the student.
        max_env_steps: of all that is played.
        seed: of all random numbers.
    """

    def __init__(self, game: Game, agent: Agent, max_env_steps: int, seed: int) -> None:
        self.game = game
        self.agent = agent
        self.max_env_steps = max_env_steps
        self.seed = seed
        self.env_steps = 0
        self.num_pairs = 0

    def audit(self, findings: Sequence[AuditedFinding], follow: Callable[[Sequence[int]], Policy]) -> Audit:
        """Return what findings are worth.

        Args:
            findings: those of all episodes.
            follow: what the student does where it follows the findings of these indices.
        """
        order = torch.randperm(len(findings), generator=torch.Generator().manual_seed(self.seed)).tolist()
        by_finding, by_question = self.test_alone(findings, order)
        means = [fmean(by_question[one.question]) if by_question[one.question] else None for one in findings]
        alone = mean_verdict([fmean(several) for several in by_finding.values()])
        kept = [index for index, difference in enumerate(means) if helps(difference)]
        together = mean_verdict([])
        if kept and not alone.is_refused:
            together = mean_verdict(self.test_together(findings, list(by_finding), follow(kept)))
        return Audit(tuple(means), alone, together, self.env_steps)

    def test_alone(
        self, findings: Sequence[AuditedFinding], order: Sequence[int]
    ) -> tuple[dict[int, list[float]], dict[Hashable, list[float]]]:
        """Return the differences of what each finding does by itself, by finding and by question.

        First one pair of arms for each finding that the budget allows, then more for questions that have less than
        `MAX_PAIRS`. If the mean of the first pairs is not above 0, there are no more. Where the student would do the
        same anyway, nothing is played: that counts as a difference of 0 for the question, and not for the model.
        """
        by_finding: dict[int, list[float]] = {}
        by_question: dict[Hashable, list[float]] = defaultdict(list)
        budget = self.max_env_steps // 2
        for _ in range(MAX_PAIRS):
            pending = [index for index in order if len(by_question[findings[index].question]) < MAX_PAIRS]
            while pending and (room := (budget - self.env_steps) // (2 * MAX_ARM_STEPS)):
                chunk, pending = pending[:room], pending[room:]
                differences, is_other = self.compare([findings[index] for index in chunk], None)
                for index, difference, other in zip(chunk, differences, is_other, strict=True):
                    by_question[findings[index].question].append(difference)
                    if other:
                        by_finding.setdefault(index, []).append(difference)
            if pending or not by_finding or fmean(several[0] for several in by_finding.values()) <= 0:
                break
        return by_finding, by_question

    def test_together(self, findings: Sequence[AuditedFinding], indices: Sequence[int], policy: Policy) -> list[float]:
        """Return the differences of what a policy does from states that were tested, as many as the budget allows."""
        found: list[float] = []
        pending = indices
        while pending and (room := (self.max_env_steps - self.env_steps) // (2 * MAX_ARM_STEPS)):
            chunk, pending = pending[:room], pending[room:]
            found += self.compare([findings[index] for index in chunk], policy)[0]
        return found

    @torch.no_grad()
    def compare(self, findings: Sequence[AuditedFinding], policy: Policy | None) -> tuple[list[float], list[bool]]:
        """Play on from each finding's state in two arms with the same random numbers.

        The first arm does the action named and goes on as the student, or follows `policy` all along; the second is the
        student's. Return the differences of the two returns, and where the first action of the two differs. Without a
        policy nothing is played where it does not.
        """
        device = self.agent.guidance.strength.device
        states = state_to(cat_states([one.state for one in findings]), device)
        rng = CounterRNG(self.seed, torch.arange(len(findings), device=device) + self.num_pairs, ENV_STREAM)
        self.num_pairs += len(findings)
        limits = [MAX_ARM_STEPS if one.time_left is None else min(one.time_left, MAX_ARM_STEPS) for one in findings]
        steps_left = torch.tensor(limits, device=device)
        own = self.own_action(states, *self.game.observe(states))
        if policy is None:
            first = torch.tensor([one.action for one in findings], device=device)
            rows = (first != own).nonzero()[:, 0]
        else:
            first = policy(states, *self.game.observe(states))
            rows = torch.arange(len(own), device=device)
        differences = torch.zeros(len(own), device=device)
        for action, then, sign in ((first, policy or self.own_action, 1), (own, self.own_action, -1)):
            returns = self.play_on(select_rows(states, rows), action[rows], then, steps_left[rows], (rng, rows))
            differences[rows] += sign * returns
        return differences.tolist(), (first != own).tolist()

    def own_action(self, state: State, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return what the student does."""
        return self.agent.greedy(obs, action_mask)

    def play_on(
        self, state: State, action: Tensor, policy: Policy, limits: Tensor, randomness: tuple[CounterRNG, Tensor]
    ) -> Tensor:
        """Return the returns of episodes that go on from states with an action and then a policy, (B,).

        Args:
            state: B rows.
            action: (B,) int64.
            policy: what is done after it.
            limits: (B,) int64, time steps at most.
            randomness: a generator, and the row of its numbers that each episode gets, (B,) int64.
        """
        rng, row_of = randomness
        returns = torch.zeros(len(action), device=action.device)
        rows = torch.arange(len(action), device=action.device)
        step = 0
        while len(rows):
            u = rng.uniform(step, self.game.spec.num_step_uniforms)[row_of[rows]]
            state, reward, terminated = self.game.step(state, action, u)
            step += 1
            returns[rows] += reward
            self.env_steps += len(rows)
            going_on = (~terminated & (step < limits[rows])).nonzero()[:, 0]
            rows, state = rows[going_on], select_rows(state, going_on)
            action = policy(state, *self.game.observe(state))
        return returns


def mean_verdict(values: Sequence[float]) -> Verdict:
    """Return the mean with its interval by Student's t; from fewer than `MIN_SAMPLES` nothing is known."""
    samples = torch.tensor(values, dtype=torch.float64)
    mean = float(samples.mean()) if len(samples) else 0.0
    if len(samples) < MIN_SAMPLES:
        return Verdict(mean, -math.inf, math.inf, len(samples))
    radius = t_quantile(CONFIDENCE, len(samples) - 1) * float(samples.std()) / math.sqrt(len(samples))
    return Verdict(mean, mean - radius, mean + radius, len(samples))


def t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t from 4 degrees of freedom on, to three digits.

    Source: the Cornish-Fisher expansion about the normal quantile, Abramowitz & Stegun 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def rank_verdict(values: Sequence[float], others: Sequence[float]) -> Verdict:
    """Return Spearman's rank correlation with its interval by Fisher's transform.

    Source of its variance, (1 + r^2 / 2) / (n - 3): Bonett & Wright 2000, doi:10.1007/BF02294183.
    """
    pair = torch.stack([average_ranks(values), average_ranks(others)])
    samples = len(values)
    if samples < MIN_SAMPLES or not bool((pair.std(1) > 0).all()):
        return Verdict(0.0, -1.0, 1.0, samples)
    correlation = float(torch.corrcoef(pair)[0, 1])
    centre = math.atanh(max(min(correlation, 1 - 1e-9), 1e-9 - 1))
    radius = NormalDist().inv_cdf(CONFIDENCE) * math.sqrt((1 + correlation**2 / 2) / (samples - 3))
    return Verdict(correlation, math.tanh(centre - radius), math.tanh(centre + radius), samples)


def average_ranks(values: Sequence[float]) -> Tensor:
    """Return the rank of each value, (B,) float64; equal values share the mean of theirs."""
    numbers = torch.tensor(values, dtype=torch.float64)
    below = (numbers[:, None] > numbers).sum(1)
    equal = (numbers[:, None] == numbers).sum(1)
    return below + (equal - 1) / 2.0
