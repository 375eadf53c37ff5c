"""Run directories and checkpoints with random damage: the run goes on, or ends with a clear error."""

import shutil
from pathlib import Path
from random import Random

import pytest
import torch

from tests.helpers.fuzzing import cases
from tests.helpers.resumed_runs import resume
from tests.helpers.small_runs import small_config
from train import train
from training.checkpoint import load_checkpoint, save_checkpoint


def damage(path: Path, random: Random) -> str:
    """Damage a file in one of several ways, and say how."""
    content = bytearray(path.read_bytes())
    kind = random.choice(["bit", "cut", "noise", "more", "empty", "gone", "folder", "others"])
    place = random.randrange(len(content)) if content else 0
    if kind == "bit" and content:
        content[place] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "noise":
        content[place : place + 64] = random.randbytes(64)
    elif kind == "more":
        content += random.randbytes(random.randrange(1, 999))
    elif kind == "others":
        content = bytearray(random.choice([b"{}", b"null", b"[1]", b"\xff\xfe\x00", b"0\n0", b'{"a": 1e999}']))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(b"" if kind == "empty" else content)
    return f"{path.name}: {kind}"


def test_random_damage_of_checkpoints_leads_to_a_sound_one_or_to_an_error(tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    for step in (1, 2):
        save_checkpoint(sound, step, {"global_step": step, "weights": torch.full((4,), float(step))})
    outcomes = set()
    for number, random in enumerate(cases("checkpoints", 100)):
        folder = shutil.copytree(sound, tmp_path / str(number))
        files = sorted(path for path in folder.iterdir() if random.random() < 0.4)
        said = [damage(path, random) for path in files]
        try:
            loaded = load_checkpoint(folder, "cpu")
        except ValueError:
            outcomes.add("error")
            assert len({path.name.split(".")[0] for path in files}) == 2, f"one is sound: {said}"
        else:
            outcomes.add(loaded["global_step"])
            assert loaded["weights"].tolist() == [loaded["global_step"]] * 4, said
        shutil.rmtree(folder)
    assert outcomes == {"error", 1, 2}


@pytest.mark.train
def test_run_with_random_damage_resumes_or_says_why_not(tmp_path: Path) -> None:
    config = small_config("ppo", "blackjack", tmp_path / "whole")
    train(config)
    outcomes = []
    for number, random in enumerate(cases("runs", 12)):
        run_dir = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        files = sorted(path for path in run_dir.rglob("*") if path.is_file())
        said = damage(random.choice(files), random)
        try:
            summary = resume(small_config("ppo", "blackjack", run_dir), total_steps=2560, force=True)
        except ValueError as error:
            outcomes.append(str(error))
        else:
            assert summary["global_step"] >= 2560, said
            outcomes.append("resumed")
        shutil.rmtree(run_dir)
    assert "resumed" in outcomes
    assert all(outcomes)
