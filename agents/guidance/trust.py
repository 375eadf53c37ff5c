"""Trust: how much advice counts, from what it has been shown to be worth.

The tutor plays some episodes alone, the student plays its own. Trust is the share of the way from the untrained student
to the tutor that the student has still before it, times how clearly the tutor is better than an untrained student:

    trust = clip((J_tutor - J_student) / (J_tutor - J_0), 0, 1) * clip((J_tutor - J_0) / s_tutor, 0, 1)

J is a mean return, s a standard deviation of returns, J_0 the student's lowest mean so far. Trust stays 0 until a lower
bound of J_tutor - J_student is above 0, and is 0 again when an upper bound of it is not. Evidence comes from returns
alone: a network that imitation has touched holds the tutor's action for the best by construction.

Sources: QDagger (Agarwal et al. 2022, arXiv:2206.01626) draws less to a teacher the better the student is, by
1 - G_student / G_teacher, which has no meaning where returns are negative: hence J_0. The second factor is ours: a
tutor that is only a little better than random play is soon overtaken, and what was learned from it must be unlearned.
The bounds are an asymptotic confidence sequence (Waudby-Smith et al. 2021, arXiv:2103.06476), valid however often one
looks.

All returns are those of the first `horizon` time steps of an episode: probes cost env steps, and a tutor that survives
for long must not cost the more for it. The horizon is the same for both sides.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.distributed import all_reduce_sum
from envs.base import Step

ALPHA = 0.05  # probability that a bound is ever wrong
MIN_NUMBER = 16  # episodes: fewer say too little about their variance, which may seem to be 0
RHO = 0.2  # the bounds are tightest for some multiple of 1 / RHO^2 episodes
MIN_EFFECT = 0.25  # standard deviations between two mean returns, of which a smaller lead is not looked for
WINDOW = 64  # episodes: the bounds are those of the student's newest, at least so many
RECENT = 32  # episodes: what it has still to learn is measured by the newest, at least so many


class Returns(NamedTuple):
    """Sums over the returns of some episodes."""

    number: float = 0.0
    total: float = 0.0
    square: float = 0.0

    def plus(self, other: "Returns") -> "Returns":
        """Return the sums over both."""
        return Returns(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def mean(self) -> float:
        """The mean return; NaN without episodes."""
        return self.total / self.number if self.number else math.nan

    @property
    def variance(self) -> float:
        """The returns' variance; NaN for fewer than two episodes."""
        return max(self.square - self.total * self.mean, 0.0) / (self.number - 1) if self.number > 1 else math.nan

    @property
    def stderr(self) -> float:
        """The mean's standard error; NaN for fewer than two episodes."""
        return math.sqrt(self.variance / self.number) if self.number > 1 else math.nan

    @property
    def radius(self) -> float:
        """The half width of the mean's confidence sequence; infinite for fewer than MIN_NUMBER episodes."""
        if self.number < MIN_NUMBER:
            return math.inf
        weight = self.number * RHO**2
        scale = 2 * (weight + 1) / (self.number * weight) * math.log(math.sqrt(weight + 1) / ALPHA)
        return math.sqrt(self.variance * scale)


def sum_returns(blocks: Sequence[Returns]) -> Returns:
    """Return the sums over all blocks of episodes."""
    total = Returns()
    for block in blocks:
        total = total.plus(block)
    return total


