"""The review of a student's episodes: collect them, let a language model read them, and keep what it finds.

`python train.py --resume RUN --guidance modulate --tutor …` does this once and then trains on: see
`agents/guidance/modulate.py` and `preferences.py`. What is found acts only as far as `training/audit.py` lets it. The
findings are in analysis.md and analysis.json of the new run, beside what the audit says of them, and an expert's search
of the same steps where there is one.
"""

import json
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents import Agent
from agents.guidance.base import Guidance
from agents.guidance.modulate import better_action
from agents.guidance.preferences import Preferences
from envs.base import Env, State, Step, VecEnv, select_rows
from envs.rng import QUERY_STREAM, CounterRNG, sample_legal
from training.audit import (
    AUDIT_SEED,
    MAX_ENV_STEPS,
    MAX_SHARE,
    Audit,
    AuditedFinding,
    Auditor,
    Policy,
    Verdict,
    rank_verdict,
)
from training.config import Config, evaluation_env
from training.evaluation import Transition, first_episodes
from tutors import make_analyst
from tutors.base import TutorError, no_advice_counts
from tutors.display import markdown_text
from tutors.episode_analyst import Analyst, CriticalStep
from tutors.episodes import (
    CRITICAL_GAP,
    EXPERT_DEPTH,
    MAX_STEPS,
    Episode,
    expert_values,
    position_texts,
    to_canonical,
    value_gaps,
)
from tutors.findings import FindingsTable
from tutors.llm.server import ShowStatus
from tutors.prompts import make_view
from tutors.prompts.base import PromptView

REVIEW_SEED = 2_000_003  # added to a run's seed: the episodes reviewed are never those of an evaluation
CANDIDATES = 5  # times as many episodes are collected as are reviewed, where the worst are selected
RANDOM_ACTION_PROB = 0.05  # of the student's actions: without it some students repeat one episode for ever
PAIRS_PER_EPISODE = 5  # comparisons
MIN_ADVANTAGE = 0.01  # by which an action that was named better is better, at least


def empty_findings(config: Config, env: Env) -> FindingsTable:
    """Return the table that a review fills."""
    tutoring = config.tutoring
    return FindingsTable(make_view(env.game, tutoring.view, not tutoring.no_symmetry), tutoring.tutor, env.device)


class Evidence(NamedTuple):
    """With what findings are audited."""

    agent: Agent
    env: Env  # of the episodes reviewed
    max_env_steps: int
    unread: list[Episode]  # episodes of the student that are not reviewed


class Review(NamedTuple):
    """What a kind of review needs."""

    analyst: Analyst
    episodes: list[Episode]
    guidance: Guidance
    table: FindingsTable
    seed: int
    run_dir: Path
    samples: int = 1  # answers about each episode
    evidence: Evidence | None = None  # None: no audit


def review_episodes(
    config: Config, agent: Agent, table: FindingsTable, show_status: ShowStatus, steps_left: int
) -> str:
    """Collect episodes of the student, have them reviewed, keep what the audit leaves, and return a summary line.

    A server that is started for the review ends with it. What the audit found, and the env steps that it took, are in
    `table.audit`; `steps_left` are those that the run has left.

    Raises:
        ValueError: the tutor cannot review episodes.
        TutorError: the analyst is not available, or answered about no episode.
    """
    assert config.run_dir is not None
    guiding = config.guiding
    with ExitStack() as stack:
        log = config.run_dir / "vllm.log"
        analyst = make_analyst(config.tutoring, table.view, config.seed, log, show_status, stack)
        factor = CANDIDATES if guiding.episode_selection == "worst" else 1
        if isinstance(agent.guidance, Preferences) and not guiding.no_audit:
            factor = max(factor, 2)  # a fitted reward is audited by episodes that were not read
        env = evaluation_env(replace(config, seed=config.seed + REVIEW_SEED), factor * guiding.episodes, config.device)
        episodes = collect_episodes(agent, env, table.view, config.seed)
        if guiding.episode_selection == "worst":
            episodes.sort(key=lambda episode: episode.episodic_return)
        read, unread = episodes[: guiding.episodes], episodes[guiding.episodes :]
        evidence = None
        if not guiding.no_audit:
            evidence = Evidence(agent, env, min(MAX_ENV_STEPS, int(MAX_SHARE * steps_left)), unread)
        review = Review(
            analyst=analyst,
            episodes=read,
            guidance=agent.guidance,
            table=table,
            seed=config.seed,
            run_dir=config.run_dir,
            samples=config.tutoring.tutor_samples,
            evidence=evidence,
        )
        summary = REVIEWS.get(type(agent.guidance), find_critical_steps)(review)
        table.stats.update(analyst.stats)
    return summary


