"""Two processes on CPUs, connected by gloo, against one: the same episodes, the same student.

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
from tests.helpers.small_runs import tensors_in
from training.checkpoint import checkpoint_name, load_checkpoint

NUM_ENVS = 16
SETTINGS: dict[str, dict[str, Any]] = {
    "dqn": {"learning_starts": 32, "batch_size": 64},
    "a2c": {
        "norm_adv": True,
        "adv_floor": 1e-6,
    },  # so that advantages are divided by the standard deviation over all env copies
}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PYTHONPATH": "."},
    )


def trained(agent: Any, env: Env, updates: int) -> dict[str, Any]:
    """Train, and return the first rollout's actions and rewards, and the weights after the last update."""
    step: Step = env.reset()
    actions, rewards = [], []
    for _ in range(updates):
        for _ in range(agent.steps_per_update):
            decision = agent.act(step.obs, step.action_mask)
            next_step = env.step(decision.action)
            agent.observe(step, decision, decision.action, next_step, next_step.reward)
            actions.append(decision.action)
            rewards.append(next_step.reward)
            step = next_step.as_initial()
        agent.update(step)
    return {
        "actions": torch.stack(actions[: agent.steps_per_update]),
        "rewards": torch.stack(rewards[: agent.steps_per_update]),
        "weights": agent.network.state_dict(),
    }


def make_student(algo: str, env: Env) -> Any:
    agent, config = AGENTS[algo]
    settings = {"network": "mlp", "hidden": (32,)} | SETTINGS.get(algo, {})
    return agent(config(**settings), env, 10_000, seed=3)


def work(folder: str) -> None:
    """Do what each rank does."""
    init("cpu")
    num_envs = NUM_ENVS // world_size()
    found: dict[str, Any] = {}
    for algo in AGENTS:
        env = envs.make("connect4", num_envs, 5, first_env_id=rank() * num_envs)
        found[algo] = trained(make_student(algo, env), env, 6)
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


@pytest.mark.process
@pytest.mark.parametrize("algo", AGENTS)
def test_ranks_hold_the_same_weights(algo: str, two_ranks: list[dict[str, Any]]) -> None:
    first, second = (found[algo]["weights"] for found in two_ranks)
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.process
@pytest.mark.parametrize("algo", AGENTS)
def test_ranks_act_in_the_env_copies_as_one_process_does(algo: str, two_ranks: list[dict[str, Any]]) -> None:
    env = envs.make("connect4", NUM_ENVS, 5)
    alone = trained(make_student(algo, env), env, 1)
    for name in ("actions", "rewards"):
        assert torch.cat([found[algo][name] for found in two_ranks], 1).equal(alone[name])


@pytest.mark.process
def test_a2c_on_two_ranks_learns_the_weights_of_one_process(
    two_ranks: list[dict[str, Any]],
) -> None:
    env = envs.make("connect4", NUM_ENVS, 5)
    alone = trained(make_student("a2c", env), env, 6)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(two_ranks[0]["a2c"]["weights"][name], weight, rtol=1e-4, atol=1e-5)
    fresh = make_student("a2c", env).network.state_dict()
    assert any((alone["weights"][name] - fresh[name]).abs().max() > 1e-3 for name in fresh), "it did learn"


@pytest.mark.process
def test_reductions_and_broadcasts_are_the_same_on_all_ranks(two_ranks: list[dict[str, Any]]) -> None:
    assert [found["sums"] for found in two_ranks] == [[3.0, 1.5, "from 0"]] * 2
    assert [found["counts"] for found in two_ranks] == [{"asked": 3, "of 0": 5, "of 1": 5}] * 2


def test_functions_without_torchrun_leave_everything_as_it_is() -> None:
    number = torch.tensor([2.0])
    assert (rank(), world_size(), init("cpu"), broadcast_object("x")) == (0, 1, "cpu", "x")
    assert all_reduce_sum(number).item() == all_reduce_mean(number).item() == 2.0
    assert all_gather_sum({"asked": 7}) == {"asked": 7}


