"""A store becomes a dataset on a hub of this machine, and its answers come back from there."""

from pathlib import Path

import pytest
import torch

import envs
from tests.helpers.hub_server import local_hub
from tests.helpers.programs import program
from tutors.base import Advice
from tutors.prompts import make_view
from tutors.store import AdviceStore, Cost, identity_of
from tutors.store.database import open_existing
from tutors.store.json_lines import read_all, to_lines

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


@pytest.mark.process
def test_a_store_is_pushed_and_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = envs.make_game("blackjack")
    store = AdviceStore(tmp_path / "mine.sqlite", identity_of(game.spec, make_view(game), {"tutor": "me | myself"}))
    keys, everywhere = torch.tensor([[1, 2], [3, 4]]), torch.ones(2)
    advice = Advice(torch.tensor([[0.25, 0.75], [1.0, 0.0]]), everywhere.bool(), everywhere)
    store.put(keys, advice, ["one", "two"], Cost(10, 1, 0.5))
    store.close()
    with local_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", "hf_known")
        done = program("tutors", "store", "push", str(tmp_path / "mine.sqlite"), "--repo", "advice")
        assert done.returncode == 0, done.stderr
        files = hub.repos["datasets/me/advice"]
        assert set(files) == {"README.md", "advice.jsonl"}
        assert b"| blackjack | table | me &#124; myself | 2 | 20 | 2 |" in files["README.md"]
        done = program("tutors", "store", "import", str(tmp_path / "other.sqlite"), "hub:me/advice")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "2 answers are new, 0 were there\n"
        done = program("tutors", "store", "import", str(tmp_path / "other.sqlite"), "hub:me/nothing")
        assert done.returncode == 2
        assert done.stderr.startswith("error: hub:me/nothing cannot be read: ")
    lines = []
    for name in ("mine.sqlite", "other.sqlite"):
        with open_existing(str(tmp_path / name)) as engine:
            lines.append(list(to_lines(read_all(engine))))
    assert lines[0] == lines[1] != []
