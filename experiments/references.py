"""What a mean return is to be compared with: random play, the tutor alone, and the best there is."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import torch

from envs.blackjack import Blackjack
from envs.blackjack_exact import optimum
from envs.rng import QUERY_STREAM, CounterRNG
from training.config import EVALUATION_SEED, Config, evaluation_env
from training.evaluation import EXACT_EVALUATORS, random_policy, run_episodes, tutor_policy
from tutors import open_advisor

NUM_EPISODES = 500
NUM_SHORT_EPISODES = 50_000  # of a game that is small enough to enumerate: values that differ by little


def references(config: Config, probed: Sequence[float] = ()) -> dict[str, float]:
    """Return the mean returns in a run's env to compare its student's with, by name.

    Args:
        config: of the run. A scripted tutor plays; any other is represented by what its probe episodes came to.
        probed: the mean returns of a tutor's probe episodes, if there were any.
    """
    try:
        env = evaluation_env(config, 1, "cpu")
    except ValueError:  # of a game that is no longer there
        return {}
    number = NUM_SHORT_EPISODES if type(env.game) in EXACT_EVALUATORS else NUM_EPISODES
    env = evaluation_env(config, number, "cpu")
    rng = CounterRNG(config.seed + EVALUATION_SEED, torch.arange(number), QUERY_STREAM)
    found = {"random play": run_episodes(random_policy(rng), env).mean_return}
    if config.tutoring.tutor == "scripted":
        env = evaluation_env(config, number, "cpu")
        with (
            TemporaryDirectory() as folder,
            open_advisor(config.tutoring, env.game, config.seed, Path(folder), "cpu") as advisor,
        ):
            assert advisor is not None
            found["tutor alone"] = run_episodes(tutor_policy(advisor, rng), env).mean_return
    elif probed:
        found["tutor in its probe episodes"] = fmean(probed)
    if isinstance(env.game, Blackjack):
        best = optimum(env.game).hand
        found = {name: min(value, best) for name, value in found.items()} | {"optimal play": best}  # above it is chance
    elif env.spec.return_range is not None:
        found["best possible"] = env.spec.return_range[1]
    return found
