"""Runs on a hub of this machine: what comes back is what was pushed, and nothing that it names is run."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.guidance import GuidanceConfig
from tests.helpers.hub_server import Hub, local_hub
from tests.helpers.programs import program
from tests.helpers.small_runs import logged, small_config, tensors_in
from train import train
from training import hub as hub_module
from training.checkpoint import load_checkpoint
from training.config import Config, load_config
from training.config_json import to_plain
from training.hub import local_run, packed, read_state, shared_config, unpacked, write_run, write_state
from tutors import TutorConfig
from tutors.hub import download

constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process and the programs it starts call, and a folder of its own for what is fetched."""
    with local_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub_module, "FOLDER", tmp_path / "fetched")
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", "hf_known")
        hub_module.fetched.cache_clear()
        yield found


def on_hub(hub: Hub, run_dir: Path, folder: Path) -> None:
    """Put a run there."""
    folder.mkdir()
    write_run(run_dir, folder)
    hub.repos["models/me/student"] = {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nested_values_come_back_with_their_types(tmp_path: Path) -> None:
    state = {
        "a": torch.arange(6).view(2, 3).T,
        "b": [1, 2.5, None, (True, "x")],
        "c": {3: torch.tensor(1.5)},
        "d": math.inf,
    }
    write_state(state, tmp_path)
    found = read_state(tmp_path)
    assert found.keys() == state.keys()
    assert found["b"] == state["b"]
    assert isinstance(found["b"][3], tuple)
    assert (found["d"], list(found["c"])) == (math.inf, [3])
    assert all(map(torch.equal, tensors_in(found), tensors_in(state)))


@pytest.mark.parametrize(
    "tree", [["code", "x"], ["tensor", 3], ["dict", [["a"]]], [], ["dict", {"a": 1}], [["dict", []]]]
)
def test_other_trees_are_refused(tree: Any, tmp_path: Path) -> None:
    write_state({}, tmp_path)
    (tmp_path / "state.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"state\.json"):
        read_state(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b'["tensor", "nobody"]'])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    write_state({"a": torch.zeros(1)}, tmp_path)
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_state(tmp_path)
    write_state({"a": torch.zeros(1)}, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_state(tmp_path)


def test_packed_names_say_what_each_tensor_is() -> None:
    tensors: dict[str, torch.Tensor] = {}
    tree = packed({"agent": {"network": {"weight": torch.ones(2)}}}, "", tensors)
    assert list(tensors) == ["agent.network.weight"]
    assert unpacked(tree, tensors)["agent"]["network"]["weight"].tolist() == [1, 1]


CODE = [
    {"env": "os:system", "env_kwargs": ("command=touch pwned",)},
    {"env": "gym:os:Evil-v0"},
    {"tutoring": TutorConfig(tutor="os:system")},
    {"tutoring": TutorConfig(tutor="recorded:postgresql://elsewhere/x")},
    {"tutoring": TutorConfig(tutor="scripted", view="os:system")},
    {"guiding": GuidanceConfig("os:system")},
]


@pytest.mark.parametrize("changes", CODE)
def test_a_config_that_names_code_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="brings no code with it"):
        shared_config(replace(Config(), **changes))


def test_what_leads_elsewhere_is_left_out() -> None:
    tutoring = TutorConfig(
        "tiny", tutor_url=("http://elsewhere",), tutor_key_file=Path("/etc/passwd"), advice_store="x"
    )
    config = Config(env="gym:CartPole-v1", tutoring=tutoring, run_dir=Path("a"), resume=Path("b"), track="wandb")
    plain = str(to_plain(shared_config(config)))
    assert not any(word in plain for word in ("elsewhere", "passwd", "wandb", "PosixPath"))
    assert shared_config(config).env == "gym:CartPole-v1"


@pytest.mark.train
@pytest.mark.parametrize("algo", ["dqn", "ppo"])
def test_a_fetched_run_goes_on_as_the_run_itself(algo: str, hub: Hub, tmp_path: Path) -> None:
    """Bit by bit, from tensors and JSON."""
    config = small_config(algo, "blackjack", tmp_path / "run")
    train(config)
    on_hub(hub, tmp_path / "run", tmp_path / "pushed")
    fetched = local_run("hub:me/student")
    assert not list((tmp_path / "cache").rglob("*.pt"))
    before, after = (load_checkpoint(run / "checkpoints", "cpu") for run in (tmp_path / "run", fetched))
    assert all(map(torch.equal, tensors_in(before), tensors_in(after)))
    assert local_run("hub:me/student") == fetched
    states = []
    for run in (tmp_path / "run", fetched):
        train(replace(load_config(run), total_steps=4096, device="cpu", resume=run, run_dir=None, force=True))
        states.append(load_checkpoint(run / "checkpoints", "cpu"))
    assert all(map(torch.equal, *map(tensors_in, states)))
    assert [row for row in logged(fetched) if row[0] > 2100] == [
        row for row in logged(tmp_path / "run") if row[0] > 2100
    ]


@pytest.mark.parametrize(
    "changes", [{"env": "os:system", "env_kwargs": ["command=touch pwned"]}, {"num_envs": 0}, {"no": 1}]
)
def test_a_run_of_another_kind_is_not_fetched(changes: dict[str, Any], hub: Hub, tmp_path: Path) -> None:
    write_state({"global_step": 3}, tmp_path)
    config = json.loads(Config().to_json()) | changes
    files = {name: (tmp_path / name).read_bytes() for name in ("state.json", "model.safetensors")}
    hub.repos["models/me/student"] = {**files, "config.json": json.dumps(config).encode()}
    with pytest.raises(ValueError, match="hub:me/student is no run of this program"):
        local_run("hub:me/student")
    assert not (tmp_path / "fetched").exists()


def test_a_pickle_there_is_not_even_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.repos["models/me/student"] = {
        "step_000000000001.pt": b"evil",
        "checkpoints/x.pt": b"evil",
        "config.json": b"{}",
    }
    with pytest.raises(ValueError, match="no run of this program"):
        local_run("hub:me/student")
    assert b"evil" not in b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"hub:NAME requires huggingface_hub: .* -m pip install huggingface_hub"):
        download("hub:me/student", "model", [])


