"""Two processes on CPUs, joined by gloo, against one: the same games, the same student.

Each rank runs this file's `work` under torchrun and saves what it saw; the tests compare that with one process.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import envs
from agents import AGENTS
from agents.distributed import (
    all_gather_sum,
    all_reduce_mean,
    all_reduce_sum,
    broadcast_object,
    init,
    rank,
    shutdown,
    world_size,
)
from envs.base import Env, Step
from tests.helpers.paths import ROOT
from tests.integration.test_query import tensors
from training.checkpoint import load_checkpoint, name_of

NUM_ENVS = 16
TOLD: dict[str, dict[str, Any]] = {
    "dqn": {"learning_starts": 32, "batch_size": 64},
    "a2c": {"norm_adv": True, "adv_floor": 1e-6},  # so that advantages are divided by the spread over all games
}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PYTHONPATH": "."},
    )


def lived(agent: Any, env: Env, updates: int) -> dict[str, Any]:
    """Train, and return the first rollout's actions and rewards, and the weights after the last update."""
    step: Step = env.reset()
    actions, rewards = [], []
    for _ in range(updates):
        for _ in range(agent.horizon):
            proposal = agent.act(step)
            after = env.step(proposal.action)
            agent.observe(step, proposal, proposal.action, after)
            actions.append(proposal.action)
            rewards.append(after.reward)
            step = after.as_initial()
        agent.update(step)
    return {
        "actions": torch.stack(actions[: agent.horizon]),
        "rewards": torch.stack(rewards[: agent.horizon]),
        "weights": agent.network.state_dict(),
    }


def student_of(algo: str, env: Env) -> Any:
    agent, config = AGENTS[algo]
    told = {"network": "mlp", "hidden": (32,)} | TOLD.get(algo, {})
    return agent(config(**told), env, 10_000, seed=3)


def work(folder: str) -> None:
    """What each rank does."""
    init("cpu")
    mine = NUM_ENVS // world_size()
    found: dict[str, Any] = {}
    for algo in AGENTS:
        env = envs.make("connect4", mine, 5, first_env_id=rank() * mine)
        found[algo] = lived(student_of(algo, env), env, 6)
    number = torch.tensor([float(rank() + 1)])
    found["sums"] = [
        all_reduce_sum(number.clone()).item(),
        all_reduce_mean(number.clone()).item(),
        broadcast_object(f"from {rank()}"),
    ]
    found["counts"] = all_gather_sum({"asked": rank() + 1, f"of {rank()}": 5})
    torch.save(found, Path(folder) / f"rank{rank()}.pt")
    shutdown()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(__file__, str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{number}.pt") for number in range(2)]


@pytest.mark.parametrize("algo", AGENTS)
def test_two_ranks_hold_the_same_weights(algo: str, two_ranks: list[dict[str, Any]]) -> None:
    first, second = (found[algo]["weights"] for found in two_ranks)
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("algo", AGENTS)
def test_two_ranks_play_the_games_that_one_plays(algo: str, two_ranks: list[dict[str, Any]]) -> None:
    env = envs.make("connect4", NUM_ENVS, 5)
    alone = lived(student_of(algo, env), env, 1)
    for name in ("actions", "rewards"):
        assert torch.cat([found[algo][name] for found in two_ranks], 1).equal(alone[name])


def test_a_student_that_learns_from_whole_rollouts_becomes_the_same_on_two_ranks(
    two_ranks: list[dict[str, Any]],
) -> None:
    env = envs.make("connect4", NUM_ENVS, 5)
    alone = lived(student_of("a2c", env), env, 6)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(two_ranks[0]["a2c"]["weights"][name], weight, rtol=1e-4, atol=1e-5)
    fresh = student_of("a2c", env).network.state_dict()
    assert any((alone["weights"][name] - fresh[name]).abs().max() > 1e-3 for name in fresh), "it did learn"


def test_sums_means_and_what_rank_0_says_are_everybody_s(two_ranks: list[dict[str, Any]]) -> None:
    assert [found["sums"] for found in two_ranks] == [[3.0, 1.5, "from 0"]] * 2
    assert [found["counts"] for found in two_ranks] == [{"asked": 3, "of 0": 5, "of 1": 5}] * 2


def test_without_torchrun_there_is_one_rank() -> None:
    number = torch.tensor([2.0])
    assert (rank(), world_size(), init("cpu"), broadcast_object("x")) == (0, 1, "cpu", "x")
    assert all_reduce_sum(number).item() == all_reduce_mean(number).item() == 2.0
    assert all_gather_sum({"asked": 7}) == {"asked": 7}


def test_a_run_of_two_processes_writes_one_folder_and_counts_all_games(tmp_path: Path) -> None:
    words = "train.py --algo ppo --env blackjack --total-steps 16384 --num-envs 64 --log-every 4096 --eval-every 8192"
    tutor = "--tutor scripted --query-budget 100 --reuse 3"
    done = torchrun(*words.split(), *tutor.split(), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["global_step"] == 16384
    assert summary["tutor"]["asked"] == 100, "of both"
    assert summary["tutor"]["budget_left"] == 0
    assert done.stdout.count("student alone") == 3, "only one of them speaks"
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    lengths = [float(line.split(",")[3]) for line in lines if "episodic_length" in line]
    assert lengths
    assert all(1 <= length <= 4 for length in lengths)
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {f"{name_of(16384, number)}{mark}" for number in (0, 1) for mark in ("", ".sha256")}


def test_fault_46_a_rank_that_is_killed_ends_all_and_a_restart_goes_on(tmp_path: Path) -> None:
    words = ["train.py", "--algo", "ppo", "--env", "blackjack", "--total-steps", "60000", "--num-envs", "64"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert torchrun(*words, "--run-dir", str(whole)).returncode == 0
    told = [*TORCHRUN, *words, "--save-minutes", "0", "--run-dir", str(parts)]
    with subprocess.Popen(told, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as begun:
        over = time.monotonic() + 120
        while not list(parts.glob("checkpoints/*.rank1.pt.sha256")):
            assert time.monotonic() < over
            time.sleep(0.05)
        os.kill(child_of(begun.pid, "parts"), signal.SIGKILL)
        assert begun.wait(60) != 0
    assert not (parts / "summary.json").exists()
    done = torchrun("train.py", "--resume", str(parts))
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        ours, theirs = (tensors(load_checkpoint(one / "checkpoints", "cpu", number, 2)) for one in (whole, parts))
        assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


def child_of(pid: int, word: str) -> int:
    """A process that torchrun started, whose command line holds a word: the last one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and word in (path / "cmdline").read_text():
                found.append(int(path.name))
    return max(found)


def test_games_that_cannot_be_split_are_refused(tmp_path: Path) -> None:
    done = torchrun("train.py", "--num-envs", "15", "--run-dir", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "15 games cannot be split between 2 processes" in done.stderr


if __name__ == "__main__":
    work(sys.argv[1])