def raise_if_unanswered(analyst: Analyst, number: int) -> None:
    """Raise TutorError if an analyst answered none of `number` questions."""
    failures = no_advice_counts(analyst.stats)
    if sum(failures.values()) >= number:
        kinds = ", ".join(f"{n} {kind}" for kind, n in failures.items())
        hint = ": its --max-model-len may be too short for whole episodes" if "status_400" in failures else ""
        raise TutorError(f"{analyst.name} answered none of the {number} questions ({kinds}){hint}")


def collect_episodes(agent: Agent, env: Env, view: PromptView, seed: int) -> list[Episode]:
    """Return the first episode of each env copy; the student acts greedily, but now and then at random."""
    rng = CounterRNG(seed, torch.arange(env.num_envs, device=env.device), QUERY_STREAM)

    def policy(env: Env, step: Step) -> Tensor:
        u = rng.uniform(env.steps, 2)
        return torch.where(
            u[:, 0] < RANDOM_ACTION_PROB,
            sample_legal(step.action_mask, u[:, 1]),
            agent.greedy(step.obs, step.action_mask),
        )

    totals = torch.zeros(env.num_envs, device=env.device)
    lengths = totals.long()
    last, ended = deque[Transition](maxlen=MAX_STEPS), dict[int, Episode]()
    for transition in first_episodes(policy, env):
        last.append(transition)
        totals, lengths = totals + transition.next_step.reward * transition.running, lengths + transition.running
        for index in transition.over.nonzero()[:, 0].tolist():
            ended[index] = last_steps(list(last), view, index, int(lengths[index]), float(totals[index]))
    return [ended[index] for index in range(env.num_envs)]


def last_steps(transitions: Sequence[Transition], view: PromptView, index: int, length: int, total: float) -> Episode:
    """Return the last steps of one env copy's first episode, which has just ended."""
    part = transitions[-length:]
    first = length - len(part)
    state = {name: torch.stack([one.step.state[name][index] for one in part]).cpu() for name in part[0].step.state}
    columns = [(one.action, one.next_step.reward, one.next_step.final_obs) for one in part]
    action, reward, final_obs = (
        torch.stack([of[index] for of in column]).cpu() for column in zip(*columns, strict=True)
    )
    return Episode(*to_canonical(view, state, action), reward, final_obs, total, first, state)


def find_critical_steps(review: Review) -> str:
    """Ask which steps of the episodes were critical, put what passes the audit into the table, and say what it was."""
    analyst, episodes, view, table = review.analyst, review.episodes, review.table.view, review.table
    answers: list[list[list[CriticalStep]]] = []
    for sample in range(review.samples):
        try:
            answers.append(analyst.find_critical_steps(episodes, sample))
        except BaseException:
            answers += [rescued] if (rescued := analyst.rescue()) else []
            raise
        finally:
            keep_answers(review, [[[one._asdict() for one in found] for found in several] for several in answers])
    raise_if_unanswered(analyst, review.samples * len(episodes))
    found = [
        median_findings(several, episode.actions, len(view.labels))
        for episode, several in zip(episodes, zip(*answers, strict=True), strict=True)
    ]
    keys = [view.key(episode.positions).tolist() for episode in episodes]
    named = [(number, one) for number, findings in enumerate(found) for one in findings]
    audit, skipped = audit_critical_steps(review, named, keys)
    kept = [index for index in range(len(named)) if audit is None or audit.keeps(index)]
    fill_table(table, named, keys, kept)
    table.audit = {"skipped": skipped} if audit is None else audit.report()
    positions = len({tuple(keys[number][one.critical.step]) for number, one in named})
    report: dict[str, Any] = {"analyst": analyst.name, "episodes": len(episodes), "critical": positions}
    report |= {**analyst.stats, "audit": table.audit}
    report["findings"], measures = compare_with_expert(
        view, episodes, [[one.critical for one in findings] for findings in found]
    )
    if audit is not None:
        for index, finding in enumerate(report["findings"]):
            finding |= {"difference": audit.differences[index], "kept": audit.keeps(index)}
    report |= measures
    report["sentence"] = audit_sentence(analyst.name, audit, skipped)
    write_analysis(review.run_dir / "analysis.json", json.dumps(report, indent=2) + "\n")
    write_analysis(review.run_dir / "analysis.md", as_markdown(report))
    shares = ", ".join(f"{name} {value:.0%}" for name, value in measures.items() if value is not None)
    judged = f"by the expert: {shares}" if shares else "no expert to compare with"
    return f"{len(episodes)} episodes reviewed: {positions} critical positions; {judged}. {report['sentence']}"


