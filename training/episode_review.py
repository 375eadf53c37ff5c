"""A pause in a run: the student's games are collected, a tutor reads them, and what it says is written down.

`python train.py --resume RUN --guidance modulate --tutor …` pauses once, then trains on: see
`agents/guidance/modulate.py` and `preferences.py`. What was found stands in analysis.md and analysis.json of the new
run, beside what an expert's search holds of the same steps where there is one.
"""

import json
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents import Agent
from agents.guidance.preferences import Preferences
from envs.base import Env, State
from envs.rng import QUERY_STREAM, CounterRNG, sample_legal
from training.config import Config, evaluation_env
from tutors import make_analyst
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.base import Advice, TutorError, no_advice_counts
from tutors.episode_analyst import Analyst, Finding, Reader
from tutors.episodes import EXPERT_DEPTH, LAST, MATTERS, Episode, as_told, expert_values, gaps, words_of
from tutors.llm.server import ShowStatus
from tutors.prompts import make_view
from tutors.prompts.base import PromptView

READING_SEED = 2_000_003  # added to a run's seed: the games that are read are never those of an evaluation
CANDIDATES = 5  # times as many games are played as are read, where the worst are
WANDERS = 0.05  # of the student's actions: without chance some students play one game for ever
PAIRS = 5  # comparisons, times the number of games
NAMED = 0.01  # the least that an action which was named better is better by


def reading_desk(config: Config, env: Env) -> Advisor:
    """Return a desk whose table holds what was read of games: nobody is asked there and nothing is stored."""
    told = config.tutoring
    view = make_view(env.game, told.view, not told.no_symmetry)
    table = AdviceTable(env.spec.num_actions, math.inf, device=env.device)
    return Advisor(view, Reader(view, told.tutor), table, None)


def pause(config: Config, agent: Agent, desk: Advisor, say: ShowStatus) -> str:
    """Collect games of the student, have them read, take over what is said of them, and return what it came to.

    A server that is started for it is needed no longer than that.

    Raises:
        ValueError: nobody of that name can read games.
        TutorError: the analyst is not available, or answered about no game.
    """
    told = config.guiding
    assert config.run_dir is not None
    with ExitStack() as stack:
        log = config.run_dir / "vllm.log"
        analyst = make_analyst(config.tutoring, desk.view, config.seed, log, say, stack)
        copies = CANDIDATES * told.episodes if told.episode_selection == "worst" else told.episodes
        env = evaluation_env(replace(config, seed=config.seed + READING_SEED), copies, config.device)
        episodes = collect(agent, env, desk.view, told.episodes, told.episode_selection == "worst", config.seed)
        if isinstance(agent.guidance, Preferences):
            found = compare(analyst, episodes, agent.guidance, config.seed, config.run_dir)
        else:
            found = modulate(analyst, desk.view, episodes, desk.table, config.run_dir)
        desk.tutor.stats.update(analyst.stats)
    return found


def heard_of(analyst: Analyst, number: int) -> None:
    """Raise TutorError if an analyst answered none of `number` questions."""
    failures = no_advice_counts(analyst.stats)
    if sum(failures.values()) >= number:
        why = ", ".join(f"{n} {kind}" for kind, n in failures.items())
        hint = ": its --max-model-len may be too short for games" if "status_400" in failures else ""
        raise TutorError(f"{analyst.name} has said nothing about any of the {number} questions ({why}){hint}")


class Moment(NamedTuple):
    """A step of N games."""

    state: State
    action: Tensor  # (N,) int64
    reward: Tensor  # (N,) float32
    seen: Tensor  # (N, *obs_shape) float32, after it


def collect(agent: Agent, env: Env, view: PromptView, number: int, worst: bool, seed: int) -> list[Episode]:
    """Return `number` of all copies' first games, those of the lowest returns or just the first.

    The student plays its best actions, but now and then any.
    """
    rng = CounterRNG(seed, torch.arange(env.num_envs, device=env.device), QUERY_STREAM)
    step, playing = env.reset(), torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    totals = torch.zeros(env.num_envs, device=env.device)
    lengths = totals.long()
    last, ended = deque[Moment](maxlen=LAST), dict[int, Episode]()
    while playing.any():
        chance = rng.uniform(env.steps, 2)
        action = torch.where(
            chance[:, 0] < WANDERS,
            sample_legal(step.action_mask, chance[:, 1]),
            agent.greedy(step.obs, step.action_mask),
        )
        after = env.step(action)
        last.append(Moment(step.state, action, after.reward, after.final_obs))
        totals, lengths = totals + after.reward * playing, lengths + playing
        over = playing & (after.terminated | after.truncated)
        for game in over.nonzero()[:, 0].tolist():
            ended[game] = episode_of(list(last), view, game, int(lengths[game]), float(totals[game]))
        step, playing = after, playing & ~over
    order = totals.argsort(stable=True) if worst else torch.arange(env.num_envs, device=env.device)
    return [ended[game] for game in order[:number].tolist()]


def episode_of(moments: Sequence[Moment], view: PromptView, game: int, length: int, total: float) -> Episode:
    """Return the last steps of one copy's first game, which has just ended; `moments` are the last of all games."""
    part = moments[-length:]
    first = length - len(part)
    state = {name: torch.stack([one.state[name][game] for one in part]).cpu() for name in part[0].state}
    action, reward, seen = (
        torch.stack([getattr(one, name)[game] for one in part]).cpu() for name in ("action", "reward", "seen")
    )
    return Episode(*as_told(view, state, action), reward, seen, total, first)


