"""The tiny tutor behind a real vLLM server, against the same model read here in PyTorch."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import envs
from envs.base import State, num_rows, select_rows
from experiments.runner import RunOptions, run
from tests.helpers.paths import ROOT
from tests.helpers.studies import SERVED, finish_times, run_dirs, write_study
from tests.helpers.vllm_server import require_vllm, tiny_server
from tutors import factory
from tutors.base import TutorError
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import find_model
from tutors.llm.pool import EndpointPool
from tutors.llm.server import served_models
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view
from tutors.tiny import recipe as recipes
from tutors.tiny.model import Llama, Shape
from tutors.tiny.recipe import POSITION_SHARES, LocalTutor, ViewTask, play_metrics, sample_positions

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]

WEIGHTS = ROOT / "tutors" / "tiny" / "weights"
VIEW = make_view(envs.make_game("connect4"))
EVERY_VIEW = {(game, name): make_view(envs.make_game(game), name) for game, name in POSITION_SHARES}


@pytest.fixture(scope="module")
def tiny_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of the server that all tests share. It is gone when its block is left."""
    with tiny_server(tmp_path_factory.mktemp("vllm")) as url:
        yield url
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=5)


@pytest.fixture(scope="module")
def positions() -> dict[tuple[str, str], State]:
    """Positions of mixed play in every view, as the recipe gathers them, from another seed."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for place, view in sorted(EVERY_VIEW.items(), key=lambda one: one[0] != ("connect4", "board")):
            if place[0] != "connect4":  # whose positions are gathered fast; early ones are easier than the card's
                patch.setattr(recipes, "NUM_ENVS", 256)
                patch.setattr(recipes, "STEPS_PER_CHECK", 40)
            found[place] = sample_positions(view, 1000, seed=99)
    chance = torch.Generator().manual_seed(0)
    return {
        place: select_rows(state, torch.randperm(num_rows(state), generator=chance)[:1000])
        for place, state in found.items()
    }


@pytest.fixture(scope="module")
def local_tutors() -> dict[tuple[str, str], LocalTutor]:
    """The committed weights, read without vLLM."""
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    model = Llama(Shape(tokenizer.get_vocab_size()))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS / "model.safetensors").items()})
    return {place: LocalTutor(model.eval(), tokenizer, view) for place, view in EVERY_VIEW.items()}


@pytest.mark.parametrize("place", EVERY_VIEW)
def test_vllm_answers_as_the_model_does(
    tiny_url: str,
    positions: dict[tuple[str, str], State],
    local_tutors: dict[tuple[str, str], LocalTutor],
    place: tuple[str, str],
) -> None:
    view, local_tutor, asked = EVERY_VIEW[place], local_tutors[place], positions[place]
    with closing(EndpointPool([tiny_url])) as pool:
        advice = VllmTutor(view, find_model("tiny"), pool, LabelLogprobs(view)).advise(asked)
    assert advice.valid.all()
    with torch.no_grad():
        logits = local_tutor.logits(asked)
    action_mask = view.action_mask(asked)
    expected = logits[:, local_tutor.labels].masked_fill(~action_mask, -torch.inf).softmax(1)
    mass = (logits.softmax(1)[:, local_tutor.labels] * action_mask).sum(1)
    assert (advice.probs - expected).abs().max() < 0.15  # two bfloat16 programs
    assert (advice.probs - expected).abs().mean() < 0.005
    assert (advice.label_mass - mass).abs().max() < 0.05
    assert (advice.probs.argmax(1) == expected.argmax(1)).float().mean() > 0.96


@pytest.mark.parametrize("place", EVERY_VIEW)
def test_the_card_tells_the_truth(
    positions: dict[tuple[str, str], State], local_tutors: dict[tuple[str, str], LocalTutor], place: tuple[str, str]
) -> None:
    card = json.loads((WEIGHTS / "card.json").read_text())
    task = ViewTask(envs.make_game(place[0]), local_tutors[place], positions[place], positions[place], 4)
    published = card["views"][task.name]
    assert task.agreement(1000) == pytest.approx(published["agreement"], abs=0.06)  # 1,000 positions: 3 standard errors
    assert published["agreement"] > published["chance"] + 0.3
    if place[0] == "blackjack":
        assert play_metrics(task)["regret"] == pytest.approx(published["regret"], abs=1e-6)
        assert published["regret"] < 0.01
    if place[1] == "local":
        assert published["fruits"] >= 10


def test_the_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 5_000_000


def test_the_sentence_that_the_project_exists_for(tiny_url: str, tmp_path: Path) -> None:
    flags = "--algo dqn --env connect4 --tutor deepseek --total-steps 3000 --num-envs 64 --eval-episodes 50"
    flags += " --guidance override"  # by default a run so short asks in its probes alone
    run_dir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "train.py", *flags.split(), "--tutor-url", tiny_url, "--run-dir", str(run_dir)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tutor = json.loads((run_dir / "summary.json").read_text())["tutor"]
    assert tutor["name"] == "deepseek"
    assert tutor["asked"] > 100
    assert tutor["hits"] > 100


def test_runs_of_a_study_share_the_server_that_answers(
    tiny_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "DEFAULT_URL", tiny_url)
    path = write_study(tmp_path, SERVED.replace("[1]", "[1, 2]"))
    run(RunOptions(path, tmp_path / "runs"))
    assert len(finish_times(path)) == 4
    tutored = [run_dir for run_dir in run_dirs(path) if "_tiny_" in run_dir.name]
    assert len(tutored) == 2
    for run_dir in tutored:
        tutor = json.loads((run_dir / "summary.json").read_text())["tutor"]
        assert tutor["asked"] > 100
        assert tutor["no_advice"] == {}
    assert not list((tmp_path / "runs").rglob("*vllm*")), "nobody started a server"
    assert served_models(tiny_url) is not None, "it was left running"


def test_a_model_that_is_not_served_is_refused_by_name(tiny_url: str) -> None:
    with (
        closing(EndpointPool([tiny_url])) as pool,
        pytest.raises(TutorError, match="serves tiny, deepseek, not llama"),
    ):
        VllmTutor(VIEW, find_model("llama"), pool, LabelLogprobs(VIEW))


def test_no_server_and_no_weights_ends_with_code_2_and_three_ways_out(tmp_path: Path) -> None:
    require_vllm()
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "train.py", *["--algo", "dqn", "--env", "connect4", "--tutor", "deepseek"],
         "--run-dir", str(tmp_path / "run")],
        cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 12
    for way in ("--tutor-url", "--served-model-name deepseek", "--tutor tiny", "--tutor scripted"):
        assert way in done.stderr
