"""What a tutor is worth to a run, found out while it goes on: probe episodes, the student's returns, trust.

The tutor plays some probe episodes when the run starts; the student's own episodes say how far it has come. While it is
not clear who is better, and as long as it could matter, the tutor plays again; a tutor that is found better is imitated
at once: the student is pretrained on its probe episodes. It plays again from time to time, since it may have changed.

A tutor that plays better than the student is not yet one that teaches it anything: pulled towards a mediocre tutor, a
student stays as mediocre, and would have come further alone. So trust also falls with time, to 0 over DECAY_SHARE of
the run, unless advice is shown to help the student as it is now. That is known where some env copies follow advice and
others do not: both begin in the same states, and the means of their returns differ by what advice is worth. A tutor
that is clearly ahead is given until the student's first episodes are complete: before that nobody knows how far advice
has brought it.

A tutor may know some positions and guess in others. Where its confidence, the largest probability in its advice,
varies, it is judged at several levels: all advice, the more confident half of it, the most confident quarter. In the
probes of a level it plays where it is that confident, and the student elsewhere; each level has a gate of its own, and
advice counts from the level on whose trust is the highest.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from agents import Agent
from agents.distributed import broadcast_object
from agents.guidance.trust import ReturnMonitor, Returns, Trust, sum_returns
from envs.base import Env, Step
from envs.rng import PRETRAINING_STREAM, CounterRNG
from training.config import Config
from training.probe import MAX_COPIES, Advise, Demonstrations, Probe, Result, confident
from training.stop_signal import Interruption

PROBE_SHARE = 0.02  # of the run's env steps: what one probe takes at most
FIRST_SHARE = 0.01  # of the run's env steps: the tutor plays again at the start as long as this is not exceeded
MAX_FIRST_EPISODES = 1024  # of the tutor at the start
UNDECIDED_SHARE = 0.02  # of the run's env steps: what all probes take at most while it is not clear who is better
OPEN_SHARE = 0.04  # of the run's env steps: what all probes take at most while advice counts
NUM_UPDATES = 100  # how often in a run trust is decided anew
NUM_PROBES = 10  # how often in a run the tutor plays again while its advice counts
NUM_UNDECIDED_PROBES = 50  # and while it is not clear who is better
DECAY_SHARE = 0.2  # of the run: how long a tutor that plays better counts without evidence that it helps
CLEAR_LEAD = 2.0  # standard deviations: a tutor so far ahead counts in full until the student is measured
NUM_EVIDENCE = 5  # updates whose led episodes are compared with the student's own
BATCH_SIZE = 256  # rows of demonstrations in an update
MAX_DEMONSTRATIONS = 20_000  # rows that are kept, the newest
CHANGED = 3.0  # standard errors between two probes of a tutor, beyond which the earlier one no longer counts
LEVELS = (0.0, 0.5, 0.75)  # shares of a tutor's advice that are less confident than the level
LEVEL_COPIES = 32  # episodes of the first probe of the levels above 0; where a probe is too short for them, none
NUMBERS = (  # of a monitor's state
    *("value", "level", "confidences", "opened_at", "falls_from", "counted_until"),
    *("probe_steps", "next_update", "last_probe", "pretrain_left"),
)
NO_EVIDENCE = (Returns(), Returns())
PARTS = ("alone", "led", "probe")


class TrustMonitor:
    """Decides how much advice counts, for one run.

    Args:
        config: the run's options.
        env: the env in which the student learns.
        agent: the student, with a guidance that has a strength.
        advise: asks the tutor about a probe's positions, and waits.
        start: the env step at which guidance begins.
        interrupting: a context that raises Interruption where a signal came. In probe episodes it undoes the update;
            between two pretraining updates the rest of those is left for the next call.
    """

    def __init__(
        self,
        config: Config,
        env: Env,
        agent: Agent,
        advise: Advise,
        start: int,
        interrupting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        alone = agent.guidance.alone
        self.agent = agent
        self.advise = advise
        self.interrupting = interrupting
        self.pretrain_updates = config.guiding.pretrain_updates
        self.num_steps = max(config.total_steps - start, 1)
        self.probe = Probe(config, env, max(int(PROBE_SHARE * self.num_steps), 1))
        self.alone = ReturnMonitor(alone, self.probe.horizon)
        self.led = ReturnMonitor(~alone, self.probe.horizon)
        self.rng = CounterRNG(config.seed, torch.arange(BATCH_SIZE, device=env.device), PRETRAINING_STREAM)
        self.has_led_copies = not bool(alone.all())
        self.gates = [Trust()]  # of each level of confidence
        self.confidences = [0.0]  # the least confidence of each level
        self.level = 0  # the one from which on advice counts, or did last
        self.min_confidence = torch.zeros((), device=env.device)  # of that level
        self.value = 0.0  # trust, as of the last update
        self.evidence: list[tuple[Returns, Returns]] = []  # the newest led episodes, and the student's own beside them
        self.demonstrations: Demonstrations | None = None  # until they are learned from
        self.opened_at: int | None = None  # env step at which the tutor was found better
        self.falls_from: int | None = None  # env step from which on trust falls with time
        self.counted_until: int | None = None  # env step at which it was last found so
        self.pretrain_left = 0  # updates
        self.probe_steps = 0  # env steps of all probes
        self.next_update = -math.inf  # env step
        self.last_probe = start  # env step

    def add(self, step: Step) -> None:
        """Count one time step of all env copies, on the device."""
        self.alone.add(step)
        if self.has_led_copies:
            self.led.add(step)

    def update(self, global_step: int) -> None:
        """Decide trust anew where that is due; `probe_steps` then holds the env steps of new probes, too."""
        if global_step >= self.next_update and not self.pretrain_left:
            before = copy.deepcopy(self.state_dict())
            try:
                self.decide(global_step)
            except Interruption:
                self.load_state_dict(before)
                raise
        self.pretrain()

    def decide(self, global_step: int) -> None:
        """Decide trust anew."""
        own, led = self.alone.read(), self.led.read()
        self.observe_student(own)
        self.evidence = [*self.evidence, (led, own)][-NUM_EVIDENCE:] if self.value else []
        if self.next_update == -math.inf:
            self.first_probes()
        else:
            self.later_probe(global_step)
        trusts = [gate.update() for gate in self.gates]
        self.value = max(trusts)
        if self.value:
            self.choose(trusts.index(self.value))
            if self.opened_at is None:
                self.opened_at = global_step
                self.pretrain_left = self.start_pretraining()
            if self.falls_from is None and (own.number or self.trust.lead < CLEAR_LEAD):
                self.falls_from = global_step
            if self.falls_from is not None and not self.helps():
                self.value *= max(1 - (global_step - self.falls_from) / (DECAY_SHARE * self.num_steps), 0.0)
        if self.value:
            self.counted_until = global_step
        self.next_update = global_step + self.num_steps // NUM_UPDATES

    @property
    def trust(self) -> Trust:
        """The gate of the level from which on advice counts."""
        return self.gates[self.level]

    def choose(self, level: int) -> None:
        """Let advice count from that level on."""
        self.level = level
        self.min_confidence.fill_(self.confidences[level])

    def followed(self, advice: Tensor) -> Tensor:
        """Return the advice (N, A) that counts, and zeros in place of what is not confident enough."""
        return confident(advice, self.min_confidence)

    def observe_student(self, returns: Returns) -> None:
        """Add the student's newest episodes at all levels."""
        for gate in self.gates:
            gate.observe_student(returns)

    def helps(self) -> bool:
        """Return whether episodes that follow advice are shown to be better than the student's own beside them."""
        led, own = (sum_returns(blocks) for blocks in zip(*self.evidence or [NO_EVIDENCE], strict=True))
        return led.mean - own.mean > math.hypot(led.radius, own.radius)

    def first_probes(self) -> None:
        """Let the tutor play, and the student as it is now; short episodes again, as long as FIRST_SHARE allows."""
        last, advised = self.probe_tutor([0])
        if not advised:
            return
        assert self.demonstrations is not None
        self.confidences = broadcast_object(find_levels(self.demonstrations.advice))
        self.gates = [self.gates[0], *(Trust() for _ in self.confidences[1:])]
        if len(self.gates) > 1 and self.probe.copies >= 2 * LEVEL_COPIES:
            last, _ = self.probe_tutor(range(1, len(self.gates)), LEVEL_COPIES)
        limit = FIRST_SHARE * self.num_steps
        for _ in range(math.ceil(MAX_FIRST_EPISODES / self.probe.copies) - 1):
            if not advised or self.probe_steps + last > limit:
                break
            last, advised = self.probe_tutor(range(len(self.gates)))
        (result,), _ = self.play(None)
        self.probe_steps += result.steps
        self.observe_student(result.returns)

    def later_probe(self, global_step: int) -> None:
        """Let the tutor play again where that is due and worth it."""
        number, share = (NUM_PROBES, OPEN_SHARE) if self.value else (NUM_UNDECIDED_PROBES, UNDECIDED_SHARE)
        if global_step < self.last_probe + self.num_steps // number or self.probe_steps >= share * self.num_steps:
            return
        counts = [self.level] if self.value else []
        levels = [level for level, gate in enumerate(self.gates) if level in counts or gate.is_undecided]
        if levels:
            self.probe_tutor(levels)
            self.last_probe = global_step  # not where the tutor has failed: then the resumed run plays the probe again

    def probe_tutor(self, levels: Sequence[int], copies: int = MAX_COPIES) -> tuple[int, int]:
        """Let the tutor play at some levels, and return the env steps, and how many of them it advised."""
        confidences = [self.confidences[level] for level in levels]
        results, demonstrations = self.play(self.advise, confidences, copies)
        self.probe_steps += sum(result.steps for result in results)
        is_new = False
        for level, result in zip(levels, results, strict=True):
            is_new |= self.gates[level].observe_tutor(result.returns if result.advised else Returns(), CHANGED)
        if self.opened_at is None:
            known = None if is_new else self.demonstrations
            known = demonstrations if known is None else known.plus(demonstrations)
            self.demonstrations = known.rows(slice(-MAX_DEMONSTRATIONS, None))
        return sum(result.steps for result in results), sum(result.advised for result in results)

    def play(
        self, advise: Advise | None, confidences: Sequence[float] = (0.0,), copies: int = MAX_COPIES
    ) -> tuple[list[Result], Demonstrations]:
        """Play probe episodes, which a signal may interrupt."""
        with self.interrupting():
            return self.probe.play(self.agent, advise, confidences, copies)

    def start_pretraining(self) -> int:
        """Keep what counts of the tutor's probe episodes, and return how many updates it is learned in: by trust."""
        if self.demonstrations is None or not len(self.demonstrations.obs):
            self.demonstrations = None
            return 0
        self.demonstrations = self.demonstrations._replace(advice=self.followed(self.demonstrations.advice))
        return round(self.pretrain_updates * self.value)

    def pretrain(self) -> None:
        """Imitate what the tutor did in the probes, then forget it; a signal ends that between two updates."""
        if self.demonstrations is None or self.opened_at is None:
            return
        number = len(self.demonstrations.obs)
        while self.pretrain_left:
            with self.interrupting():  # ends at once if a signal came; not within an update
                pass
            u = self.rng.uniform(torch.tensor(self.pretrain_left, device=self.demonstrations.obs.device), 1)[:, 0]
            self.agent.pretrain(*self.demonstrations.rows((u.double() * number).long()))
            self.pretrain_left -= 1
        self.demonstrations = None

    def values(self) -> dict[str, float]:
        """Return what there is to log."""
        found = {"tutor/trust": self.value}
        if len(self.gates) > 1:
            for share, gate in zip(LEVELS, self.gates, strict=False):
                found[f"tutor/trust_by_confidence/{share:.0%}"] = gate.value
        if self.trust.tutor.number:
            found["tutor/return"] = self.trust.tutor.mean
        if self.trust.student:
            found["student/return"] = self.trust.student_returns.mean
        return found

    def summary(self) -> dict[str, Any]:
        """Return what the tutor was worth, for summary.json."""
        return {
            "trust": round(self.value, 4),
            "tutor_return": round(self.trust.tutor.mean, 4) if self.trust.tutor.number else None,
            "baseline_return": round(self.trust.baseline, 4) if math.isfinite(self.trust.baseline) else None,
            "min_confidence": round(self.confidences[self.level], 4),
            "horizon": self.probe.horizon,
            "probe_steps": self.probe_steps,
            "counted_from": self.opened_at,
            "counted_until": self.counted_until,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        kept = None if self.demonstrations is None else self.demonstrations._asdict()
        numbers = {name: getattr(self, name) for name in NUMBERS}
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        numbers["horizon"] = self.probe.horizon
        numbers["gates"] = [gate.state_dict() for gate in self.gates]
        return {
            **numbers,
            **parts,
            "demonstrations": kept,
            "evidence": [[list(led), list(own)] for led, own in self.evidence],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if "gates" not in state or state["horizon"] != self.probe.horizon:
            return  # of version 1.1, or of another number of env steps, whose returns cannot be compared
        for name in NUMBERS:
            setattr(self, name, state[name])
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.gates = [Trust() for _ in state["gates"]]
        for gate, gate_state in zip(self.gates, state["gates"], strict=True):
            gate.load_state_dict(gate_state)
        self.choose(self.level)
        self.evidence = [(Returns(*led), Returns(*own)) for led, own in state["evidence"]]
        kept = state["demonstrations"]
        self.demonstrations = None if kept is None else Demonstrations(**kept)


def find_levels(advice: Tensor) -> list[float]:
    """Return the least confidence of each level, for advice (B, A): 0, and quantiles that leave something out."""
    confidence = advice.amax(1)
    confidence = confidence[confidence > 0].double().cpu()
    if not len(confidence):
        return [0.0]
    found = [float(confidence.quantile(share)) for share in LEVELS[1:]]
    return list(dict.fromkeys([0.0, *(level for level in found if level > confidence.min() + 1e-3)]))
