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
        "returns",
    ),
    Bug(
        "truncation taken for death",
        "agents/gae.py",
        "next_values * ~terminations",
        "next_values * ~(terminations | truncations)",
        "returns",
    ),
    Bug("death taken for truncation", "agents/gae.py", "next_values * ~terminations", "next_values", "returns"),
    Bug(
        "GAE runs on past a truncation",
        "agents/gae.py",
        "(~(terminations | truncations)).float()",
        "(~terminations).float()",
        "returns",
    ),
    Bug("GAE without lambda", "agents/gae.py", "carry = gamma * gae_lambda *", "carry = gamma *", "returns"),
    Bug("returns without the value", "agents/gae.py", "advantages + values", "advantages", "returns"),
    Bug("no floor under the spread", "agents/gae.py", "/ spread.clamp(min=floor)", "/ (spread + 1e-8)", "returns"),
    Bug("advantages not centred", "agents/gae.py", "(advantages - mean)", "advantages", "returns"),
    Bug("policy gradient uphill", "agents/ppo.py", "-gain.mean()", "gain.mean()", "policies"),
    Bug("the clip takes the larger", "agents/ppo.py", "torch.minimum(", "torch.maximum(", "policies"),
    Bug(
        "the clip is one-sided",
        "agents/ppo.py",
        "ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)",
        "ratio.clamp(max=1 + config.clip_coef)",
        "policies",
    ),
    Bug(
        "the ratio upside down",
        "agents/ppo.py",
        "taken(log_probs, batch.action) - batch.log_prob",
        "batch.log_prob - taken(log_probs, batch.action)",
        "policies",
    ),
    Bug("entropy is punished", "agents/ppo.py", "- config.ent_coef * spread", "+ config.ent_coef * spread", "policies"),
    Bug("value error without its weight", "agents/ppo.py", "config.vf_coef * value_loss", "value_loss", "policies"),
    Bug(
        "target KL is never met",
        "agents/ppo.py",
        "self.learning_rate.mul_(near)",
        "self.learning_rate.mul_(near | True)",
        "policies",
    ),
    Bug(
        "A2C's gradient uphill",
        "agents/a2c.py",
        "-(log_prob * batch",
        "(log_prob * batch",
        "policies",
    ),
    Bug("A2C forgets the entropy", "agents/a2c.py", " - config.ent_coef * spread", "", "policies"),
    Bug(
        "the policy's mask ignored",
        "agents/base.py",
        "logits.masked_fill(~legal, IMPOSSIBLE).log_softmax(1)",
        "logits.log_softmax(1)",
        "policies",
    ),
    Bug(
        "learning rate does not fall",
        "agents/adam.py",
        "if anneal else",
        "if not anneal else",
        "policies",
    ),
    Bug(
        "schedule counts moments, not env steps",
        "agents/on_policy.py",
        "(self.steps - told.num_steps) * self.num_envs * ranks()",
        "(self.steps - told.num_steps) * ranks()",
        "policies",
    ),
    Bug(
        "log-prob of the proposal, not of the action taken",
        "agents/on_policy.py",
        "taken(proposal.scores, action)",
        "taken(proposal.scores, proposal.action)",
        "policies",
    ),
    Bug(
        "bootstraps from the fresh deal",
        "agents/on_policy.py",
        "self.network.judge(after.final_obs)",
        "self.network.judge(after.obs)",
        "policies",
    ),
    Bug(
        "next values are this moment's",
        "agents/on_policy.py",
        "kept.values[1:], self.network.judge(step.obs)[None]",
        "kept.values",
        "policies",
    ),
    Bug("the rollout is never shuffled", "agents/on_policy.py", "self.orders += 1", "pass", "policies"),
    Bug(
        "one epoch too few",
        "agents/on_policy.py",
        "for _ in range(self.epochs):",
        "for _ in range(max(self.epochs - 1, 1)):",
        "policies",
    ),
    Bug(
        "the rollout does not begin anew",
        "agents/on_policy.py",
        "        self.returns.copy_(returns)\n        self.place.zero_()",
        "        self.returns.copy_(returns)",
        "policies",
    ),
    Bug(
        "a sample without noise",
        "agents/base.py",
        "best_legal(log_probs + noise, legal)",
        "best_legal(log_probs, legal)",
        "policies",
    ),
    Bug(
        "an illegal action may be drawn",
        "agents/base.py",
        "best_legal(log_probs + noise, legal)",
        "(log_probs + noise).argmax(1)",
        "policies",
    ),
    Bug(
        "stale target: the target network never moves",
        "agents/dqn.py",
        "follow(self.target, self.network,",
        "follow(self.target, self.target,",
        "dqn",
    ),
    Bug(
        "the target moves one update too early",
        "agents/dqn.py",
        "(self.updates % told",
        "((self.updates + 1) % told",
        "dqn",
    ),
    Bug(
        "no double Q",
        "agents/dqn.py",
        "best_legal(network(batch.next_obs, besides), batch.next_legal)",
        "best_legal(target(batch.next_obs, besides), batch.next_legal)",
        "dqn",
    ),
    Bug(
        "the target's mask ignored",
        "agents/dqn.py",
        "best_legal(network(batch.next_obs, besides), batch.next_legal)",
        "network(batch.next_obs, besides).argmax(1)",
        "dqn",
    ),
    Bug(
        "exploration rises",
        "agents/dqn.py",
        "config.start_e + progress * (config.end_e - config.start_e)",
        "config.end_e + progress * (config.start_e - config.end_e)",
        "dqn",
    ),
    Bug(
        "exploration falls over all of the run",
        "agents/dqn.py",
        "config.exploration_fraction * total_steps",
        "total_steps",
        "dqn",
    ),
    Bug(
        "exploration is illegal",
        "agents/dqn.py",
        "pick(step.legal, luck[:, 1])",
        "pick(torch.ones_like(step.legal), luck[:, 1])",
        "dqn",
    ),
    Bug(
        "the same batch at every update",
        "agents/dqn.py",
        "self.batch_luck.draw(self.updates, 1)",
        "self.batch_luck.draw(0, 1)",
        "dqn",
    ),
    Bug(
        "rewards of n steps not discounted",
        "agents/replay_buffer.py",
        "reward + discount * felt",
        "reward + felt",
        "replay",
    ),
    Bug(
        "n steps run into the next game",
        "agents/replay_buffer.py",
        "alive = alive & ~(self.terminations[place, game] | self.truncations[place, game])",
        "alive = alive & ~self.terminations[place, game]",
        "replay",
    ),
    Bug(
        "a terminated game has a future",
        "agents/replay_buffer.py",
        "discount * ~self.terminations[last, game]",
        "discount * 1.0",
        "replay",
    ),
    Bug(
        "the next position is that of the fresh deal",
        "agents/replay_buffer.py",
        "after.final_state",
        "after.state",
        "replay",
    ),
    Bug("the newest moments begin too", "agents/replay_buffer.py", "(kept - (n_step - 1))", "kept", "replay"),
    Bug(
        "Adam without bias correction",
        "agents/adam.py",
        "self.mean / (1 - BETA1**self.steps)",
        "self.mean",
        "optimizer",
    ),
    Bug("the gradient is not clipped", "agents/adam.py", ".clamp(max=1.0)", ".clamp(min=1.0, max=1.0)", "optimizer"),
    Bug(
        "the networks follow too far",
        "agents/networks.py",
        "ours.lerp_(theirs, share)",
        "ours.copy_(theirs)",
        "networks",
    ),
    Bug("both networks begin alike", "agents/networks.py", "(seed + part * 0x9E3779B1)", "seed", "networks"),
]


def survives(bug: Bug, bugs: list[Bug], folder: Path) -> bool:
    """Whether the tests that are named in `bugs` pass with this bug in the copy at `folder`."""
    path = folder / bug.file
    source = path.read_text()
    path.write_text(source.replace(bug.right, bug.wrong, 1))
    others = sorted({one.tests for one in bugs} - {bug.tests})
    try:
        return all(passes(folder, [f"tests/test_{name}.py" for name in names]) for names in ([bug.tests], others))
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
