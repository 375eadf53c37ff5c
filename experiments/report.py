"""The report of a study: its tables as CSV, and a page as Markdown and as HTML with its pictures."""

import csv
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from experiments.analysis import (
    MAX_FINAL_LOSS,
    MAX_HEIGHT_LOSS,
    MIN_EVALS,
    MIN_SEEDS,
    NO_REUSE,
    PAPER,
    PAPER_GUIDANCE,
    Claim,
    Estimate,
    NoResultsError,
    StudyResults,
    baselines,
    claims,
    drawdown_difference,
    group_by,
    question_share,
    read_results,
    speedup,
    summarize,
    without_reuse,
    worth,
)
from experiments.curves import common_points
from experiments.page import html
from experiments.pictures import draw
from experiments.spec import Condition, StudyOptions, StudySpec
from experiments.stats import (
    THRESHOLD_SHARE,
    Curve,
    auc,
    final_score,
    interval,
    iqm,
    paired_interval,
    probability_of_improvement,
    stratified_interval,
)
from training.hints import command
from tutors.display import MAX_NAME_CHARS, MAX_TEXT_CHARS, markdown_text, printable
from tutors.terminal import TerminalConsole

PUBLISHED = Path("results/study")
DEFINITIONS = {  # terms, in the order of the page
    "condition": "an env, a student, a tutor, a guidance method and a reuse budget; its runs differ in the seed.",
    "baseline": "the same student without a tutor; comparisons are paired by seed.",
    "score": "the mean return of the greedy student alone, without advice, in episodes of its own.",
    "final score": "the mean of the last quarter of a run's evaluations.",
    "baseline gain": "from the baseline's first evaluation to its final score, means over seeds.",
    "threshold": f"{THRESHOLD_SHARE:.0%} of the baseline gain; where a baseline does not improve there is none.",
    "speed-up": (
        "the baseline's env steps to the threshold over the condition's, the geometric mean over seeds. A run that "
        "never reaches it counts as if it did at its end: the number is a lower bound where baselines did not (≥), an "
        "upper bound where the condition's runs did not (≤), and neither where both did not (~). By the episodes of "
        "training it is computed in the same way from their mean returns, in which a tutored student's actions are "
        "partly its tutor's. Times sooner is the median over seeds."
    ),
    "AUC": "the area under a curve divided by its length: the mean of the curve.",
    "maximum drawdown": "the largest fall below the best score so far, once the threshold was reached.",
    "std": "the standard deviation of the final scores over seeds.",
    "normalized score": "on a scale on which the baseline starts at 0 and ends at 1: so several envs are combined.",
    "IQM": "the interquartile mean (Agarwal et al. 2021, arXiv:2108.13264).",
    "probability of improvement": "that a run's final score is higher than one of the baseline's.",
    "harmless": (
        f"the interval of the final score excludes a loss of {MAX_FINAL_LOSS:.0%} of the baseline gain, and the mean "
        f"of the curve is not lower by {MAX_HEIGHT_LOSS:.0%} of it."
    ),
    "reuse": "how often an answer of the tutor is used again.",
    "hit rate": "the share of the positions with advice wanted that the table of known answers answered.",
    "questions": "what the tutor was asked; compared with no reuse: as a share of what is asked without reuse.",
    "no advice": "the share of questions without an answer.",
    "95 % interval": (
        "in brackets: of the bootstrap over seeds (10,000 resamples): seeds are resampled for each student of each "
        "env, together for all conditions that share its baseline. Such intervals of one condition's few seeds are too "
        "narrow: where nothing differs, those of three seeds exclude 0 in a quarter of all cases, those of five in a "
        "sixth."
    ),
    "difference from the same student alone": (
        "the mean over runs of the same seeds, with an interval by Student's t, in bold where that excludes 0."
    ),
}
HEADS = {  # the term that defines a column, where its head is another
    **{term: term for term in DEFINITIONS},
    "conditions": "condition",
    "mean of curve": "AUC",
    "times sooner": "speed-up",
    "speed-up, steps": "speed-up",
    "speed-up, seconds": "speed-up",
    "max drawdown, difference": "maximum drawdown",
    "IQM of normalized final scores": "IQM",
    "evidence": "95 % interval",
}