def modulate(analyst: Analyst, view: PromptView, episodes: Sequence[Episode], table: AdviceTable, folder: Path) -> str:
    """Ask which steps of the games were critical, put them into the table, and return the report in a line."""
    found = analyst.critical(episodes)
    heard_of(analyst, len(episodes))
    rows: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for episode, findings in zip(episodes, found, strict=True):
        keys = view.key(episode.told).tolist()
        for one in findings:
            rows[tuple(keys[one.step])].append(worth_of(one, int(episode.actions[one.step]), len(view.labels)))
    if rows:
        device = table.keys.device
        worth = torch.stack([torch.stack(several).mean(0) for several in rows.values()]).to(device)
        sure = torch.ones(len(rows), device=device)
        table.put(torch.tensor(list(rows), device=device), Advice(worth, sure.bool(), sure))
    report = {"analyst": analyst.name, "episodes": len(episodes), "critical": len(rows), **dict(analyst.stats)}
    report["findings"], measures = described(view, episodes, found)
    report |= measures
    (folder / "analysis.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "analysis.md").write_text(as_markdown(report))
    told = ", ".join(f"{name} {value:.0%}" for name, value in measures.items() if value is not None)
    return f"{len(episodes)} games read: {len(rows)} critical positions; by the expert: {told or 'there is none'}"


def worth_of(one: Finding, done: int, actions: int) -> Tensor:
    """Return what a finding says of each action in its position, (A,) float32 in [-1, 1].

    What was done is worth the reward, and what would have been better the same with the other sign.
    """
    worth = torch.zeros(actions)
    if one.action == done:
        worth[done] = max(one.reward, NAMED)  # named the best of all, even if it came to nothing
    else:
        worth[done] = min(one.reward, 1 - NAMED)
        worth[one.action] = max(abs(one.reward), worth[done] + NAMED, NAMED)
    return worth


def described(
    view: PromptView, episodes: Sequence[Episode], found: Sequence[Sequence[Finding]]
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Return each finding in words beside the expert's view, and (precision, recall, better) of them all.

    Precision: of the steps that were named, those that mattered by the expert. Recall: of those at which the student
    lost something and that mattered, those that were named. Better: of the actions named, the expert's best ones.
    """
    lines, known = [], view.has_expert
    values = [expert_values(view, episode, EXPERT_DEPTH) if known else None for episode in episodes]
    spans = [None if one is None else gaps(one, episode.actions) for one, episode in zip(values, episodes, strict=True)]
    least = MATTERS * max((float(span[0].max()) for span in spans if span is not None), default=0.0)
    right = best = missed = caught = 0
    for number, (episode, findings) in enumerate(zip(episodes, found, strict=True)):
        words, named = words_of(view, episode.told), {one.step for one in findings}
        for one in findings:
            line: dict[str, Any] = {
                "episode": number,
                "step": episode.first + one.step + 1,
                "position": words[one.step],
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
        f"# What {report['analyst']} found in {report['episodes']} games\n",
        f"{report['critical']} critical positions. By the expert's search: precision {shown['precision']}, recall "
        f"{shown['recall']}, better actions {shown['better']}.\n",
    ]
    for one in report["findings"]:
        lines.append(f"## Game {one['episode'] + 1}, step {one['step']}\n\n```\n{one['position']}\n```\n")
        told = f"The student chose {one['did']}, better is {one['better']}, reward {one['reward']:+g}: {one['reason']}."
        if "gap" in one:
            told += f" The expert: {one['expert']}; gap {one['gap']:g}, lost {one['lost']:g}."
        lines.append(told + "\n")
    return "\n".join(lines)


def compare(analyst: Analyst, episodes: Sequence[Episode], method: Preferences, seed: int, folder: Path) -> str:
    """Ask which of two games was played better, for pairs of them, fit the reward, and return how it went."""
    chance = torch.Generator().manual_seed(seed)
    pairs = [torch.randperm(len(episodes), generator=chance)[:2].tolist() for _ in range(PAIRS * len(episodes))]
    said = analyst.prefers([(episodes[one], episodes[other]) for one, other in pairs])
    heard_of(analyst, len(pairs))
    heard = [(pair, first) for pair, first in zip(pairs, said, strict=True) if first is not None]
    share = None
    if heard:
        games, firsts = [episode.seen for episode in episodes], [first for _, first in heard]
        share = method.fit(games, [(one, other) for (one, other), _ in heard], firsts, seed)
    agreed = [
        (first > 0.5) == (episodes[one].total > episodes[other].total)
        for (one, other), first in heard
        if episodes[one].total != episodes[other].total and first != 0.5
    ]
    report = {"analyst": analyst.name, "episodes": len(episodes), "comparisons": len(heard), **dict(analyst.stats)}
    report["fitted"], report["agrees_with_returns"] = share, sum(agreed) / len(agreed) if agreed else None
    (folder / "analysis.json").write_text(json.dumps(report, indent=2) + "\n")
    fitted = "nothing is fitted" if share is None else f"the fitted reward agrees with {share:.0%} of them"
    return f"{len(heard)} pairs of {len(episodes)} games compared: {fitted}"
