"""The programs as a user meets them: what they print, write and refuse. Small runs, in processes of their own."""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from agents import AGENTS
from agents.dqn import DQN
from agents.policy import Decision
from tests.helpers.paths import ROOT
from tests.helpers.programs import SMALL, program
from tests.helpers.scripted_server import serving
from tests.helpers.small_runs import small_config
from train import Trainer, train
from training.checkpoint import load_checkpoint
from training.cli import exit_codes, parse
from training.config import Config, config_from_json, defaults_from_flags, make_agent, make_env
from training.frames import BAR
from training.resume import new_run_dir
from training.video import GAP
from tutors import TutorConfig
from tutors.base import Advice, TutorError

pytestmark = pytest.mark.process

TAGS = {
    "charts/episodic_return", "charts/episodic_length", "charts/SPS", "charts/learning_rate",
    "losses/td_loss", "losses/q_values", "losses/grad_norm",
    "eval/mean_return", "eval/stderr", "eval/episodes", "eval_interval/low", "eval_interval/high",
    "tutor/consult_probability", "tutor/consulted", "tutor/wanted", "tutor/asked", "tutor/hit_rate", "tutor/latency_ms",
    "tutor/label_mass", "tutor/agreement", "tutor/table_load", "tutor/store_failures",
    "time/env", "time/act", "time/tutor", "time/store", "time/learn", "time/eval", "time/draw",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a scripted tutor."""
    folder = tmp_path_factory.mktemp("runs") / "scripted"
    flags = ("--tutor", "scripted", "--tutor-depth", "2", "--guidance", "override")
    done = program("train.py", *SMALL, *flags, "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_run_writes_summary_config_and_store(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["global_step"] == 4032
    assert summary["sps"] == pytest.approx(4032 / summary["wall_seconds"], rel=0.01)
    assert summary["eval"]["episodes"] == 64
    assert -1 <= summary["eval"]["mean_return"] <= 1
    tutor = summary["tutor"]
    assert tutor["name"] == "scripted"
    assert 0 < tutor["asked"] < tutor["consulted"]
    assert tutor["hit_rate"] == pytest.approx(tutor["hits"] / tutor["consulted"], abs=1e-4)
    assert tutor["no_advice"] == {}
    assert (tutor["filled"], tutor["stored"], tutor["store_failures"]) == (0, 0, 0)
    config = config_from_json((run / "config.json").read_text())
    assert config.tutoring.tutor == "scripted"
    assert config.agent.hidden == (32,)
    assert json.loads((run / "config.json").read_text())["versions"]["torch"] == torch.__version__
    assert (run / "advice.sqlite").is_file()


def test_tensorboard_and_csv_have_the_same_tags(run: Path) -> None:
    events = EventAccumulator(str(run)).Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["tag"] for row in rows} == set(events.Tags()["scalars"])
    written = [float(row["value"]) for row in rows if row["tag"] == "tutor/consult_probability"]
    assert [event.value for event in events.Scalars("tutor/consult_probability")] == pytest.approx(written)
    assert written[0] == pytest.approx(1 - 0.9 * 640 / 2016, abs=0.01)
    assert written[-1] == pytest.approx(0.1)


def test_tensorboard_has_hyperparameters_and_a_layout(run: Path) -> None:
    events = EventAccumulator(str(run)).Reload()
    content = events.PluginTagToContent("hparams")
    began = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert began["algo"].string_value == "dqn"
    assert began["agent.learning_rate"].number_value == pytest.approx(7e-4)
    assert began["tutoring.tutor"].string_value == "scripted"
    assert "device" not in began, "what changes nothing of what is learned does not sort"
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/mean_return"]
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    patterns = [tag for part in layout.category for chart in part.chart for tag in chart.multiline.tag]
    scalars = events.Tags()["scalars"]
    assert "eval/mean_return" in patterns
    for pattern in patterns:
        assert pattern == "tutor/trust" or any(re.match(pattern, tag) for tag in scalars), f"nothing is {pattern}"


def test_action_histograms_count_the_actions_between_two_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histograms against the actions that the student itself proposed, and the best ones of the advice that it got."""
    config = small_config("dqn", "connect4", tmp_path / "run")
    act, follow = DQN.act, Trainer.followed_advice
    seen: dict[str, list[int]] = {"student": [], "tutor": []}

    def acted(self: DQN, obs: torch.Tensor, action_mask: torch.Tensor) -> Decision:
        decision = act(self, obs, action_mask)
        seen["student"] += decision.action.tolist()
        return decision

    def followed(self: Trainer, decision: Decision, advice: Advice) -> torch.Tensor:
        seen["tutor"] += [probs.index(max(probs)) for probs in advice.probs[advice.valid].tolist()]
        return follow(self, decision, advice)

    monkeypatch.setattr(DQN, "act", acted)
    monkeypatch.setattr(Trainer, "followed_advice", followed)
    train(config)
    events = EventAccumulator(str(tmp_path / "run"), {"histograms": 0}).Reload()  # 0: all of them
    for who, actions in seen.items():
        found = [event.histogram_value for event in events.Histograms(f"policy/actions_{who}")]
        assert len(found) == 8
        begun = 0
        for one in found:
            part = actions[begun : begun + int(sum(one.bucket))]
            begun += len(part)
            assert one.bucket == [part.count(action) for action in range(7)]
            assert one.bucket_limit == [action + 0.5 for action in range(7)]
            assert (one.num, one.sum, one.min, one.max) == (len(part), sum(part), -0.5, 6.5)
            assert one.sum_squares == sum(action**2 for action in part)
        assert begun == len(actions) > 0
    assert len(seen["student"]) == 2048


def test_first_evaluation_logs_an_image(run: Path) -> None:
    (image, *_) = EventAccumulator(str(run)).Reload().Images("game")
    assert image.step == 2048
    with Image.open(io.BytesIO(image.encoded_image_string)) as sheet:
        assert sheet.width % (7 * 16 + GAP) == 0


def test_time_shares_sum_to_1(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["tag"].startswith("time/")]
    steps = {row["global_step"] for row in rows}
    for step in steps:
        assert sum(float(row["value"]) for row in rows if row["global_step"] == step) == pytest.approx(1)


@pytest.mark.parametrize("who", ["student", "tutor", "random"])
def test_evaluate_measures_each_policy(run: Path, who: str) -> None:
    done = program("evaluate.py", str(run), "--policy", who, "--episodes", "200", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["policy"] == who
    assert result["episodes"] == 200
    expected = {"student": (-1, 0), "tutor": (0.6, 1), "random": (-1, -0.8)}[who]
    assert expected[0] <= result["mean_return"] <= expected[1]


def test_evaluate_with_another_opponent_prints_an_interval(run: Path) -> None:
    done = program(
        "evaluate.py", str(run), "--policy", "random", "--env-kwargs", "opponent=random", "--episodes", "400"
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Connect Four against random; return: +1 win, 0 draw, −1 loss\n")
    assert "95 % interval" in done.stdout
    mean = float(done.stdout.split("mean return ")[1].split(",")[0])
    assert -0.2 < mean < 0.2


def test_evaluate_records_an_episode_with_advice(run: Path, tmp_path: Path) -> None:
    """Bars below every position but the last."""
    for name in ("episode.gif", "episode.png"):
        done = program("evaluate.py", str(run), "--record", str(tmp_path / name))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(str(tmp_path / name))
    with Image.open(tmp_path / "episode.gif") as film:
        images = [np.asarray(one.convert("RGB")).astype(np.int64) for one in ImageSequence.Iterator(film)]
    assert f"{len(images)} positions" in done.stdout
    bars = [int((np.abs(image - np.array(BAR)) < 8).all(2).sum()) for image in images]
    assert min(bars[:-1]) > 0
    assert bars[-1] == 0


def test_evaluate_matches_students_and_lets_a_person_play(run: Path) -> None:
    done = program("evaluate.py", str(run), "--against", str(run), "--episodes", "100", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["episodes"] == 200
    assert abs(result["mean_return"]) < 4 * result["stderr"], "a match with itself is even"
    done = subprocess.run(
        [sys.executable, "evaluate.py", str(run), "--play", "--hint"],
        cwd=ROOT, input="4\nq\n", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("you are x") == done.stdout.count("tutor: ") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--record", "episode.avi"), "no .gif, .mp4 or .png file"),
        (("--record", "nowhere/episode.gif"), "no folder nowhere"),
        (("--against", "/nowhere"), "/nowhere is no run directory"),
        (("--play", "--record", "episode.gif"), "--record"),
    ],
)
def test_evaluate_refuses_impossible_flags(flags: tuple[str, ...], message: str, run: Path) -> None:
    done = program("evaluate.py", str(run), *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_equals_the_last_evaluation_of_training(run: Path) -> None:
    done = program("evaluate.py", str(run), "--episodes", "64", "--json")
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads(done.stdout)["mean_return"] == summary["eval"]["mean_return"]


def test_run_is_determined_by_its_seed(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        small = config_from_json(Config(run_dir=tmp_path).to_json())
        config = Config(
            total_steps=2000, num_envs=50, seed=seed, device="cpu", eval_every=10_000, eval_episodes=10,
            run_dir=tmp_path / name, agent=small.agent, tutoring=TutorConfig(tutor="scripted", tutor_depth=1),
        )  # fmt: skip
        train(config)
        return load_checkpoint(tmp_path / name / "checkpoints", "cpu")["agent"]["network"]

    first, again, other = weights("a", 3), weights("b", 3), weights("c", 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_run_without_tutor_has_no_tutor_summary(tmp_path: Path) -> None:
    done = program("train.py", *SMALL, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tutor"] is None
    refused = program("evaluate.py", str(tmp_path / "run"), "--policy", "tutor")
    assert refused.returncode == 2
    assert "had no tutor" in refused.stderr


def test_language_model_is_asked_once_per_position(tmp_path: Path) -> None:
    with serving() as server:
        flags = (*SMALL, "--tutor", "tiny", "--tutor-url", server.url, "--run-dir", str(tmp_path / "run"))
        done = program("train.py", *flags)
    assert done.returncode == 0, done.stderr
    tutor = json.loads((tmp_path / "run" / "summary.json").read_text())["tutor"]
    prompts = [prompt for body in server.asked[1:] for prompt in body["prompt"]]  # the first is the probe
    assert tutor["asked"] == len(prompts) == len(set(prompts))
    assert tutor["hits"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--env", "conect4"), "did you mean 'connect4'"),
        (("--algo", "dqm"), "did you mean 'dqn'"),
        (("--tutor", "deepseak"), "did you mean 'deepseek'"),
        (("--env-kwargs", "opponent=tacticle"), "did you mean 'tactical'"),
        (("--env", "chess"), "there are blackjack, connect4"),
        (("--env-kwargs", "size=8"), "no option of connect4 is called 'size'"),
        (("--env-kwargs", "size"), "NAME=VALUE"),
        (("--env", "snake", "--env-kwargs", "size=one"), "size must be of type int"),
        (("--env", "snake", "--view", "ful", "--tutor", "scripted"), "did you mean 'full'"),
        (("--env", "nowhere:Game"), "No module named 'nowhere'"),
        (("--env", "gym:CartPole-v9"), "gym:CartPole-v9 cannot be made"),
        (("--env", "gym:Pendulum-v1"), "a student requires a Discrete one"),
        (("--num-envs", "0"), "at least 1"),
        (("--total-steps", "-5"), "at least 1"),
        (("--seed", "-1"), "between 0 and"),
        (("--reuse", "-1", "--tutor", "scripted"), "--reuse is -1.0; it must be at least 0"),
        (("--reuse", "1.5", "--tutor", "scripted"), "reuse budget"),
        (("--tutor", "scripted", "--tutor-accuracy", "2"), "between 0 and 1"),
        (("--tutor", "scripted", "--tutor-depth", "0"), "at least 1"),
        (("--tutor", "scripted", "--query-strategy", "importence"), "did you mean 'importance'"),
        (("--query-strategy", "budget"), "there are chance, early, importance, mistake, uncertainty, visited"),
        (("--query-strategy", "early", "--query-threshold", "0.5"), "leave out --query-threshold"),
        (("--query-budget", "-1"), "between 0 and"),
        (("--query-budget-per-step", "0"), "at least 1"),
        (("--query-strategy", "mistake", "--async-tutor"), "leave out --async-tutor"),
        (("--tutor", "scripted", "--async-tutor", "--reuse", "0"), "requires a --reuse above 0"),
        (("--device", "cpu", "--compile-mode", "graph"), "--compile-mode graph requires a CUDA device"),
        (("--tutor", "tiny", "--tutor-url", "ftp://localhost"), "looks like"),
        (("--run-dir", "/proc/run"), "cannot be written"),
        (("--buffer-size", "10"), "does not hold the 1 time steps of 64 env copies"),
        (("--network", "conv", "--env", "blackjack"), "requires observations of"),
        (("--hidden", "0"), "each of at least 1 unit"),
        pytest.param(
            ("--device", "cuda"), "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_impossible_option_is_refused(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """In this process; `run_program` makes the same of every such error, see the next test."""
    run_dir = () if "--run-dir" in flags else ("--run-dir", str(tmp_path / "run"))
    with pytest.raises((ValueError, TutorError)) as error:
        train(parse([*SMALL, *run_dir, *flags], Config, defaults=defaults_from_flags))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) <= 12
    assert "did you mean" not in said or not (tmp_path / "run").exists(), "a typing mistake leaves no run_dir"


def test_user_error_exits_with_code_2_and_one_line(tmp_path: Path) -> None:
    for flags, said in ((("--env", "conect4"), "did you mean 'connect4'"), (("--folder", "x"), "use --run-dir")):
        done = program("train.py", *SMALL, "--run-dir", str(tmp_path / "run"), *flags)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert said in line


def test_missing_server_is_reported_in_few_lines(tmp_path: Path) -> None:
    with serving() as gone:
        url = gone.url
    flags = (
        "--tutor",
        "deepseek",
        "--tutor-url",
        url,
        "--tutor-wait",
        "1",
        "--run-dir",
        str(tmp_path / "run"),
    )
    done = program("train.py", "--algo", "dqn", "--env", "connect4", *flags)
    assert done.returncode == 2
    assert url in done.stderr
    assert "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B --served-model-name deepseek" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 12


def test_evaluate_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    done = program("evaluate.py", str(tmp_path))
    assert done.returncode == 2
    assert "is no run directory" in done.stderr


def test_store_that_is_no_database_is_refused_and_unchanged(tmp_path: Path) -> None:
    precious = tmp_path / "precious.sqlite"
    precious.write_text("my diary" * 1000)
    flags = ("--tutor", "scripted", "--advice-store", str(precious), "--run-dir", str(tmp_path / "run"))
    done = program("train.py", *SMALL, *flags)
    assert done.returncode == 2
    assert "cannot be used" in done.stderr
    assert precious.read_text() == "my diary" * 1000


def test_second_run_on_a_store_asks_nothing(tmp_path: Path) -> None:
    flags = ("--tutor", "scripted", "--guidance", "override", "--env", "blackjack")
    flags += ("--advice-store", str(tmp_path / "a"))
    cold = trained(tmp_path / "cold", *flags)["tutor"]
    warm = trained(tmp_path / "warm", *flags)["tutor"]
    assert cold["asked"] == warm["filled"] > 200
    assert cold["filled"] == warm["asked"] == warm["stored"] == 0
    assert warm["hit_rate"] == 1


def test_terminated_run_has_stored_every_answer(tmp_path: Path) -> None:
    flags = "--env connect4 --tutor scripted --tutor-depth 1 --total-steps 100000000 --num-envs 64 --log-every 640"
    command = [sys.executable, "train.py", *flags.split(), "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        over = time.monotonic() + 60
        log = tmp_path / "run" / "metrics.csv"
        while not log.exists() or "SPS" not in log.read_text():
            assert time.monotonic() < over
            time.sleep(0.2)
        time.sleep(1)
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 143
    with (tmp_path / "run" / "metrics.csv").open() as file:
        asked = sum(float(row["value"]) for row in csv.DictReader(file) if row["tag"] == "tutor/asked")
    connection = sqlite3.connect(tmp_path / "run" / "advice.sqlite")
    (kept,) = connection.execute("select count(*) from answers").fetchone()
    connection.close()
    assert kept >= asked > 0, "the table forgets nothing so soon: each position was asked about once"


def test_passwords_are_not_in_the_config_or_the_run_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database, served = "postgresql+psycopg://me:canary@here/advice", "http://me:canary@here/v1"
    for url, tutoring in (
        (database, TutorConfig(advice_store=database)),
        (database, TutorConfig(tutor=f"recorded:{database}")),
        (served, TutorConfig(tutor_url=("http://other", served))),
    ):
        config = Config(run_dir=tmp_path, tutoring=tutoring)
        text = config.to_json()
        assert "canary" not in text
        assert url.replace("canary", "***") in text
        assert config_from_json(text).tutoring.reuse == math.inf
        assert "canary" not in str(new_run_dir(config))
    assert new_run_dir(config).parent == Path("runs")


def test_demo_compares_four_players() -> None:
    done = program("experiments", "demo", "--tutor", "scripted", "--total-steps", "3000", "--episodes", "50")
    assert done.returncode == 0, done.stderr
    for who in ("tutored student, alone", "untutored student", "tutor alone (scripted)", "random play"):
        assert who in done.stdout
    assert "-m tensorboard.main --logdir" in done.stdout
    for line in done.stdout.splitlines():
        if ": dqn on connect4" in line:
            shutil.rmtree(ROOT / line.split(":")[0])


def test_second_run_in_a_directory_is_refused(run: Path) -> None:
    done = program("train.py", *SMALL, "--run-dir", str(run))
    assert done.returncode == 2
    assert "holds a run already" in done.stderr


def test_terminated_run_saves_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--total-steps", "100000000", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        over = time.monotonic() + 60
        log = tmp_path / "run" / "metrics.csv"
        while not log.exists() or "SPS" not in log.read_text():
            assert time.monotonic() < over
            time.sleep(0.2)
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 143
    assert load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["global_step"] > 0


def test_evaluate_without_the_optional_tutor_of_a_run(tmp_path: Path) -> None:
    with serving() as gone:
        flags = ("--tutor", "tiny", "--tutor-url", gone.url, "--tutor-optional", "--tutor-wait", "0.1")
    done = program("train.py", *SMALL, *flags, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    tutor = json.loads((tmp_path / "run" / "summary.json").read_text())["tutor"]
    assert tutor["asked"] == tutor["hits"] == 0
    assert tutor["no_advice"]["breaker"] > 0
    refused = program("evaluate.py", str(tmp_path / "run"), "--policy", "tutor", "--episodes", "10")
    assert refused.returncode == 2
    assert "no server answers" in refused.stderr


def trained(folder: Path, *flags: str, cwd: Path | None = None) -> dict:
    """The summary of a small run that ended well; with `cwd`, of a new interpreter there."""
    if cwd is None:
        done = program("train.py", *SMALL, *flags, "--run-dir", str(folder))
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "summary.json").read_text())
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SMALL, *flags, "--run-dir", str(folder)],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    "flags",
    [
        "--env blackjack --env-kwargs sab=false natural=true --tutor scripted",
        pytest.param("--env blackjack --compile-mode compile", marks=pytest.mark.compile),
        "--env snake --env-kwargs size=6 time_limit=50 --tutor scripted",
        "--env snake --env-kwargs size=6 time_limit=50 --view full --tutor scripted --tutor-accuracy 0.8",
        "--env snake --env-kwargs size=6 time_limit=50 --tutor scripted "
        "--no-symmetry --query-strategy visited --query-budget 90",
        "--env connect4 --env-kwargs opponent=negamax:1",
        "--env connect4 --env-kwargs opponent=self refresh=10",
        "--env gym:CartPole-v1",
        "--env gym:Blackjack-v1 --env-kwargs sab=false natural=true",
    ],
)
def test_env_can_be_trained_in_and_evaluated(flags: str, tmp_path: Path) -> None:
    summary = trained(tmp_path / "run", *flags.split())
    assert 4000 <= summary["global_step"] <= 4096  # probes included
    assert summary["eval"]["episodes"] == (0 if "--env blackjack" in flags else 64)  # its value is worked out
    if "scripted" in flags:
        assert 0 < summary["tutor"]["asked"] < summary["tutor"]["consulted"]
    done = program("evaluate.py", str(tmp_path / "run"), "--episodes", "64", "--json")
    assert json.loads(done.stdout)["mean_return"] == summary["eval"]["mean_return"]


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize("flags", ["--env connect4 --tutor scripted", "--env snake --env-kwargs size=6 time_limit=9"])
def test_student_can_be_trained_tutored_and_evaluated(algo: str, flags: str, tmp_path: Path) -> None:
    small = ["--num-envs", "64", "--total-steps", "4096", "--hidden", "32", "--num-steps", "8", "--eval-episodes", "64"]
    folder = ("--run-dir", str(tmp_path / "run"))
    done = program("train.py", "--algo", algo, *small, "--log-every", "1024", *flags.split(), *folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 4096 <= summary["global_step"] < 4096 + 512  # probes included
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["tag"] == "charts/learning_rate"]
    rates = [float(row["value"]) for row in rows]
    full = config_from_json((tmp_path / "run" / "config.json").read_text()).agent.learning_rate
    assert rates == pytest.approx([full * left for left in (0.875, 0.625, 0.375, 0.125)])
    done = program("evaluate.py", str(tmp_path / "run"), "--episodes", "64", "--json")
    assert json.loads(done.stdout)["mean_return"] == summary["eval"]["mean_return"]


def test_blackjack_hands_are_each_asked_about_at_most_once(tmp_path: Path) -> None:
    """There are 280 hands: with endless reuse no more can ever be asked about."""
    flags = ("--env", "blackjack", "--tutor", "scripted", "--guidance", "override", "--consult-to", "1")
    assert 200 < trained(tmp_path / "run", *flags)["tutor"]["asked"] <= 280


def test_tutored_gymnasium_env_requires_a_view(tmp_path: Path) -> None:
    done = program(
        "train.py", *SMALL, "--env", "gym:CartPole-v1", "--tutor", "scripted", "--run-dir", str(tmp_path / "r")
    )
    assert done.returncode == 2
    assert "gym:CartPole-v1 has no prompt view" in done.stderr
    assert "--view module:Class" in done.stderr


@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("num_envs", [1, 3, 7])
def test_run_with_any_number_of_env_copies_takes_all_its_steps(num_envs: int, algo: str, tmp_path: Path) -> None:
    config = small_config(algo, "connect4", tmp_path / "run")
    config = replace(config, num_envs=num_envs, total_steps=200, eval_episodes=3)
    summary = train(config)
    per_update = num_envs * make_agent(config, make_env(config, "cpu")).steps_per_update
    assert summary["global_step"] == math.ceil(200 / per_update) * per_update
    assert summary["eval"]["episodes"] >= 3
    assert summary["tutor"]["consulted"] > 0


@pytest.mark.parametrize("place", ["/proc/run", "file", "file/run"])  # root may write everywhere but in /proc
def test_fault_41_a_folder_that_cannot_be_written_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=f"the run's folder {tmp_path / place} cannot be written: "):
        train(small_config("ppo", "blackjack", tmp_path / place))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_fault_42_without_cuda_its_device_is_refused_and_auto_says_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = small_config("ppo", "blackjack", tmp_path / "run", tutor="none")
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match="--device cuda: PyTorch finds no CUDA device; use --device cpu or auto"):
            train(replace(config, device=device))
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit, match="2"), exit_codes():
        train(replace(config, device="cuda"))
    train(replace(config, device="auto"))
    assert "tutor none, cpu, 1 thread" in capsys.readouterr().out


def test_fault_43_out_of_memory_error_names_flags(tmp_path: Path) -> None:
    done = program("train.py", "--buffer-size", str(10**13), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert all(knob in done.stderr for knob in ("--num-envs", "--buffer-size", "--hidden"))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["key", "url"])
def test_fault_44_api_key_is_written_nowhere(place: str, tmp_path: Path) -> None:
    """In what is printed, logged, configured, stored and saved, whether the server takes it or refuses it."""
    key = "canary-0123456789"
    basic = b64encode(f"me:{key}".encode()).decode()
    for refused in (False, True):
        folder = tmp_path / str(refused)
        with serving() as server:
            if refused:
                server.misbehave = lambda handler, body: handler.reply(401, {"error": f"{key} {basic}"}) is None
            url = server.url if place == "key" else server.url.replace("//", f"//me:{key}@")
            flags = ("--tutor", "tiny", "--tutor-url", url, "--run-dir", str(folder))
            done = subprocess.run(
                [sys.executable, "train.py", *SMALL, *flags], cwd=ROOT, capture_output=True, text=True, check=False,
                env=os.environ | ({"TUTOR_API_KEY": key} if place == "key" else {}), timeout=120,
            )  # fmt: skip
            sent = f"Bearer {key}" if place == "key" else f"Basic {basic}"
            assert all(headers["Authorization"] == sent for headers in server.headers_seen), "the server was shown it"
            assert server.headers_seen
        assert done.returncode == (2 if refused else 0), done.stderr
        assert (folder / "checkpoints").exists() != refused
        for secret in (key, sent.split()[1]):
            assert secret not in done.stdout + done.stderr
            assert not [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