console = TerminalConsole()


@dataclass(frozen=True)
class ReportOptions(StudyOptions):
    """Write a study's results: conditions.csv, curves/, report.md and report.html with their pictures."""

    out: Path | None = None
    """Directory of the report; report/ in the output directory if not given."""
    publish: bool = False
    """Write to results/study/NAME, which is under version control."""

    def report_dir(self) -> Path:
        """Return the directory of the report.

        Raises:
            ValueError: two are given.
        """
        if self.publish and self.out is not None:
            raise ValueError(f"--publish writes to {PUBLISHED / self.config.stem}: leave out --out")
        return PUBLISHED / self.config.stem if self.publish else self.out or self.runs_dir() / "report"


def report(options: ReportOptions) -> None:
    """Write the tables and the report of all conditions whose runs are finished, and print how many those are.

    Raises:
        ValueError: there is no such condition.
    """
    study, out = options.subset(), options.report_dir()
    try:
        results = read_results(study, options.runs_dir())
    except NoResultsError as error:
        raise ValueError(f"{error}; to execute them: {command('experiments', 'run', *options.arguments())}") from error
    conditions = results.conditions()
    made_by = shlex.join(["python", "-m", "experiments", "report", *options.arguments()])
    comment = f"{made_by} # {provenance(results)}"
    out.mkdir(parents=True, exist_ok=True)
    rows = [summarize(results, condition) for condition in conditions]
    write_csv(out / "conditions.csv", comment, rows[0].keys(), [row.values() for row in rows])
    (out / "curves").mkdir(exist_ok=True)
    for condition in conditions:
        write_curves(out / "curves" / curve_file(condition), comment, condition, results)
    pictures, verdicts = draw(results, out), claims(results)
    text = page(results, options.config.stem, made_by, verdicts, pictures)
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.html").write_text(
        html(text, pictures, HEADS | {f"reuse {one:g}": "speed-up" for one in study.reuse}), encoding="utf-8"
    )
    console.print(
        f"{out}: {len(conditions)} of {len(study.conditions())} conditions; open {out / 'report.html'}", soft_wrap=True
    )
    for claim in verdicts:
        console.print(f"{claim.verdict}: {claim.statement}: {claim.evidence}", soft_wrap=True)


def write_csv(path: Path, comment: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV whose first line is a comment."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {printable(comment, MAX_TEXT_CHARS)}\n")
        csv.writer(file).writerows([head, *rows])


def write_curves(path: Path, comment: str, condition: Condition, results: StudyResults) -> None:
    """Write the evaluations of a condition over the steps of `common_points`, with 95 % intervals."""
    steps, columns = common_points(results.curves(condition), condition.name())
    rows = [
        [step, *(round(value, 6) for value in (fmean(values), *interval(values), *values))]
        for step, values in zip(steps, columns, strict=True)
    ]
    seeds = (f"seed{seed}" for seed in results.study.seeds)
    write_csv(path, comment, ["global_step", "mean", "low", "high", *seeds], rows)


def curve_file(condition: Condition) -> str:
    """Return the file name of a condition's curves: short for students without a tutor."""
    if condition.is_baseline():
        return f"{condition.algo}_{condition.env.replace(':', '-').replace('/', '-')}.csv"
    return f"{condition.name()}.csv"


def provenance(results: StudyResults) -> str:
    """Return the origin of the results: commits, versions, machine and duration of the runs."""
    runs = [*results.pretraining, *(run for one in results.conditions() for run in results.runs[one])]
    commits, pythons, torches, machines = (
        ", ".join(sorted({run.versions[name] for run in runs})) for name in ("commit", "python", "torch", "machine")
    )
    hours = sum(run.seconds for run in runs) / 3600
    origin = f"commit {commits}, Python {pythons}, PyTorch {torches}, {machines}"
    return f"{origin}, {len(runs)} runs, {hours:.1f} hours in all"


