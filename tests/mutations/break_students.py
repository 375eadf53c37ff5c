"""Seed one bug after the other into a copy of the students and see that their tests fail.

`python tests/mutations/break_students.py` prints a line a bug and ends with 1 if a bug survived. A bug is a piece of
source and what takes its place; the piece must stand in its file exactly once, so that this list cannot go stale
unnoticed (tests/integration/test_break_students.py).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Bug(NamedTuple):
    """What is wrong, where, and which tests should see it first."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


BUGS = [
    Bug(
        "GAE sums one moment too few",
        "agents/gae.py",
        "while reach < len(rewards):",
        "while reach < len(rewards) // 2:",
        "agents/test_gae.py",
    ),
    Bug(
        "truncation taken for death",
        "agents/gae.py",
        "next_values * ~terminations",
        "next_values * ~(terminations | truncations)",
        "agents/test_gae.py",
    ),
    Bug(
        "death taken for truncation",
        "agents/gae.py",
        "next_values * ~terminations",
        "next_values",
        "agents/test_gae.py",
    ),
    Bug(
        "GAE runs on past a truncation",
        "agents/gae.py",
        "(~(terminations | truncations)).float()",
        "(~terminations).float()",
        "agents/test_gae.py",
    ),
    Bug("GAE without lambda", "agents/gae.py", "carry = gamma * gae_lambda *", "carry = gamma *", "agents/test_gae.py"),
    Bug("returns without the value", "agents/gae.py", "advantages + values", "advantages", "agents/test_gae.py"),
    Bug(
        "no floor under the spread",
        "agents/gae.py",
        "/ spread.clamp(min=floor)",
        "/ (spread + 1e-8)",
        "agents/test_gae.py",
    ),
    Bug("advantages not centred", "agents/gae.py", "(advantages - mean)", "advantages", "agents/test_gae.py"),
    Bug("policy gradient uphill", "agents/ppo.py", "-gain.mean()", "gain.mean()", "agents/test_on_policy.py"),
    Bug("the clip takes the larger", "agents/ppo.py", "torch.minimum(", "torch.maximum(", "agents/test_on_policy.py"),
    Bug(
        "the clip is one-sided",
        "agents/ppo.py",
        "ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)",
        "ratio.clamp(max=1 + config.clip_coef)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "the ratio upside down",
        "agents/ppo.py",
        "gather_action(log_probs, batch.action) - batch.log_prob",
        "batch.log_prob - gather_action(log_probs, batch.action)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "entropy is punished",
        "agents/ppo.py",
        "- config.ent_coef * spread",
        "+ config.ent_coef * spread",
        "agents/test_on_policy.py",
    ),
    Bug(
        "value error without its weight",
        "agents/ppo.py",
        "config.vf_coef * value_loss",
        "value_loss",
        "agents/test_on_policy.py",
    ),
    Bug(
        "target KL is never met",
        "agents/ppo.py",
        "self.learning_rate.mul_(near)",
        "self.learning_rate.mul_(near | True)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "A2C's gradient uphill",
        "agents/a2c.py",
        "-(log_prob * batch",
        "(log_prob * batch",
        "agents/test_on_policy.py",
    ),
    Bug("A2C forgets the entropy", "agents/a2c.py", " - config.ent_coef * spread", "", "agents/test_on_policy.py"),
    Bug(
        "the policy's mask ignored",
        "agents/policy.py",
        "logits.masked_fill(~action_mask, MASKED_LOGIT).log_softmax(1)",
        "logits.log_softmax(1)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "learning rate does not fall",
        "agents/adam.py",
        "if anneal else",
        "if not anneal else",
        "agents/test_on_policy.py",
    ),
    Bug(
        "schedule counts moments, not env steps",
        "agents/on_policy.py",
        "(self.steps - told.num_steps) * self.num_envs * world_size()",
        "(self.steps - told.num_steps) * world_size()",
        "agents/test_on_policy.py",
    ),
    Bug(
        "log-prob of the proposal, not of the action taken",
        "agents/on_policy.py",
        "gather_action(proposal.scores, action)",
        "gather_action(proposal.scores, proposal.action)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "bootstraps from the fresh deal",
        "agents/on_policy.py",
        "self.network.judge(after.final_obs)",
        "self.network.judge(after.obs)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "next values are this moment's",
        "agents/on_policy.py",
        "kept.values[1:], self.network.judge(step.obs)[None]",
        "kept.values",
        "agents/test_on_policy.py",
    ),
    Bug("the rollout is never shuffled", "agents/on_policy.py", "self.orders += 1", "pass", "agents/test_on_policy.py"),
    Bug(
        "one epoch too few",
        "agents/on_policy.py",
        "for _ in range(self.epochs):",
        "for _ in range(max(self.epochs - 1, 1)):",
        "agents/test_on_policy.py",
    ),
    Bug(
        "the rollout does not begin anew",
        "agents/on_policy.py",
        "        self.returns.copy_(returns)\n        self.place.zero_()",
        "        self.returns.copy_(returns)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "a sample without noise",
        "agents/policy.py",
        "masked_argmax(log_probs + noise, action_mask)",
        "masked_argmax(log_probs, action_mask)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "an illegal action may be drawn",
        "agents/policy.py",
        "masked_argmax(log_probs + noise, action_mask)",
        "(log_probs + noise).argmax(1)",
        "agents/test_on_policy.py",
    ),
    Bug(
        "stale target: the target network never moves",
        "agents/dqn.py",
        "polyak_update(self.target, self.network,",
        "polyak_update(self.target, self.target,",
        "agents/test_dqn.py",
    ),
    Bug(
        "the target moves one update too early",
        "agents/dqn.py",
        "(self.updates % told",
        "((self.updates + 1) % told",
        "agents/test_dqn.py",
    ),
    Bug(
        "no double Q",
        "agents/dqn.py",
        "masked_argmax(network(batch.next_obs, besides), batch.next_action_mask)",
        "masked_argmax(target(batch.next_obs, besides), batch.next_action_mask)",
        "agents/test_dqn.py",
    ),
    Bug(
        "the target's mask ignored",
        "agents/dqn.py",
        "masked_argmax(network(batch.next_obs, besides), batch.next_action_mask)",
        "network(batch.next_obs, besides).argmax(1)",
        "agents/test_dqn.py",
    ),
    Bug(
        "exploration rises",
        "agents/dqn.py",
        "config.start_e + progress * (config.end_e - config.start_e)",
        "config.end_e + progress * (config.start_e - config.end_e)",
        "agents/test_dqn.py",
    ),
    Bug(
        "exploration falls over all of the run",
        "agents/dqn.py",
        "config.exploration_fraction * total_steps",
        "total_steps",
        "agents/test_dqn.py",
    ),
    Bug(
        "exploration is illegal",
        "agents/dqn.py",
        "sample_legal(step.action_mask, u[:, 1])",
        "sample_legal(torch.ones_like(step.action_mask), u[:, 1])",
        "agents/test_dqn.py",
    ),
    Bug(
        "the same batch at every update",
        "agents/dqn.py",
        "self.batch_rng.uniform(self.updates, 1)",
        "self.batch_rng.uniform(0, 1)",
        "agents/test_dqn.py",
    ),
    Bug(
        "rewards of n steps not discounted",
        "agents/replay_buffer.py",
        "reward + discount * felt",
        "reward + felt",
        "agents/test_replay_buffer.py",
    ),
    Bug(
        "n steps run into the next game",
        "agents/replay_buffer.py",
        "alive = alive & ~(self.terminations[place, game] | self.truncations[place, game])",
        "alive = alive & ~self.terminations[place, game]",
        "agents/test_replay_buffer.py",
    ),
    Bug(
        "a terminated game has a future",
        "agents/replay_buffer.py",
        "discount * ~self.terminations[last, game]",
        "discount * 1.0",
        "agents/test_replay_buffer.py",
    ),
    Bug(
        "the next position is that of the fresh deal",
        "agents/replay_buffer.py",
        "after.final_state",
        "after.state",
        "agents/test_replay_buffer.py",
    ),
    Bug(
        "the newest moments begin too",
        "agents/replay_buffer.py",
        "(kept - (n_step - 1))",
        "kept",
        "agents/test_replay_buffer.py",
    ),
    Bug(
        "Adam without bias correction",
        "agents/adam.py",
        "self.mean / (1 - BETA1**self.steps)",
        "self.mean",
        "agents/test_adam.py",
    ),
    Bug(
        "the gradient is not clipped",
        "agents/adam.py",
        ".clamp(max=1.0)",
        ".clamp(min=1.0, max=1.0)",
        "agents/test_adam.py",
    ),
    Bug(
        "the networks follow too far",
        "agents/networks.py",
        "ours.lerp_(theirs, share)",
        "ours.copy_(theirs)",
        "agents/test_networks.py",
    ),
    Bug(
        "both networks begin alike",
        "agents/networks.py",
        "(seed + part * 0x9E3779B1)",
        "seed",
        "agents/test_networks.py",
    ),
]


