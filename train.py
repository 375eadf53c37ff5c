"""Train one student, with or without a tutor: `python train.py --algo dqn --env connect4 --tutor deepseek`."""

if __name__ == "__main__":
    from training.interrupts import exit_on_interrupt  # before PyTorch is imported

    exit_on_interrupt()

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents import Agent
from agents.compile import compile_methods
from agents.distributed import (
    all_gather_sum,
    all_reduce_sum,
    broadcast_object,
    init,
    rank,
    shard_size,
    shutdown,
    world_size,
)
from agents.guidance import find_method
from agents.policy import Decision
from envs.base import Env, EnvError, Step
from envs.opponents import SelfPlay
from envs.rng import GUIDANCE_STREAM, QUERY_STREAM, CounterRNG
from training.checkpoint import atomic_write, check_fit
from training.cli import run_program
from training.compile_mode import keep_compiled, resolve_compile_mode
from training.config import (
    COMMON_FLAGS,
    EXAMPLES,
    Config,
    defaults_from_flags,
    evaluation_env,
    find_device,
    make_agent,
    make_env,
)
from training.config_json import to_plain
from training.console import QUIET, Progress, make_progress
from training.episode_review import empty_findings, review_episodes
from training.evaluation import Result, describe_game, evaluate_student
from training.flag_effects import check_effects
from training.hints import resume_command
from training.logger import Logger
from training.resume import load_source, lock_run_dir, removed_unless_begun, resolve_run, settings
from training.self_play import SelfPlayOpponent
from training.state import Checkpointer, TrainState, check_finite
from training.stop_signal import Interruption, StopSignal
from training.threads import threads_text
from training.timing import SectionTimer, untimed
from training.tracking import Tracker
from training.trust import TrustMonitor
from training.video import EpisodeRecorder
from tutors import open_advisor
from tutors.advisor import Advisor, Lookup, advisor_metrics, advisor_summary
from tutors.base import Advice, TutorError
from tutors.display import without_password
from tutors.findings import FindingsTable
from tutors.llm.server import die_with_parent
from tutors.prompts import make_view
from tutors.query import AdviceQuery, QueryBudget, QueryRequest, QueryStrategy, consult_probability