def keep_answers(review: Review, answers: list[Any]) -> None:
    """Write what was paid for, if anything, before it is used."""
    if not answers:
        return
    written = json.dumps({"analyst": review.analyst.name, "answers": answers}, indent=2)
    write_analysis(review.run_dir / "answers.json", written + "\n")


def write_analysis(path: Path, text: str) -> None:
    """Write what a review found; a failure is a warning: the run, not the report, is what was paid for."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        logging.getLogger(__name__).warning("%s cannot be written: %s", path, error.strerror)


class Finding(NamedTuple):
    """A critical step, and what it says of each action in its position."""

    critical: CriticalStep
    values: Tensor  # (A,) float32 in [-1, 1], of the canonical position


def median_findings(answers: Sequence[Sequence[CriticalStep]], actions: Tensor, num_actions: int) -> list[Finding]:
    """Return what several answers about one episode have in common: the median value of each action at each step.

    An answer that does not name a step says 0 of its actions. A step counts where the median says that one is good.
    """
    if len(answers) == 1:
        return [Finding(one, action_values(one, int(actions[one.step]), num_actions)) for one in answers[0]]
    found = []
    for step in dict.fromkeys(one.step for answer in answers for one in answer):
        several = [{one.step: one for one in answer}.get(step) for answer in answers]
        named = [one for one in several if one is not None]
        rows = [action_values(one, int(actions[step]), num_actions) for one in named]
        nothing = [torch.zeros(num_actions)] * (len(several) - len(named))
        median = torch.stack(rows + nothing).quantile(0.5, dim=0)
        best = int(median.argmax())
        if median[best] > 0:
            reason = next((one.reason for one in named if one.action == best), named[0].reason)
            found.append(Finding(CriticalStep(step, best, float(median[actions[step]]), reason), median))
    return found


Named = Sequence[tuple[int, Finding]]  # findings with the numbers of their episodes
Keys = Sequence[Sequence[Sequence[int]]]  # of the positions, by episode and step


def fill_table(table: FindingsTable, named: Named, keys: Keys, kept: Sequence[int]) -> None:
    """Put the findings of the indices `kept` into the table; those of one position are averaged."""
    rows: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for number, one in (named[index] for index in kept):
        rows[tuple(keys[number][one.critical.step])].append(one.values)
    if rows:
        means = torch.stack([torch.stack(several).mean(0) for several in rows.values()])
        table.fill(torch.tensor(list(rows)), means)


def audit_critical_steps(review: Review, named: Named, keys: Keys) -> tuple[Audit | None, str]:
    """Return the audit of findings; or None, and why there is none."""
    evidence, view = review.evidence, review.table.view
    if evidence is None:
        return None, "--no-audit"
    if not isinstance(evidence.env, VecEnv):
        return None, f"the states of {evidence.env.spec.name} cannot be copied"
    if not named:
        return None, "nothing was named"
    limit, findings = evidence.env.spec.time_limit, []
    for number, one in named:
        episode, step = review.episodes[number], one.critical.step
        state = select_rows(episode.states, torch.tensor([step]))
        names = view.symmetry.cpu()[view.canonicalize(state)[1].cpu()][0]  # what the position calls the env's actions
        action = int((names == one.critical.action).long().argmax())
        time_left = None if limit is None else limit - episode.num_earlier_steps - step
        findings.append(AuditedFinding((*keys[number][step], one.critical.action), state, action, time_left))

    def follow(kept: Sequence[int]) -> Policy:
        table = FindingsTable(view, review.analyst.name, review.table.keys.device)
        fill_table(table, named, keys, kept)

        def policy(state: State, obs: Tensor, action_mask: Tensor) -> Tensor:
            best, is_named = better_action(table.lookup(state), action_mask)
            return torch.where(is_named, best, evidence.agent.greedy(obs, action_mask))

        return policy

    auditor = Auditor(evidence.env.game, evidence.agent, evidence.max_env_steps, review.seed + AUDIT_SEED)
    return auditor.audit(findings, follow), ""


def audit_sentence(analyst: str, audit: Audit | None, skipped: str) -> str:
    """Return what an audit of findings came to, in words."""
    if audit is None:
        return f"Not audited: {skipped}."
    evidence = f"difference of returns: each by itself {audit.alone}; {audit.env_steps:,} env steps"
    if audit.alone.is_refused:
        return (
            f"The audit refuses {analyst}: its actions are not shown to be better than the student's own ({evidence}). "
            "The run goes on without a tutor."
        )
    evidence = evidence.replace("; ", f"; all together {audit.together}; ", 1)
    if audit.is_refused:
        return (
            f"The audit refuses {analyst}: a student that follows it is not shown to be better ({evidence}). "
            "The run goes on without a tutor."
        )
    kept = sum(audit.keeps(index) for index in range(len(audit.differences)))
    return f"The audit keeps {kept} of {len(audit.differences)} findings ({evidence})."


def action_values(finding: CriticalStep, taken: int, num_actions: int) -> Tensor:
    """Return what a finding says of each action in its position, (A,) float32 in [-1, 1].

    The action taken is worth the reward, and the better one the same with the other sign.
    """
    values = torch.zeros(num_actions)
    if finding.action == taken:
        values[taken] = max(finding.reward, MIN_ADVANTAGE)  # named the best of all, even if nothing came of it
    else:
        values[taken] = min(finding.reward, 1 - MIN_ADVANTAGE)
        values[finding.action] = max(abs(finding.reward), float(values[taken] + MIN_ADVANTAGE), MIN_ADVANTAGE)
    return values


def compare_with_expert(
    view: PromptView, episodes: Sequence[Episode], found: Sequence[Sequence[CriticalStep]]
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Return each finding beside the expert's values, and (precision, recall, better) of all.

    Precision: share of the named steps that are critical by the expert. Recall: share of the critical steps with a loss
    that were named. Better: share of the named actions that are the expert's best.
    """
    lines, known = [], view.has_expert
    values = [expert_values(view, episode, EXPERT_DEPTH) if known else None for episode in episodes]
    spans = [
        None if one is None else value_gaps(one, episode.actions) for one, episode in zip(values, episodes, strict=True)
    ]
    least = CRITICAL_GAP * max((float(span[0].max()) for span in spans if span is not None), default=0.0)
    right = best = missed = caught = 0
    for number, (episode, findings) in enumerate(zip(episodes, found, strict=True)):
        texts, named = position_texts(view, episode.positions), {one.step for one in findings}
        for one in findings:
            line: dict[str, Any] = {
                "episode": number,
                "step": episode.num_earlier_steps + one.step + 1,
                "position": texts[one.step],
            }
            line |= {"did": view.labels[int(episode.actions[one.step])], "better": view.labels[one.action]}
            line |= {"reward": round(one.reward, 3), "reason": one.reason}
            if (worth := values[number]) is not None and (span := spans[number]) is not None:
                line |= {"gap": round(float(span[0][one.step]), 3), "lost": round(float(span[1][one.step]), 3)}
                line["expert"] = view.labels[int(worth[one.step].argmax())]
                right += float(span[0][one.step]) > least
                best += float(worth[one.step, one.action]) == float(worth[one.step].max())
            lines.append(line)
        if (span := spans[number]) is not None:
            errors = ((span[1] > 0) & (span[0] > least)).nonzero()[:, 0].tolist()
            caught += sum(step in named for step in errors)
            missed += sum(step not in named for step in errors)
    total = len(lines)
    shares = ((right, total), (caught, caught + missed), (best, total))
    measures = [part / whole if known and whole else None for part, whole in shares]
    return lines, dict(zip(("precision", "recall", "better"), measures, strict=True))


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    shown = {name: "–" if report[name] is None else f"{report[name]:.0%}" for name in ("precision", "recall", "better")}
    lines = [
        f"# What {markdown_text(report['analyst'])} found in {report['episodes']} episodes\n",
        f"{report['critical']} critical positions. By the expert's search: precision {shown['precision']}, recall "
        f"{shown['recall']}, better actions {shown['better']}.\n",
        f"{markdown_text(report['sentence'])}\n",
    ]
    for one in report["findings"]:
        lines.append(f"## Episode {one['episode'] + 1}, step {one['step']}\n\n```\n{one['position']}\n```\n")
        text = f"The student chose {one['did']}, better is {one['better']}, reward {one['reward']:+g}: "
        text += f"{markdown_text(one['reason'])}."
        if "gap" in one:
            text += f" The expert: {one['expert']}; gap {one['gap']:g}, lost {one['lost']:g}."
        if "kept" in one:
            tested = "not tested" if one["difference"] is None else f"difference {one['difference']:+.3f}"
            text += f" The audit: {tested}, {'kept' if one['kept'] else 'dropped'}."
        lines.append(text + "\n")
    return "\n".join(lines)