def page(results: StudyResults, name: str, command: str, verdicts: Sequence[Claim], pictures: Sequence[Path]) -> str:
    """Return the report as Markdown."""
    study, conditions, tutored = results.study, results.conditions(), results.tutored()
    parts = [
        f"# The study {shown(name)}",
        f"Made by `{code(command)}`: {markdown_text(provenance(results))}. "
        f"{len(conditions)} of {len(study.conditions())} conditions; "
        f"seeds: {', '.join(map(str, study.seeds))}; env steps: {described_steps(study)}.",
    ]
    if verdicts:
        parts += [
            "## Claims of the paper, beside these runs",
            f"The claims are those of {PAPER}, whose method this project began with, not of this "
            f"project. The verdicts are of the conditions that do as the paper did, `--guidance {PAPER_GUIDANCE}`: "
            "*supported* where the 95 % interval lies on the claim's side, *not supported* where it lies on the other, "
            f"else *undecided*. Fewer than {MIN_SEEDS} seeds or {MIN_EVALS} evaluations, equal runs, and students that "
            "do not learn decide nothing.",
            table(("claim", "verdict", "evidence"), [tuple(map(markdown_text, claim)) for claim in verdicts]),
        ]
    parts += ["## Learning curves", *(f"![{one.stem}]({one.name})" for one in pictures)]
    budget = f", with reuse {study.reuse[-1]:g}" if tutored else ""
    parts.append(
        f"Lines are means over seeds{budget}; bands go from the lowest to the highest. Dotted: random play, the tutor "
        "alone where all lines have the same, and the best return there is; arrows name what lies beyond the chart. "
        "The overview, where there is one, is the mean of the normalized scores of all students that learn alone."
    )
    if not tutored:
        parts += ["## Final scores", baseline_scores(results)]
    else:
        if len(study.guidance) > 1:
            parts.append("## Difference from the same student alone")
            parts += [part for env in study.envs for part in differences(results, env)]
        parts += ["## What the tutor was worth", worths(results)]
        parts.append("## Speed-ups")
        parts += [part for env in study.envs if (part := speedups(results, env))]
        parts += ["## Over all envs and students", totals(results)]
        if pairs := with_and_without_reuse(results):
            parts += ["## Reuse compared with no reuse", reuse_table(results, pairs)]
        parts += ["## Questions per run", costs(results)]
    return "\n\n".join([*parts, "## Definitions", definitions()]) + "\n"


def shown(name: object) -> str:
    """Return the name of a factor's level as text in Markdown."""
    return markdown_text(name, MAX_NAME_CHARS)


def code(text: str) -> str:
    """Return text for a code span of Markdown."""
    return printable(text, MAX_TEXT_CHARS).replace("`", "'")


def described_steps(study: StudySpec) -> str:
    """Return the env steps of the runs, by env, and by student where they differ."""
    parts = []
    for env in study.envs:
        by_steps = group_by(study.algos, lambda algo: study.steps_for(algo, env))  # noqa: B023
        if len(by_steps) == 1:
            parts += [f"{shown(env)} {steps:,}" for steps in by_steps]
        else:
            parts += [f"{shown(env)} {', '.join(algos)} {steps:,}" for steps, algos in by_steps.items()]
    return ", ".join(parts)


def definitions() -> str:
    """Return the definitions as a list in Markdown."""
    return "\n".join(f"- **{term}**: {text}" for term, text in DEFINITIONS.items())


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(value) for value in line)} |" for line in lines)


def pivot(
    conditions: Sequence[Condition],
    row: Callable[[Condition], tuple[str, ...]],
    column: Callable[[Condition], str],
    value: Callable[[Condition], str],
    columns: Sequence[str],
) -> list[list[str]]:
    """Return the rows of a table with a column for each level of one factor; absent conditions are empty."""
    rows = []
    for name, group in group_by(conditions, row).items():
        values = {column(one): value(one) for one in group}
        rows.append([*name, *(values.get(level, "") for level in columns)])
    return rows


