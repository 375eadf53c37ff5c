"""What a person sees on TensorBoard: its pages in a browser against the runs that they show."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.small_runs import small_config
from train import train
from training.logger import FINAL_RETURN, HPARAM_COLUMNS, LAYOUT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browsing = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.process,
    pytest.mark.train,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]
PATIENCE = 60_000  # milliseconds that a page may take
expect = browsing.expect
expect.set_options(timeout=PATIENCE)
RUNS = ("blackjack", "connect4", "snake")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three small runs: two students, one of them with and without a tutor."""
    folder = tmp_path_factory.mktemp("runs")
    for game, algo, tutor in zip(RUNS, ("dqn", "ppo", "dqn"), ("scripted", "scripted", "none"), strict=True):
        config = replace(small_config(algo, game, folder / game, tutor=tutor), eval_every=1024)
        if game == "snake":
            config = replace(config, env_kwargs=("size=5", "time_limit=20"))
        train(config)
    return folder


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as board:
        assert board.stderr is not None
        found = (re.search(r"TensorBoard .* at (http://\S+)", line) for line in board.stderr)
        yield next(match[1] for match in found if match)
        board.terminate()


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Any]:
    """A browser's window, in which nothing goes wrong."""
    errors: list[str] = []
    with browsing.sync_playwright() as machine:
        browser = machine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": 1600, "height": 2200})
        window.set_default_timeout(PATIENCE)
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        window.on("response", lambda one: errors.append(f"{one.status} {one.url}") if one.status >= 400 else None)
        yield window
        browser.close()
    assert not errors


def opened(page: Any, url: str, name: str) -> Any:
    page.goto(f"{url}#{name}")
    page.reload()
    return page


def test_custom_scalars_are_our_charts_with_every_run_in_them(page: Any, url: str) -> None:
    cards = opened(page, url, "custom_scalars").locator("tf-custom-scalar-multi-line-chart-card")
    titles = [title for charts in LAYOUT.values() for title in charts]
    expect(cards).to_have_count(len(titles))
    assert cards.evaluate_all("cards => cards.map(card => card.title)") == titles
    numbers = {title: (2 if charts is LAYOUT["Tutor"] else 3) for charts in LAYOUT.values() for title in charts}
    lines = numbers | {"Time for the tutor: share": 2}  # two runs have a tutor
    lines["Trust in the tutor: 0 to 1"] = 0  # guidance that overrides is not trusted
    for title, number in lines.items():
        expect(cards.nth(titles.index(title)).locator(".matches-text")).to_have_text(f"Matches ({number})")


def test_every_chart_is_of_a_metric_that_the_reference_lists() -> None:
    tags = re.findall(r"`(\w+/[\w/]+)`", (ROOT / "docs" / "reference" / "metrics.md").read_text())
    for charts in LAYOUT.values():
        for _, patterns in charts.values():
            for pattern in patterns:
                assert any(re.match(pattern, tag) for tag in tags), f"TensorBoard finds nothing for {pattern}"


def test_every_chart_is_one_quantity_with_its_subject_and_unit() -> None:
    for charts in LAYOUT.values():
        for title, (kind, tags) in charts.items():
            assert (kind, len(tags)) == ("Multiline", 1), title
            assert not re.search(r"[*|]", tags[0])
            subject, unit = title.split(": ")
            assert subject
            assert unit
            assert len(title) <= 40, "TensorBoard cuts longer ones"


def test_hparams_sorts_runs_by_how_they_ended(page: Any, url: str, runs: Path) -> None:
    opened(page, url, "hparams").get_by_text("Trial ID").wait_for()
    cells = page.locator("vaadin-grid-cell-content")
    cells.get_by_text("snake", exact=True).first.wait_for()
    shown = [text for cell in cells.all() if (text := cell.inner_text().strip())]
    assert shown[2:8] == [FINAL_RETURN, *sorted(HPARAM_COLUMNS), "eval/mean_return"], "what a run came to stands first"
    for name in ("agent.buffer_size", "agent.clip_coef"):  # settings of a DQN and of a PPO
        expect(page.get_by_role("checkbox", name=name)).to_be_visible()
    ends = {name: json.loads((runs / name / "summary.json").read_text())["eval"]["mean_return"] for name in RUNS}
    for label, item in (("Sort by", "eval/mean_return"), ("Direction", "Descending")):
        menu = page.locator(f"tf-hparams-query-pane paper-dropdown-menu[label='{label}']")
        menu.click()
        menu.locator("paper-item", has_text=item).click()
    expected = sorted(RUNS, key=ends.__getitem__, reverse=True)
    rows = cells.filter(has_text=re.compile(rf"^\s*({'|'.join(RUNS)})\s*$"))  # the run and its game are called the same
    expect(rows).to_have_text([run for run in expected for _ in range(2)])


def test_images_are_games(page: Any, url: str) -> None:
    opened(page, url, "images").locator("tf-image-loader img").nth(2).wait_for()
    assert page.locator("tf-image-loader").evaluate_all("cards => cards.map(card => card.tag)") == ["game"] * 3
    widths = page.locator("tf-image-loader img").evaluate_all(
        "all => Promise.all(all.map(one => one.decode().then(() => one.naturalWidth)))"
    )
    assert min(widths) >= 100


def test_histograms_are_who_takes_which_action(page: Any, url: str) -> None:
    opened(page, url, "histograms").locator("vz-histogram-timeseries svg .histogram").nth(30).wait_for()
    cards = page.locator("tf-histogram-loader").evaluate_all("cards => cards.map(card => [card.tag, card.run])")
    student, tutor = (f"policy/actions_{who}" for who in ("student", "tutor"))
    assert cards == [*([student, run] for run in RUNS), *([tutor, run] for run in RUNS[:2])]