def train(config: Config) -> dict[str, Any]:
    """Train a student, leave everything in its run_dir, and return what summary.json says.

    Raises:
        ValueError: an option cannot be fulfilled.
        TutorError: the tutor is not available, or no longer; what was learned is saved.
        SystemExit: a signal stopped the run; what was learned is saved.
    """
    device = init(find_device(config.device))
    if world_size() > 1:
        die_with_parent()  # torchrun's agent, whatever ends it; then the run is saved as at any SIGTERM
    config.check()
    config, run_dir, resuming = resolve_run(replace(config, device=device))
    config = replace(config, compile_mode=resolve_compile_mode(config))
    keep_compiled()
    source = load_source(config, resuming, device)
    threads = None if source is None or not resuming else source.get("threads")  # none in a run of version 1.1
    if threads is not None:
        torch.set_num_threads(threads)  # what is computed depends on their number, in the last bits
    env = make_env(config, device)
    if config.tutoring.tutor != "none":
        make_view(env.game, config.tutoring.view, not config.tutoring.no_symmetry)  # fails before there is a run_dir
    agent = make_agent(config, env)
    with ExitStack() as stack:
        stack.callback(shutdown)
        log, progress = stack.enter_context(open_logs(config, run_dir, source))
        has_review = find_method(config.guiding.guidance, config.algo).needs_episode_review
        findings = empty_findings(config, env) if has_review else None
        advisor = None if has_review else open_advisor_in_turn(config, run_dir, env, progress, stack)
        if device == "cpu" and threads is None and advisor is not None and advisor.tutor.shares_cpu:
            torch.set_num_threads(1)  # beside a server on two cores: 1,180 steps/s with one thread, 260 with two
            progress.note("1 thread, beside the tutor's server")
        start = 0 if source is None else source["guided_from" if resuming else "global_step"]
        trainer = Trainer(config, env, agent, advisor, log, progress, findings, start)
        if source is not None:
            load = trainer.state.load_state_dict if resuming else trainer.state.load_student
            with check_fit(config.resume or run_dir):
                load(source)
        if has_review and not resuming:
            assert findings is not None
            steps_left = config.total_steps - trainer.state.global_step
            progress.note(review_episodes(config, agent, findings, progress.status, steps_left))
            trainer.state.count_audit(findings.audit.get("env_steps", 0))
        if rank() == 0:
            atomic_write(run_dir / "config.json", config.to_json().encode() + b"\n")
        if has_review and not resuming:
            trainer.checkpointer.save(trainer.state)  # the review is paid for: a run that is killed resumes after it
        progress.status("" if config.compile_mode == "eager" else "compiling")
        summary = trainer.run()
        if log is not None:
            log.add_hparams(shown_settings(config), summary["eval"]["mean_return"])
            try:
                atomic_write(run_dir / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
            except OSError as error:
                raise ValueError(
                    f"{run_dir / 'summary.json'} cannot be written: {error.strerror}. What was learned is saved; "
                    f"to evaluate it once more: {resume_command(run_dir)}"
                ) from error
            if log.tracker is not None:
                log.tracker.log_end(summary, trainer.recorder.film(agent, run_dir / "episode.gif"))
            progress.summary(summary, run_dir)
    return summary


@contextmanager
def open_logs(config: Config, run_dir: Path, source: dict[str, Any] | None) -> Iterator[tuple[Logger | None, Progress]]:
    """Lock the run_dir and yield the log and the console of rank 0; other ranks have none and a silent one."""
    if rank() != 0:
        yield None, QUIET
        return
    with ExitStack() as stack:
        stack.enter_context(removed_unless_begun(run_dir))
        stack.enter_context(lock_run_dir(run_dir))
        start, seconds = (None, 0.0) if source is None else (source["global_step"], source["seconds"])
        tracker = None if config.track is None else Tracker(config.track, run_dir, shown_settings(config))
        if tracker is not None:
            stack.callback(tracker.close)
        log = Logger(run_dir, start, seconds, tracker)
        stack.callback(log.close)
        progress = stack.enter_context(make_progress(config.progress, config.total_steps, start or 0))
        tutor = without_password(config.tutoring.tutor)
        game = describe_game(evaluation_env(config, 1, "cpu"))
        device = f"{config.device}, {threads_text()}, {config.compile_mode}"
        progress.note(f"{run_dir}: {config.algo} on {config.env}, tutor {tutor}, {device}\nevaluations: {game}")
        if source is None and (shortness := config.shortness()) is not None:
            progress.note(shortness)
        yield log, progress


def shown_settings(config: Config) -> dict[str, Any]:
    """Return the settings that may change what is learned, by name, as in config.json: without passwords."""
    return dict(settings(to_plain(config, without_password)))


def open_advisor_in_turn(
    config: Config, run_dir: Path, env: Env, progress: Progress, stack: ExitStack
) -> Advisor | None:
    """Return the advisor, or None without a tutor. The first rank may start a server, which the others then find."""
    advisor = None
    for turn in range(world_size()):
        if broadcast_object(turn) == rank():
            opened = open_advisor(config.tutoring, env.game, config.seed, run_dir, config.device, progress.status)
            advisor = stack.enter_context(opened)
    return advisor


class Trainer:
    """The loop of one run: rollout, update, log, evaluate, save.

    Args:
        config: the run's options.
        env: the env copies of this rank.
        agent: the student, with its guidance.
        advisor: whoever gives advice; None without a tutor.
        log: None on all ranks but the first.
        progress: the console.
        findings: what a review of the student's episodes found, in place of advice; None without a review.
        guided_from: the env step from which on there is guidance.
    """

    def __init__(
        self,
        config: Config,
        env: Env,
        agent: Agent,
        advisor: Advisor | None,
        log: Logger | None = None,
        progress: Progress = QUIET,
        findings: FindingsTable | None = None,
        guided_from: int = 0,
    ) -> None:
        self.config = config
        self.run_dir = config.run_dir or Path()
        self.env = env
        self.agent = agent
        self.guidance = agent.guidance
        self.advisor = advisor
        self.findings = findings
        self.log = log
        self.progress = progress
        env_ids = torch.arange(env.first_env_id, env.first_env_id + env.num_envs, device=env.device)
        self.guidance_rng = CounterRNG(config.seed, env_ids, GUIDANCE_STREAM)
        strategy, budget = make_query(config, agent)
        opponent = getattr(env.game, "opponent", None)
        self.opponent = SelfPlayOpponent(opponent, agent, env.device) if isinstance(opponent, SelfPlay) else None
        self.stop = StopSignal(lambda: self.checkpointer.loss(self.state.global_step))
        self.state = TrainState(env, agent, advisor, strategy, budget, self.opponent, findings)
        self.can_interrupt = world_size() == 1  # ranks wait for each other
        self.can_end_early = not env.is_compilable or (advisor is not None and advisor.waits)
        interrupting = self.stop.interrupting if self.can_interrupt else nullcontext
        env.interrupting = interrupting
        if advisor is not None and advisor.tutor.takes_long:
            advisor.interrupting = interrupting
        if advisor is not None and config.guiding.uses_trust(config.algo):
            self.state.trust = TrustMonitor(config, env, agent, self.advise_probe, guided_from, interrupting)
        strength = self.guidance.strength if self.guidance.is_annealed else None
        # where trust counts the student's own returns, it gets no advice that it would act on
        alone = self.guidance.alone if self.state.trust is not None and self.guidance.acts_on_advice else None
        rng = CounterRNG(config.seed, env_ids, QUERY_STREAM)
        self.query = AdviceQuery(strategy, budget, rng, env.steps, self.consult_probability, strength, alone)
        self.actions = torch.arange(env.spec.num_actions, device=env.device)
        self.timer = SectionTimer()
        self.timed: Any = self.timer  # times a part of a rollout step; in a compiled one there is no clock
        self.checkpointer = Checkpointer(self.run_dir, config.save_minutes, self.timer)
        self.recorder = EpisodeRecorder(config, env.spec)
        self.result: Result | None = None  # of the last evaluation, if nothing was learned since
        self.logged_at = time.monotonic()
        self.logged_step = 0
        if advisor is not None:
            advisor.allocate(env.state)
        self.compile()

    def compile(self) -> None:
        """Compile the functions of the loop; a rollout step that waits for no tutor is one function."""
        mode = self.config.compile_mode
        if mode in ("auto", "eager"):
            return
        compile_methods(mode, self.agent, *self.agent.compiled_methods)
        if not self.env.is_compilable:  # a Gymnasium env is not made of tensors
            compile_methods(mode, self.agent, "act", "observe")
            if self.advisor is not None:
                compile_methods(mode, self, "look_up", "followed_advice")
            return
        self.timed = untimed
        waits = self.advisor is not None and self.advisor.waits
        for name in ("decide", "advance") if waits else ("rollout_step",):
            compile_methods(mode, self, name)
            setattr(self, name, partial(self.timer, "play", getattr(self, name)))

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary.

        Raises:
            TutorError: the tutor is no longer available; what was learned is saved.
            EnvError: the env failed; what was learned is saved.
            SystemExit: a signal stopped the run; what was learned is saved.
            OSError: something else that the run requires cannot be read or written; what was learned is saved.
            ValueError: the loss is not finite, and nothing is saved; or the last checkpoint cannot be written.
        """
        config, state = self.config, self.state
        step = self.env.current() if state.was_loaded else self.env.reset()
        self.checkpointer.saved_step = state.global_step if state.was_loaded else None
        self.logged_step = state.global_step
        stats: dict[str, Tensor] = {}
        with self.stop as stop:
            try:
                while (state.global_step < config.total_steps or state.rollout_steps) and not broadcast_object(
                    stop.number
                ):
                    self.result = None
                    try:
                        step, stats = self.update(step)
                    except Interruption:  # in a probe, or between two time steps: nothing is half-way
                        break
                    before = state.rollout_from
                    self.progress.update(state.global_step)
                    if before // config.log_every < state.global_step // config.log_every:
                        self.report(stats)
                    if before // config.eval_every < state.global_step // config.eval_every:
                        self.result = self.evaluate()
                    if state.global_step < config.total_steps and broadcast_object(self.checkpointer.is_due()):
                        self.checkpointer.save(state)
            except (TutorError, EnvError, OSError) as error:
                self.save_before_end(error)
                raise
            self.checkpointer.save(state, is_last=True)
            if not broadcast_object(stop.number) and self.result is None:
                self.result = self.evaluate()
        if number := broadcast_object(stop.number):
            self.progress.command(f"stopped; to go on: {resume_command(self.run_dir)}")
            raise SystemExit(128 + number)
        assert self.result is not None, "only a signal leaves an evaluation without a result"
        return self.summary(self.result)

    def save_before_end(self, error: Exception) -> None:
        """Write a checkpoint before an error ends the run.

        Raises:
            ValueError: the student is not finite; the message has both reasons.
        """
        try:
            self.checkpointer.save(self.state)
        except ValueError as diverged:
            raise ValueError(f"{error}; besides, {diverged}") from error

    def update(self, step: Step) -> tuple[Step, dict[str, Tensor]]:
        """Collect transitions and learn from them once; return the next step, and what to log."""
        state = self.state
        if not state.rollout_steps:
            if state.trust is None or not state.trust.pretrain_left:  # else a signal came in what precedes this rollout
                state.rollout_from = state.global_step
            self.guidance.strength.fill_(self.strength())
        while state.rollout_steps < self.agent.steps_per_update:
            if self.can_interrupt:
                self.stop.check()
            with self.undone_unless_whole(step):
                step = self.rollout_step(step)
            state.global_step += self.config.num_envs
            state.rollout_steps += 1
            if self.advisor is not None:
                self.timer("tutor", self.advisor.step)
        state.rollout_steps = 0
        state.updates += 1
        state.last_update = self.timer("learn", self.agent.update, step)
        if self.opponent is not None:
            self.opponent.refresh(state.updates)
        return step, state.last_update

    @contextmanager
    def undone_unless_whole(self, step: Step) -> Iterator[None]:
        """Where a time step ends early, in the tutor or in the env, undo what it did but for answers.

        The resumed run then takes it as if for the first time, and finds the answers that there were.
        """
        if not self.can_end_early:
            yield
            return
        state, budget, advisor = self.state, self.query.budget, self.advisor
        changed = [self.agent.steps, budget.left, state.action_counts, state.agreement]
        changed += [] if advisor is None else [advisor.lookups]
        before = [tensor.clone() for tensor in changed]
        answers = 0 if advisor is None else advisor.counts["answered"] + advisor.counts["stored"]
        try:
            yield
        except (Interruption, TutorError, EnvError):
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
            if advisor is not None:
                if budget.is_limited:  # what was answered is known from now on
                    budget.left -= advisor.counts["answered"] + advisor.counts["stored"] - answers
                if self.query.strategy.visits is not None:
                    self.query.strategy.visits.remove(advisor.canonicalize(step.state).keys)
            raise

    def strength(self) -> float:
        """Return the strength of the guidance now: by trust, or by its schedule. Trust may take probe episodes."""
        state, guiding = self.state, self.config.guiding
        if state.trust is None:
            progress = (state.global_step - state.guided_from) / (self.config.total_steps - state.guided_from)
            return guiding.strength_at(progress, self.guidance)
        before = state.trust.probe_steps
        try:
            self.timer("probe", state.trust.update, state.global_step)
        finally:  # a tutor may fail in the second probe: the first one counts
            probe_steps = state.trust.probe_steps - before
            state.global_step += probe_steps
            state.env_steps += probe_steps
        return guiding.trusted_strength(self.guidance) * state.trust.value

    def advise_probe(self, step: Step, running: Tensor) -> Tensor:
        """Return advice (N, A) about a probe's copies that play on, (N,) bool; zeros where there is none."""
        assert self.advisor is not None
        positions = self.advisor.canonicalize(step.state)
        lookup = self.advisor.lookup(positions, running)
        request = QueryRequest(running, running.float(), running.float())
        allowed = self.query.budget.allow(positions.keys, request, lookup.misses)
        with self.stop.interrupting(allowed=False):  # but where the tutor is asked: the table is never half-written
            advice = self.advisor.resolve_now(Lookup(positions, lookup.advice, allowed))
        return advice.probs * advice.valid[:, None]

    def rollout_step(self, step: Step) -> Step:
        """Act once in all env copies, and return the step that this leads to."""
        decision, lookup = self.decide(step)  # the student, the query strategy, the advice table: on the device
        advice = None if lookup is None else self.resolve(lookup)  # the store and the tutor, if they are waited for
        return self.advance(step, decision, advice)  # the guidance, the env, the buffer: on the device

    def decide(self, step: Step) -> tuple[Decision, Lookup | None]:
        """Return the student's own decision, and what the table knows of the positions where advice is wanted."""
        decision = self.timed("act", self.agent.act, step.obs, step.action_mask)
        if self.advisor is None:
            return decision, None
        return decision, self.timed("tutor", self.look_up, step, decision)

    def look_up(self, step: Step, decision: Decision) -> Lookup:
        """Return what the table knows of the positions where advice is wanted, and which others to ask about."""
        assert self.advisor is not None
        return self.query.select(self.advisor, step, decision)

    def resolve(self, lookup: Lookup) -> Advice:
        """Return the advice about the positions that were looked up."""
        assert self.advisor is not None
        timed = self.timer if self.advisor.waits else self.timed
        return timed("tutor", self.advisor.resolve, lookup)

    def advance(self, step: Step, decision: Decision, advice: Advice | None) -> Step:
        """Act on the decision and the advice, store the transition, and return the step that this leads to."""
        self.state.action_counts[0].add_((decision.action[:, None] == self.actions).sum(0))
        if self.findings is not None:
            values = self.timed("tutor", self.findings.lookup, step.state)
            next_step = self.advance_guided(step, decision, values)
        elif advice is None:
            next_step = self.timed("env", self.env.step, decision.action)
            self.timed("store", self.agent.observe, step, decision, decision.action, next_step, next_step.reward)
        else:
            next_step = self.advance_guided(step, decision, self.timed("tutor", self.followed_advice, decision, advice))
        self.state.episode_stats.add(next_step)
        if self.state.trust is not None:
            self.state.trust.add(next_step)
        self.state.env_steps += self.config.num_envs
        return next_step.as_initial()

    def advance_guided(self, step: Step, decision: Decision, advice: Tensor) -> Step:
        """Act with advice (N, A), zeros where there is none to follow, and return the step that this leads to."""
        if self.guidance.uses_advice_as_input:
            decision = self.timed("act", self.agent.decide, step.obs, step.action_mask, advice)
        u = self.guidance_rng.uniform(self.env.steps, self.env.spec.num_actions + 1)
        action, followed = self.timed("tutor", self.guidance.act, decision, advice, step.action_mask, u)
        next_step = self.timed("env", self.env.step, action)
        reward, bonus = self.guidance.reward(next_step, action, advice)
        self.timed("store", self.agent.observe, step, decision, action, next_step, reward, advice, followed, bonus)
        return next_step

    def followed_advice(self, decision: Decision, advice: Advice) -> Tensor:
        """Count the advice, and return what of it is to be followed, (N, A); zeros where there is none."""
        best = advice.probs.argmax(1)
        agrees = advice.valid & (best == decision.greedy)
        self.state.action_counts[1].add_(((best[:, None] == self.actions) & advice.valid[:, None]).sum(0))
        self.state.agreement += torch.stack([agrees.sum(), advice.valid.sum()])
        followed = self.query.filter_followed(advice, decision).probs
        return followed if self.state.trust is None else self.state.trust.followed(followed)

    def consult_probability(self) -> Tensor:
        """Return the probability that advice is wanted in a position now, 0-d."""
        tutoring, start = self.config.tutoring, self.state.guided_from
        theta = (self.config.total_steps - start) // 2 if tutoring.theta is None else tutoring.theta
        p_final = (1.0 if self.guidance.is_annealed else 0.1) if tutoring.consult_to is None else tutoring.consult_to
        return consult_probability(self.state.env_steps - start, theta, tutoring.consult_from, p_final)

    def report(self, stats: dict[str, Tensor]) -> None:
        """Log what happened since the last call, and show it."""
        state = self.state
        numbers = check_finite(stats, state.global_step, self.run_dir, state.cause_of_divergence)
        all_reduce_sum(state.episode_stats.sums)
        now, episodes = time.monotonic(), state.episode_stats.pop()
        values = {"charts/SPS": (state.global_step - self.logged_step) / (now - self.logged_at)}
        self.logged_at, self.logged_step = now, state.global_step
        if episodes["episodes"]:
            values["charts/episodic_return"] = episodes["return"]
            values["charts/episodic_length"] = episodes["length"]
        if self.advisor is not None:
            values |= self.tutor_values(self.advisor)
        if self.findings is not None:
            counters = self.findings.counters()
            values |= advisor_metrics(state.tutor_counters, counters)
            values["tutor/strength"] = float(self.guidance.strength)
            state.tutor_counters = counters
        values |= numbers | self.timer.shares()
        for who, counts in zip(("student", "tutor"), all_reduce_sum(state.action_counts).tolist(), strict=True):
            if self.log is not None and any(counts):
                self.log.add_action_counts(state.global_step, f"policy/actions_{who}", counts)
        state.action_counts.zero_()
        if self.log is not None:
            self.log.add_scalars(state.global_step, values)
        self.progress.metrics(state.global_step, values)

    def tutor_values(self, advisor: Advisor) -> dict[str, float]:
        """Return what there is to log about the tutor since the last report."""
        agreed, advised = all_reduce_sum(self.state.agreement).tolist()
        self.state.agreement.zero_()
        counters = all_gather_sum(advisor.counters())
        values = advisor_metrics(self.state.tutor_counters, counters) | advisor.gauges()
        self.state.tutor_counters = counters
        for name, left in all_gather_sum(self.query.budget.counters()).items():
            values[f"tutor/{name}"] = float(left)
        values["tutor/agreement"] = agreed / max(advised, 1)
        if self.query.strategy.name == "chance":
            values["tutor/consult_probability"] = float(self.consult_probability())
        if self.guidance.is_annealed:
            values["tutor/strength"] = float(self.guidance.strength)
        if self.state.trust is not None:
            values |= self.state.trust.values()
        return values

    def evaluate(self) -> Result | None:
        """Play episodes of the student alone in envs of their own, and log and show the result. Rank 0 alone does.

        Return None if a signal came, which ends the episodes at once.
        """
        if self.log is None:
            return Result(math.nan, math.nan, 0, math.nan, math.nan)
        global_step = self.state.global_step
        try:
            with self.stop.interrupting():
                env = evaluation_env(self.config, self.config.eval_episodes, self.config.device)
                result = self.timer("eval", evaluate_student, self.agent, env)
                picture = self.timer("draw", self.recorder.contact_sheet, self.agent)
        except Interruption:
            return None
        self.log.add_scalars(global_step, result.scalars())
        if picture is not None:
            self.log.add_image(global_step, "game", picture)
        self.progress.evaluation(global_step, result)
        return result

    def summary(self, result: Result) -> dict[str, Any]:
        """Return what summary.json says."""
        seconds = time.monotonic() - self.state.started
        tutor = None
        if self.advisor is not None:
            tutor = advisor_summary(self.advisor.tutor.name, all_gather_sum(self.advisor.counters()))
            tutor |= all_gather_sum(self.query.budget.counters())
        if self.findings is not None:
            tutor = advisor_summary(self.findings.name, self.findings.counters())
            tutor["audit"] = self.findings.audit
        return {
            "global_step": self.state.global_step,
            "wall_seconds": round(seconds, 2),
            "sps": round(self.state.global_step / seconds, 1),
            "eval": asdict(result),
            "tutor": tutor,
            "trust": None if self.state.trust is None else self.state.trust.summary(),
        }


def make_query(config: Config, agent: Agent) -> tuple[QueryStrategy, QueryBudget]:
    """Return where advice is wanted, and how many queries this rank may make."""
    tutoring, device = config.tutoring, agent.guidance.strength.device
    total, per_step = (
        None if limit is None else shard_size(limit)
        for limit in (tutoring.query_budget, tutoring.query_budget_per_step)
    )
    strategy = QueryStrategy(tutoring.query_strategy, tutoring.query_threshold, agent.has_policy, device)
    return strategy, QueryBudget(total, per_step, device)


if __name__ == "__main__":
    run_program(train, Config, __doc__, defaults_from_flags, COMMON_FLAGS, EXAMPLES, check=check_effects)