def guidance_of(condition: Condition) -> str:
    """Return the guidance of a condition as a table shows it, with its variant."""
    return f"`{condition.guidance}`" + (f", {shown(condition.variant)}" if condition.variant else "")


def baseline_scores(results: StudyResults) -> str:
    """Return the final scores of the students without a tutor, as Markdown."""
    rows = []
    for condition in results.conditions():
        scores = [final_score(curve) for curve in results.curves(condition)]
        estimate = Estimate(fmean(scores), *interval(scores))
        rows.append(
            (shown(condition.env), condition.algo, estimate, f"{results.score_std(condition):.3f}", len(scores))
        )
    return table(("env", "student", "final score", "std", "seeds"), rows)


def differences(results: StudyResults, env: str) -> list[str]:
    """Return what each guidance method changes for the students of an env, a column for each tutor, as Markdown."""
    conditions = [one for one in results.tutored() if one.env == env and one.reuse == results.study.reuse[-1]]
    tutors = [shown(tutor) for tutor in results.study.tutors if any(one.tutor == tutor for one in conditions)]
    parts = []
    for title, measure in (("AUC", auc), ("final score", final_score)):

        def difference(condition: Condition, measure: Callable[[Curve], float] = measure) -> str:
            gains = results.gains(condition, measure)
            return signed(fmean(gains), *paired_interval(gains))

        rows = pivot(
            conditions, lambda one: (one.algo, guidance_of(one)), lambda one: shown(one.tutor), difference, tutors
        )
        parts += [f"### {shown(env)}: {title}", table(("student", "guidance", *tutors), rows)] if rows else []
    return parts


def worths(results: StudyResults) -> str:
    """Return what each tutor was worth to each student that learns alone, as Markdown."""
    rows = []
    for one in results.tutored():
        if results.baseline_learns(one):
            found = worth(results, one)
            rows.append(
                (
                    *(shown(one.env), one.algo, shown(one.tutor), guidance_of(one), f"{one.reuse:g}"),
                    signed(*found.final),
                    f"{found.height:+.2f}",
                    f"{found.speedup:.1f}",
                    "yes" if found.is_harmless else "not shown",
                )
            )
    harmless = sum(row[-1] == "yes" for row in rows)
    text = (
        f"In shares of what the student alone gains. Harmless: the interval of the final score excludes a loss of "
        f"{MAX_FINAL_LOSS:.0%}, and the mean of the curve is not lower by {MAX_HEIGHT_LOSS:.0%}; so in {harmless} of "
        f"{len(rows)} conditions. Sooner: env steps to the threshold, alone over tutored, the median over seeds."
    )
    head = ("env", "student", "tutor", "guidance", "reuse", "final score", "mean of curve", "times sooner", "harmless")
    return f"{table(head, rows)}\n\n{text}"


def signed(difference: float, low: float, high: float) -> str:
    """Return a difference and its interval, in bold where that excludes 0."""
    text = f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def speedups(results: StudyResults, env: str) -> str:
    """Return how many times sooner the tutored students of an env reach the threshold; empty if there are none."""
    budgets = [f"{budget:g}" for budget in results.study.reuse]
    rows = pivot(
        [one for one in results.tutored() if one.env == env],
        lambda one: (one.algo, shown(one.tutor), guidance_of(one)),
        lambda one: f"{one.reuse:g}",
        lambda one: bounded_speedup(results, one),
        budgets,
    )
    if not rows:
        return ""
    learning = [one for one in results.conditions() if one.env == env and results.baseline_learns(one)]
    reached = [
        f"{one.algo} {sum(results.reached(one))} of {len(results.study.seeds)}" for one in learning if one.is_baseline()
    ]
    head = ("student", "tutor", "guidance", *(f"reuse {budget}" for budget in budgets))
    text = f"### {shown(env)}\n\nRuns without a tutor that reach the threshold: {', '.join(reached) or 'none'}."
    return f"{text}\n\n{table(head, rows)}"