def test_a_name_that_is_not_there_is_named(hub: Hub) -> None:
    for name in ("hub:me/nobody", "hub:a/b/c", "hub:"):
        with pytest.raises(ValueError, match=name):
            local_run(name)


@pytest.mark.process
@pytest.mark.train
def test_a_run_is_pushed_evaluated_and_resumed_by_commands(hub: Hub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_config("ppo", "connect4", run))
    done = program("experiments", "push", str(run), "--repo", "student")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("python evaluate.py hub:me/student")
    files = hub.repos["models/me/student"]
    assert set(files) == {
        *("README.md", "config.json", "state.json", "model.safetensors", "summary.json", "metrics.csv", "episode.gif")
    }
    card = files["README.md"].decode()
    result = json.loads((run / "summary.json").read_text())["eval"]
    scores = f"{result['mean_return']:+.3f} [{result['low']:+.3f}"
    words = ("scripted, guidance override", "--guidance override", "library_name: tutored", "episode.gif")
    for part in (scores, *words, "python train.py --algo ppo --env connect4"):
        assert part in card
    assert str(tmp_path) not in "".join(files[name].decode() for name in ("README.md", "config.json"))
    results = [program("evaluate.py", one, "--episodes", "50", "--json") for one in (str(run), "hub:me/student")]
    assert results[0].stdout == results[1].stdout != "", results[1].stderr
    done = program("train.py", "--resume", "hub:me/student", "--run-dir", str(tmp_path / "on"), "--total-steps", "3000")
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_who_may_not_write_there_is_told_so(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    train(small_config("ppo", "blackjack", tmp_path / "run"))
    done = program("experiments", "push", str(tmp_path / "run"), "--repo", "student")
    assert done.returncode == 2
    assert done.stderr.startswith("error: hub:student cannot be written: ")
    assert "hf_unknown" not in done.stderr