def survives(bug: Bug, bugs: list[Bug], folder: Path) -> bool:
    """Whether the tests that are named in `bugs` pass with this bug in the copy at `folder`."""
    path = folder / bug.file
    source = path.read_text()
    path.write_text(source.replace(bug.right, bug.wrong, 1))
    others = sorted({one.tests for one in bugs} - {bug.tests})
    try:
        return all(passes(folder, [f"tests/{name}" for name in names]) for names in ([bug.tests], others))
    finally:
        path.write_text(source)


def passes(folder: Path, tests: list[str]) -> bool:
    """Whether these tests pass there; a test that never ends has failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "120",
        "-m",
        "not serve",
        *tests,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr  # 2: the bug cannot even be imported
    return done.returncode == 0


def main(bugs: list[Bug], names: list[str]) -> int:
    """Try all bugs, or those whose names hold one of the words given, and return how the program ends."""
    chosen = [bug for bug in bugs if not names or any(name in bug.name for name in names)]
    survivors = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        kept = shutil.ignore_patterns(".*", "runs", "results", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=kept)
        for number, bug in enumerate(chosen, 1):
            survived = survives(bug, bugs, folder)
            survivors += survived
            print(f"{number:2} {'SURVIVED' if survived else 'caught  '} {bug.file}: {bug.name}", flush=True)
    print(f"{len(chosen)} bugs, {len(chosen) - survivors} caught, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(BUGS, sys.argv[1:]))
