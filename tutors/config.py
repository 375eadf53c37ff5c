"""The settings of a tutor: which one, how it is asked, and how often."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from tutors.query import check_query_options

QUERY_FIELDS = (  # of the options: where and how often a tutor is asked
    *("reuse", "consult_from", "consult_to", "theta", "query_strategy", "query_threshold", "query_budget"),
    "query_budget_per_step",
)


@dataclass(frozen=True)
class TutorConfig:
    """A tutor, how it is asked, and how often."""

    tutor: str = "none"
    """Tutor: none, scripted, llama, vicuna, deepseek, deepseek-llama, tiny, smollm2 (tutors/llm/models.toml),
    recorded:STORE, module:function of your own, any model by its hub id or folder, or served: whatever the model
    server has."""
    view: str | None = None
    """Prompt view of the env, such as full or local for snake, or module:Class of your own; default: the env's
    first."""
    tutor_url: tuple[str, ...] = ()
    """URLs of the model's servers; default: http://127.0.0.1:8000, where one is started if none answers."""
    tutor_model: str | None = None
    """Another served model, asked in the tutor's template; for a recorded tutor, the model whose answers are meant."""
    tutor_key_file: Path | None = None
    """File with the servers' API key; default: the environment variable TUTOR_API_KEY."""
    tutor_mode: Literal["label", "text"] = "label"
    """Form of the answers. label: the log-probabilities of one letter an action; text: free text with
    <action></action>, after thinking if the model does."""
    label_permutations: Annotated[int, Interval(ge=1, le=10**4)] = 1
    """Number of orders of the letters that are averaged, up to the number of actions (label mode)."""
    label_set: Literal["letters", "digits"] | None = None
    """Labels of the actions: letters (A, B, …) or digits (1, 2, …); default: letters, and digits where the model has no
    single token for a letter (label mode)."""
    calibrate: bool = False
    """Division by the answer to a prompt without a position (label mode)."""
    tutor_tokens: Annotated[int, Interval(ge=1, le=10**6)] = 512
    """Maximum tokens of an answer, thinking included (text mode)."""
    tutor_samples: Annotated[int, Interval(ge=1, le=1000)] = 1
    """Answers sampled for each position, whose shares are the advice (text mode); or for each episode that is reviewed,
    of whose values of an action the median counts."""
    tutor_tries: Annotated[int, Interval(ge=1, le=100)] = 3
    """Maximum attempts at a position that gets no legal answer (text mode)."""
    tutor_wait: Annotated[float, Interval(ge=0, le=1e6)] = 10.0
    """Seconds to wait for a server that is not started here."""
    tutor_deadline: Annotated[float, Interval(gt=0, le=1e6)] = 60.0
    """Seconds that the queries of one step may take; later answers are not used."""
    tutor_optional: bool = False
    """Training without advice as long as no server answers, in place of an error."""
    no_thinking: bool = False
    """Answers without the thinking of a model that thinks (text mode); labels are always asked for without."""
    min_label_mass: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Minimum probability of all legal letters together, below which there is no advice (label mode)."""
    tutor_accuracy: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """Probability that the scripted tutor names a best action; otherwise it names any legal one."""
    tutor_stochastic: bool = False
    """New errors of the scripted tutor at every query, like those of a model that samples its answers."""
    tutor_all_best: bool = False
    """All best actions named by the scripted tutor, each with the same probability, in place of one of them."""
    tutor_depth: Annotated[int, Interval(ge=1, le=42)] = 4
    """Discs that the scripted tutor looks ahead (connect4)."""
    reuse: Annotated[float, Interval(ge=0, le=math.inf)] = math.inf
    """Reuse budget: how often an answer is used again: 0, k (the paper: 3) or inf."""
    consult_from: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """Consult probability at the first step (P_init)."""
    consult_to: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Consult probability from step theta on (P_final); default: 0.1, or 1 with a guidance method that is annealed."""
    theta: Annotated[int, Interval(ge=0, le=10**15)] | None = None
    """Env steps over which the consult probability falls; default: half of the run."""
    async_tutor: bool = False
    """Asynchronous tutor: the envs do not wait for answers, which serve later steps."""
    query_strategy: str = "chance"
    """Where advice is wanted: chance (with the consult probability), early, importance, mistake, uncertainty or
    visited."""
    query_threshold: Annotated[float, Interval(ge=0, le=1e9)] | None = None
    """Threshold of importance and mistake (default 0.2), uncertainty (0.5) and visited (3 visits)."""
    query_budget: Annotated[int, Interval(ge=0, le=10**15)] | None = None
    """Maximum queries of the run; what the advice table knows costs none. Default: no limit."""
    query_budget_per_step: Annotated[int, Interval(ge=1, le=10**15)] | None = None
    """Maximum queries of one step of all envs, those of the highest scores. Default: no limit."""
    no_symmetry: bool = False
    """Prompts without symmetry: a mirrored board is a query of its own."""
    advice_store: str | None = None
    """SQLite file or database URL that keeps all answers; default: advice.sqlite in the run directory."""

    def check(self) -> None:
        """Raise ValueError for settings that cannot be used."""
        if not (self.reuse == math.inf or self.reuse == int(self.reuse)):
            raise ValueError(f"--reuse is {self.reuse:g}; a reuse budget is 0, a whole number or inf")
        check_query_options(self.query_strategy, self.query_threshold, self.query_budget, self.query_budget_per_step)
        if self.query_strategy == "mistake" and self.async_tutor:
            raise ValueError("--query-strategy mistake requires each step's answer: leave out --async-tutor")
        if self.async_tutor and self.reuse == 0:
            raise ValueError("--async-tutor takes advice from the table alone: it requires a --reuse above 0")
