"""What a checkpoint of a run holds, and when one is written."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents import Agent
from agents.distributed import rank
from envs.base import Env
from envs.episode_stats import EpisodeStats
from training.checkpoint import save_checkpoint
from training.self_play import SelfPlayOpponent
from training.timing import SectionTimer
from training.trust import TrustMonitor
from tutors.advisor import Advisor
from tutors.findings import FindingsTable
from tutors.query import QueryBudget, QueryStrategy

TOO_LARGE_STEPS = "a smaller --learning-rate or --max-grad-norm may help"
COUNTERS = ("global_step", "updates", "guided_from")
MAX_SAVING_SHARE = 50  # a checkpoint is due after so many times the seconds that the last one took


class TrainState:
    """All of a run that is as it was when the run resumes: its parts, its counters, its accumulators.

    Args:
        env: the env copies.
        agent: the student, with its guidance.
        advisor: whoever gives advice; None without a tutor.
        query_strategy: where advice is wanted.
        query_budget: how many queries are left.
        opponent: the student's own earlier self; None without self-play.
        findings: what a review of the student's episodes found; None without a review.
    """

    def __init__(
        self,
        env: Env,
        agent: Agent,
        advisor: Advisor | None,
        query_strategy: QueryStrategy,
        query_budget: QueryBudget,
        opponent: SelfPlayOpponent | None,
        findings: FindingsTable | None = None,
    ) -> None:
        self.env = env
        self.agent = agent
        self.advisor = advisor
        self.query_strategy = query_strategy
        self.query_budget = query_budget
        self.opponent = opponent
        self.findings = findings
        self.trust: TrustMonitor | None = None  # how much advice counts; None where that has a schedule
        self.episode_stats = EpisodeStats(env.num_envs, env.device)
        self.global_step = 0
        self.updates = 0
        self.rollout_steps = 0  # time steps of a rollout that is not learned from yet
        self.rollout_from = 0  # env step at which it began, before the tutor played anew
        self.guided_from = 0  # env step from which on there was guidance
        self.env_steps = torch.zeros((), dtype=torch.int64, device=env.device)  # as global_step, on the device
        self.agreement = torch.zeros(2, device=env.device)  # advice equal to the student's greedy action; all advice
        # how often each action was the student's decision, and the tutor's advice
        self.action_counts = torch.zeros(2, env.spec.num_actions, dtype=torch.int64, device=env.device)
        self.tutor_counters: dict[str, float] = {}  # of the advisor, of all ranks, when they were last logged
        self.last_update: dict[str, Tensor] = {}  # what the last update is logged with; 0-d each
        self.was_loaded = False
        self.started = time.monotonic()

    def state_dict(self) -> dict[str, object]:
        """Return tensors and plain containers only."""
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            "agent": self.agent.state_dict(),
            "guidance": self.agent.guidance.state_dict(),
            "env": self.env.state_dict(),
            "episode_stats": self.episode_stats.state_dict(),
            "query_strategy": self.query_strategy.state_dict(),
            "query_budget": self.query_budget.state_dict(),
            "advisor": None if self.advisor is None else self.advisor.state_dict(),
            "findings": None if self.findings is None else self.findings.state_dict(),
            "opponent": None if self.opponent is None else self.opponent.state_dict(),
            "trust": None if self.trust is None else self.trust.state_dict(),
            "env_steps": self.env_steps,
            "agreement": self.agreement,
            "tutor_counters": self.tutor_counters,
            "action_counts": self.action_counts,
            "seconds": time.monotonic() - self.started,
            "threads": torch.get_num_threads(),
            "rollout_from": self.rollout_from,
            "rollout": self.rollout_state(),
        }

    def rollout_state(self) -> dict[str, Any] | None:
        """Return the rollout that is under way; None between two, or where an env's episodes cannot be continued."""
        rollout = getattr(self.agent, "rollout", None)
        if rollout is None or not self.rollout_steps or not self.env.continues_episodes:
            return None
        strength = self.agent.guidance.strength
        return {"steps": rollout.state_dict(), "strength": strength}

    def load_rollout(self, state: dict[str, Any]) -> None:
        """Take over what `rollout_state` returned, if it fits."""
        agent: Any = self.agent
        agent.rollout.load_state_dict(state["steps"])
        self.rollout_steps = int(agent.rollout.pos)
        agent.guidance.strength.copy_(state["strength"])

    def cause_of_divergence(self) -> str:
        """Return why numbers of the student may not be finite: its env, if what that gave is not, or its own steps."""
        buffer: Any = getattr(self.agent, "rollout", None) or getattr(self.agent, "replay", None)
        for what, given in (("rewards", [self.episode_stats.returns]), ("observations", buffer.observations())):
            if not all(bool(part.isfinite().all()) for part in given):
                return f"the env {self.env.spec.name} gave {what} that are not finite, which no setting helps"
        return TOO_LARGE_STEPS

    def count_audit(self, env_steps: int) -> None:
        """Count env steps that an audit took before there was guidance."""
        self.global_step += env_steps
        self.env_steps += env_steps
        self.guided_from = self.global_step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over all of a run that resumes."""
        self.load_student(state)
        self.guided_from = state["guided_from"]
        if state.get("rollout") is not None:  # of version 1.1 there is none
            self.load_rollout(state["rollout"])
        self.rollout_from = state.get("rollout_from", self.global_step)
        self.agent.guidance.load_state_dict(state["guidance"])
        self.episode_stats.load_state_dict(state["episode_stats"])
        self.query_strategy.load_state_dict(state["query_strategy"])
        self.action_counts.copy_(state["action_counts"])
        self.tutor_counters = dict(state["tutor_counters"])
        if self.findings is not None and state["findings"] is not None:
            self.findings.load_state_dict(state["findings"])
        if self.trust is not None and state["trust"] is not None:
            self.trust.load_state_dict(state["trust"])
        if self.advisor is not None and state["advisor"] is not None:
            self.advisor.load_state_dict(state["advisor"])
            self.query_budget.load_state_dict(state["query_budget"])
            self.agreement.copy_(state["agreement"])

    def load_student(self, state: dict[str, Any]) -> None:
        """Take over another run's student and where its envs stand; tutor, guidance and counts begin anew."""
        self.global_step = self.guided_from = state["global_step"]
        self.updates = state["updates"]
        self.env_steps.copy_(state["env_steps"])
        if self.opponent is not None:
            self.opponent.load_state_dict(state["opponent"])
        self.agent.load_state_dict(state["agent"])
        self.env.load_state_dict(state["env"])
        self.started -= state["seconds"]
        self.was_loaded = True