class Trust:
    """The gate between a tutor and a student: fed with both sides' returns, it says how much advice counts."""

    def __init__(self) -> None:
        self.tutor = Returns()
        self.student: list[Returns] = []  # the newest episodes, oldest block first
        self.baseline = math.inf  # J_0
        self.is_open = False
        self.value = 0.0  # as of the last update

    def observe_student(self, returns: Returns) -> None:
        """Add episodes of the student alone, the newest."""
        if not returns.number:
            return
        self.student.append(returns)
        while sum(block.number for block in self.student[1:]) >= max(WINDOW, self.tutor.number):
            del self.student[0]
        if self.student_returns.number >= MIN_NUMBER:
            self.baseline = min(self.baseline, self.student_returns.mean)

    def observe_tutor(self, returns: Returns, changed: float = math.inf) -> bool:
        """Add episodes of the tutor alone, and return whether earlier ones are forgotten.

        They are if it is silent now, or if its mean return has changed by so many standard errors.
        """
        is_silent = not returns.number
        is_new = abs(returns.mean - self.tutor.mean) > changed * math.hypot(returns.stderr, self.tutor.stderr)
        self.tutor = returns if is_silent or is_new else self.tutor.plus(returns)
        if is_silent:
            self.is_open = False
        return is_silent or is_new

    @property
    def student_returns(self) -> Returns:
        """The student's newest episodes."""
        return sum_returns(self.student)

    @property
    def recent_returns(self) -> Returns:
        """The newest of them: a student may learn much in the time of WINDOW episodes."""
        total = Returns()
        for block in reversed(self.student):
            if total.number >= RECENT:
                break
            total = total.plus(block)
        return total

    @property
    def margin(self) -> tuple[float, float]:
        """Lower and upper bound of J_tutor - J_student."""
        student = self.student_returns
        gap, radius = self.tutor.mean - student.mean, math.hypot(self.tutor.radius, student.radius)
        return gap - radius, gap + radius

    @property
    def lead(self) -> float:
        """How far the tutor is ahead of an untrained student, in standard deviations of its returns (Cohen's d)."""
        return (self.tutor.mean - self.baseline) / max(math.sqrt(self.tutor.variance), 1e-9)

    @property
    def is_undecided(self) -> bool:
        """Whether it is not clear who plays better, and could matter: the tutor's lead may exceed MIN_EFFECT."""
        low, high = self.margin
        deviation = math.sqrt((self.tutor.variance + self.student_returns.variance) / 2)
        return not low > 0 and not high <= MIN_EFFECT * deviation

    def update(self) -> float:
        """Open or shut the gate by all that is known, and return the trust, in [0, 1], which is then `value`."""
        low, high = self.margin
        if low > 0:
            self.is_open = True
        elif not high > 0:
            self.is_open = False
        gap = self.tutor.mean - self.recent_returns.mean
        way = self.tutor.mean - self.baseline
        self.value = 0.0
        if self.is_open and gap > 0 and way > 0:
            self.value = min(gap / way, 1.0) * min(self.lead, 1.0)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        return {
            "tutor": list(self.tutor),
            "student": [list(block) for block in self.student],
            "baseline": self.baseline,
            "is_open": self.is_open,
            "value": self.value,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.tutor = Returns(*state["tutor"])
        self.student = [Returns(*block) for block in state["student"]]
        self.baseline, self.is_open, self.value = state["baseline"], state["is_open"], state["value"]


class ReturnMonitor:
    """Sums the returns of the first `horizon` time steps of each episode, on the device.

    In the run's first `horizon` time steps only the first episode of each copy counts, and `read` returns nothing until
    all of those are complete: while they go on, episodes that have ended are the short ones.

    Args:
        alone: (N,) bool: the env copies in which the student acts by itself; only they count.
        horizon: time steps.
    """

    def __init__(self, alone: Tensor, horizon: int) -> None:
        self.alone = alone
        self.horizon = horizon
        self.returns = torch.zeros(len(alone), device=alone.device)  # of the current episodes so far
        self.lengths = torch.zeros(len(alone), dtype=torch.int64, device=alone.device)
        self.time = torch.zeros((), dtype=torch.int64, device=alone.device)  # time steps so far
        self.sums = torch.zeros(3, dtype=torch.float64, device=alone.device)  # as Returns, since they were last read

    def add(self, step: Step) -> None:
        """Count one time step of all copies."""
        self.returns += step.reward * (self.lengths < self.horizon)
        self.lengths += 1
        self.time += 1
        done = step.terminated | step.truncated
        counted = self.alone & (done & (self.lengths <= self.horizon) | (self.lengths == self.horizon) & ~done)
        is_first = self.lengths == self.time
        counted = counted & (is_first | (self.time > self.horizon))
        returns = (self.returns * counted).double()
        self.sums += torch.stack([counted.double(), returns, returns * returns]).sum(1)
        self.returns *= ~done
        self.lengths *= ~done

    def read(self) -> Returns:
        """Return the episodes that were completed since the last call, on all ranks."""
        is_complete = self.time >= self.horizon
        returns = Returns(*all_reduce_sum(self.sums * is_complete).tolist())
        self.sums *= ~is_complete
        return returns

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums."""
        return {"returns": self.returns, "lengths": self.lengths, "time": self.time, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        for name, buffer in self.state_dict().items():
            buffer.copy_(state[name])