@pytest.mark.process
def test_run_of_two_processes_writes_one_run_dir_and_counts_all_env_copies(tmp_path: Path) -> None:
    flags = "train.py --algo ppo --env blackjack --total-steps 16384 --num-envs 64 --log-every 4096 --eval-every 8192"
    tutor = "--tutor scripted --guidance override --query-budget 100 --reuse 3"
    done = torchrun(*flags.split(), *tutor.split(), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["global_step"] == 16384
    assert summary["tutor"]["asked"] == 100, "of both"
    assert summary["tutor"]["budget_left"] == 0
    assert done.stdout.count("student alone") == 3, "only one of them prints"
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    lengths = [float(line.split(",")[3]) for line in lines if "episodic_length" in line]
    assert lengths
    assert all(1 <= length <= 4 for length in lengths)
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {f"{checkpoint_name(16384, number)}{mark}" for number in (0, 1) for mark in ("", ".sha256")}


@pytest.mark.process
def test_two_ranks_trust_the_tutor_as_much_and_hold_the_same_weights(tmp_path: Path) -> None:
    flags = "train.py --algo ppo --env connect4 --total-steps 24576 --num-envs 64 --num-steps 8 --network mlp"
    tutor = "--hidden 16 --tutor scripted --tutor-depth 1 --eval-episodes 8 --progress quiet"
    done = torchrun(*flags.split(), *tutor.split(), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    first, second = (load_checkpoint(tmp_path / "run" / "checkpoints", "cpu", number, 2) for number in range(2))
    for name in ("value", "opened_at", "probe_steps", "next_update", "last_probe", "gates", "confidences", "evidence"):
        assert first["trust"][name] == second["trust"][name]
    assert first["trust"]["opened_at"] is not None
    assert first["global_step"] == second["global_step"]
    ours, theirs = (tensors_in(one["agent"]["network"]) for one in (first, second))
    assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))
    assert not first["trust"]["alone"]["lengths"].equal(second["trust"]["alone"]["lengths"]), "of other env copies"


@pytest.mark.process
def test_killed_rank_ends_all_and_a_restart_is_the_unbroken_run(tmp_path: Path) -> None:
    flags = ["train.py", "--algo", "ppo", "--env", "blackjack", "--total-steps", "60000", "--num-envs", "64"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert torchrun(*flags, "--run-dir", str(whole)).returncode == 0
    command = [*TORCHRUN, *flags, "--save-minutes", "0", "--run-dir", str(parts)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(parts.glob("checkpoints/*.rank1.pt.sha256")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(child_of(process.pid, "parts"), signal.SIGKILL)
        assert process.wait(60) != 0
    assert not (parts / "summary.json").exists()
    done = torchrun("train.py", "--resume", str(parts))
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        ours, theirs = (tensors_in(load_checkpoint(one / "checkpoints", "cpu", number, 2)) for one in (whole, parts))
        assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.process
def test_ranks_save_and_end_when_their_agent_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "orphans"
    flags = ["train.py", "--algo", "ppo", "--env", "blackjack", "--total-steps", "50000000", "--num-envs", "64"]
    command = [*TORCHRUN, *flags, "--save-minutes", "60", "--log-every", "1000", "--run-dir", str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
        deadline = time.monotonic() + 120
        while not (run / "metrics.csv").exists() or (run / "metrics.csv").read_text().count("\n") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        rank = child_of(agent.pid, "orphans")
        agent.kill()
    while Path(f"/proc/{rank}").exists() and "Z" not in Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for number in (0, 1):
        assert load_checkpoint(run / "checkpoints", "cpu", number, 2)["global_step"] > 0


def child_of(pid: int, word: str) -> int:
    """Return the last process that torchrun started whose command line holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and word in (path / "cmdline").read_text():
                found.append(int(path.name))
    return max(found)


@pytest.mark.process
def test_env_copies_that_cannot_be_split_raise(tmp_path: Path) -> None:
    done = torchrun("train.py", "--num-envs", "15", "--run-dir", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "num_envs is 15; it must be a multiple of 2" in done.stderr


if __name__ == "__main__":
    work(sys.argv[1])