def bounded_speedup(results: StudyResults, condition: Condition) -> str:
    """Return a condition's speed-up with the kind of bound it is; a dash where the baseline does not improve."""
    if not results.baseline_learns(condition):
        return "–"
    ours, baseline = (all(results.reached(one)) for one in (condition, condition.baseline()))
    sign = {(True, True): "", (True, False): "≥ ", (False, True): "≤ ", (False, False): "~ "}[ours, baseline]
    return f"{sign}{speedup(results, [condition], Condition.baseline)}"


def totals(results: StudyResults) -> str:
    """Return what each tutor, guidance and reuse budget comes to over all envs and students that learn alone."""
    learning = [one for one in results.tutored() if results.baseline_learns(one)]
    rows = []
    for name, group in group_by(learning, lambda one: (shown(one.tutor), guidance_of(one), f"{one.reuse:g}")).items():
        scores = [results.normalized_scores(one) for one in group]
        middle = Estimate(
            float(iqm([score for several in scores for score in several])),
            *stratified_interval(scores, baselines(group), iqm),
        )
        better = fmean(
            probability_of_improvement(ours, results.normalized_scores(one.baseline()))
            for ours, one in zip(scores, group, strict=True)
        )
        sooner = [speedup(results, group, Condition.baseline)]
        sooner.append(speedup(results, group, Condition.baseline, "by_seconds"))
        rows.append((*name, len(group), *sooner, middle, f"{better:.0%}"))
    scores_head = ("IQM of normalized final scores", "probability of improvement")
    speed_head = ("speed-up, steps", "speed-up, seconds")
    return table(("tutor", "guidance", "reuse", "conditions", *speed_head, *scores_head), rows)


def with_and_without_reuse(results: StudyResults) -> list[Condition]:
    """Return the conditions with reuse, of students that learn alone, that also have runs without reuse."""
    return [
        one
        for one in results.tutored()
        if results.baseline_learns(one) and one.reuse != NO_REUSE and without_reuse(one) in results.runs
    ]


def reuse_table(results: StudyResults, conditions: Sequence[Condition]) -> str:
    """Return what a reuse budget changes for each student of each env, compared with no reuse."""
    rows = []
    for name, group in group_by(conditions, lambda one: (shown(one.env), one.algo, f"{one.reuse:g}")).items():
        without = [without_reuse(one) for one in group]
        ours, theirs = (fmean(results.score_std(one) for one in several) for several in (group, without))
        times = [speedup(results, group, without_reuse), speedup(results, group, without_reuse, "by_seconds")]
        drawdown = drawdown_difference(results, group, without_reuse)
        share = f"{question_share(results, group):.0%}"
        rows.append((*name, *times, drawdown, f"{ours:.3f} (without: {theirs:.3f})", share))
    head = ("speed-up, steps", "speed-up, seconds", "max drawdown, difference", "std", "questions")
    return table(("env", "student", "reuse", *head), rows)


def costs(results: StudyResults) -> str:
    """Return the questions of a run and what they cost, by env, tutor and reuse, means over students and seeds."""
    rows = []
    for name, group in group_by(
        results.tutored(), lambda one: (shown(one.env), shown(one.tutor), f"{one.reuse:g}")
    ).items():

        def count(counter: str, group: Sequence[Condition] = group) -> float:
            return fmean(results.mean_count(one, counter) for one in group)

        tokens, no_advice = count("prompt_tokens") + count("answer_tokens"), fmean(map(results.no_advice, group))
        consulted, asked = count("consulted"), count("asked")
        counts = (f"{consulted:,.0f}", f"{asked:,.0f}", f"{count('hits') / max(consulted, 1):.0%}", f"{tokens:,.0f}")
        rows.append((*name, *counts, f"{count('seconds'):.1f}", f"{no_advice / max(asked, 1):.0%}"))
    head = ("positions consulted", "questions", "hit rate", "tokens", "seconds", "no advice")
    return table(("env", "tutor", "reuse", *head), rows)