def fit_preferences(review: Review) -> str:
    """Ask which of two episodes was played better, for pairs of them, fit the reward, and return a summary line."""
    analyst, episodes, guidance = review.analyst, review.episodes, review.guidance
    assert isinstance(guidance, Preferences)
    generator = torch.Generator().manual_seed(review.seed)
    number = PAIRS_PER_EPISODE * len(episodes)
    pairs = [torch.randperm(len(episodes), generator=generator)[:2].tolist() for _ in range(number)]
    try:
        answers = analyst.compare_pairs([(episodes[first], episodes[second]) for first, second in pairs])
    except BaseException:
        answers = analyst.rescue()
        raise
    finally:
        keep_answers(review, [[*pair, answer] for pair, answer in zip(pairs, answers, strict=False)])
    raise_if_unanswered(analyst, len(pairs))
    answered = [(first, second, prob) for (first, second), prob in zip(pairs, answers, strict=True) if prob is not None]
    share = None
    if answered:
        observed = [episode.final_obs for episode in episodes]
        chosen = [(first, second) for first, second, _ in answered]
        share = guidance.fit(observed, chosen, [prob for *_, prob in answered], review.seed)
    agreed = [
        (prob > 0.5) == (episodes[first].episodic_return > episodes[second].episodic_return)
        for first, second, prob in answered
        if episodes[first].episodic_return != episodes[second].episodic_return and prob != 0.5
    ]
    report = {"analyst": analyst.name, "episodes": len(episodes), "comparisons": len(answered), **dict(analyst.stats)}
    report["fitted"], report["agrees_with_returns"] = share, sum(agreed) / len(agreed) if agreed else None
    verdict = None if share is None or review.evidence is None else audit_reward(guidance, review.evidence.unread)
    if verdict is None:
        review.table.audit = {"skipped": "no reward is fitted" if share is None else "--no-audit"}
    else:
        review.table.audit = {
            "refused": verdict.is_refused,
            "rank_correlation": verdict.report(),
            "env_steps": 0,
        }
        if verdict.is_refused:
            guidance.model = None
    report["audit"] = review.table.audit
    write_analysis(review.run_dir / "analysis.json", json.dumps(report, indent=2) + "\n")
    fitted = "no reward is fitted" if share is None else f"the fitted reward agrees with {share:.0%} of them"
    text = f"{len(answered)} pairs of {len(episodes)} episodes compared: {fitted}"
    if verdict is None:
        return text
    judged = f"rank correlation of its sums with the returns of other episodes {verdict}"
    if verdict.is_refused:
        return f"{text}. The audit refuses it: {judged}. The run goes on without a tutor."
    return f"{text}. The audit keeps it: {judged}."


def audit_reward(guidance: Preferences, unread: Sequence[Episode]) -> Verdict:
    """Return how a fitted reward's sums over episodes that were not read go with the rewards of the same steps."""
    device = guidance.strength.device
    sums = [float(guidance.bonus(episode.final_obs.to(device)).sum()) for episode in unread]
    return rank_verdict(sums, [float(episode.rewards.sum()) for episode in unread])


# the kind of review of a guidance; critical steps where none is named
REVIEWS: dict[type[Guidance], Callable[[Review], str]] = {Preferences: fit_preferences}