class Checkpointer:
    """Writes checkpoints of a run, in at most a fiftieth of its time.

    Args:
        run_dir: the run's folder.
        minutes: the least time between two checkpoints.
        timer: counts the time as "save".
    """

    def __init__(self, run_dir: Path, minutes: float, timer: SectionTimer) -> None:
        self.run_dir = run_dir
        self.interval = 60 * minutes
        self.timer = timer
        self.saved_step: int | None = None  # env step of the last checkpoint
        self.saved_at = time.monotonic()
        self.duration = 0.0  # seconds that the last checkpoint took

    def loss(self, global_step: int) -> str:
        """Return what a program that ends at once loses."""
        if self.saved_step is None:
            return f"there is no checkpoint yet: all {global_step:,} env steps are lost"
        return f"lost are the {global_step - self.saved_step:,} env steps since the checkpoint of {self.saved_step:,}"

    def is_due(self) -> bool:
        """Return whether the last checkpoint is old enough."""
        return time.monotonic() - self.saved_at > max(self.interval, MAX_SAVING_SHARE * self.duration)

    def save(self, state: TrainState, is_last: bool = False) -> None:
        """Write a checkpoint, unless the student is not finite. A failed write is a warning.

        Raises:
            ValueError: a number of the last update or of the student is not finite, or the last checkpoint cannot be
                written.
        """
        numbers = state.last_update | largest_numbers(state.agent)
        check_finite(numbers, state.global_step, self.run_dir, state.cause_of_divergence)
        began = time.monotonic()
        try:
            folder = self.run_dir / "checkpoints"
            self.timer("save", save_checkpoint, folder, state.global_step, state.state_dict(), rank())
        except OSError as error:
            problem = f"no checkpoint could be written in {self.run_dir}: {error.strerror}; the last one is intact"
            if is_last:
                raise ValueError(problem) from error
            logging.getLogger(__name__).warning(problem)
        else:
            self.saved_step = state.global_step
        self.saved_at = time.monotonic()
        self.duration = self.saved_at - began


def largest_numbers(agent: Agent) -> dict[str, Tensor]:
    """Return the largest magnitude, 0-d, in each part of a student but its replay: not finite if one number is not."""
    parts = {name: part for name, part in agent.state_dict().items() if isinstance(part, dict) and name != "replay"}
    return {
        f"largest/{name}": torch.stack([one.detach().abs().max().float() for one in part.values()]).max()
        for name, part in parts.items()
    }


def check_finite(
    stats: dict[str, Tensor], global_step: int, run_dir: Path, cause: Callable[[], str] = lambda: TOO_LARGE_STEPS
) -> dict[str, float]:
    """Return numbers of a student and of its last update, in one read-back; `cause` says why they may not be finite.

    Raises:
        ValueError: one of them is not finite; diverged.json says which.
    """
    numbers = dict(zip(stats, torch.stack(list(stats.values())).tolist(), strict=True)) if stats else {}
    if not all(math.isfinite(value) for value in numbers.values()):
        dump = {"global_step": global_step, **{name: str(value) for name, value in numbers.items()}}
        where = f"see {run_dir / 'diverged.json'}"
        try:
            (run_dir / "diverged.json").write_text(json.dumps(dump, indent=2) + "\n")
        except OSError:
            where = ", ".join(f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value))
        raise ValueError(
            f"training diverged before step {global_step:,}: {where}. The checkpoints are of before; {cause()}"
        )
    return numbers
