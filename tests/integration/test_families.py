"""Every family of language models, at toy size, asked through real vLLM: letters, words, two servers, one that changes.

What the served tokenizer makes of our prompts is compared with what it makes of the same message by the family's own
chat template.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import envs
from envs.base import State, select_rows
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import serving
from tests.helpers.toys import FAMILIES, LETTERS, make_toy
from tests.tutors.llm.test_tutor import positions, silences
from tutors.episode_analyst import VllmAnalyst, schema_of
from tutors.episodes import Episode, as_told
from tutors.llm.api import Completions
from tutors.llm.client import Client
from tutors.llm.label_logprobs import LabelWay
from tutors.llm.models import Model, fill
from tutors.llm.server import listed, serve_command, stop, surroundings
from tutors.llm.text_generation import TextWay
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view

pytestmark = pytest.mark.serve
VIEW = make_view(envs.make_game("connect4"))


class Served:
    """A model and its server."""

    def __init__(self, model: Model, folder: Path, beside: Client | None = None) -> None:
        with serving() as free:
            self.url = free.url
        self.model, self.folder = model, folder
        self.client = Client(self.url, beside=beside)
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = serve_command(self.model, self.url)
        assert command is not None
        with (self.folder / f"{self.model.name}{self.url[-4:]}.log").open("w") as log:
            self.child = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | surroundings(), start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        until = time.monotonic() + 280
        while listed(self.client) is None:
            assert self.child is not None
            assert self.child.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.5)

    def end(self) -> None:
        if self.child is not None:
            stop(self.child)
            self.child = None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """A toy of each family, and Llama's a second time. DeepSeek's calls itself by Llama's name, too."""
    if not (ROOT / ".venv-vllm" / "bin" / "python").exists():
        pytest.skip("there is no .venv-vllm: make setup")
    folder = tmp_path_factory.mktemp("toys")
    models = {name: make_toy(name, folder / name) for name in FAMILIES}
    names = ("--served-model-name", "deepseek", "llama")
    models["deepseek"] = replace(models["deepseek"], serve=(*models["deepseek"].serve, *names))
    servers = {name: Served(model, folder) for name, model in models.items()}
    servers["llama again"] = Served(models["llama"], folder, servers["llama"].client)
    with ExitStack() as stack:
        for one in servers.values():  # the last one goes first: it lives on another's event loop
            stack.callback(one.client.close)
            stack.callback(one.end)
            one.start()
        for one in servers.values():
            one.wait()
        yield servers


def tokens_of(one: Served, **what: object) -> list[int]:
    """How a server reads a prompt, or messages by its chat template."""
    question = {"model": one.model.name, **what}
    return one.client.run(one.client.post("/tokenize", question))["tokens"]


@pytest.mark.parametrize("name", ["llama", "deepseek"])
def test_our_prompt_is_token_by_token_that_of_the_chat_template(served: dict[str, Served], name: str) -> None:
    one, words = served[name], VIEW.render(positions(1))[0]
    ours = tokens_of(one, prompt=fill(one.model.template, words))
    theirs = tokens_of(one, messages=[{"role": "user", "content": words}], add_generation_prompt=True)
    assert ours == theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_in_letters(served: dict[str, Served], name: str) -> None:
    one, state = served[name], positions(20)
    tutor = VllmTutor(VIEW, one.model, [one.client], LabelWay(VIEW, min_mass=0.0))
    advice = tutor.advise(state)
    assert advice.valid.all()
    torch.testing.assert_close(advice.probs.sum(1), torch.ones(20))
    assert not advice.probs[~VIEW.action_mask(state)].any()
    dialect = tutor.lines[0].dialect
    assert isinstance(dialect, Completions)
    before = fill(one.model.brief, "Which?")
    for letter in LETTERS:  # the token that a model would really write there
        spaced = before + (" " if name == "vicuna" else "") + letter
        assert tokens_of(one, prompt=spaced)[-1] == dialect.ids[letter]


def test_a_model_of_random_weights_is_kept_to_a_schema(
    served: dict[str, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say nothing that can be read. Here it must name a step, whose reason is noise and whose letter fits."""

    def demanding(labels: Any, steps: int) -> dict[str, Any]:
        schema = schema_of(labels, steps)
        schema["properties"]["critical"] |= {"minItems": 1, "maxItems": 1}
        return schema

    monkeypatch.setattr("tutors.episode_analyst.schema_of", demanding)
    one, game = served["llama"], envs.make_game("blackjack")
    view = make_view(game)
    state = game.reset(torch.rand(12, game.spec.num_reset_uniforms, generator=torch.Generator().manual_seed(1)))
    told, actions = as_told(view, state, torch.ones(12, dtype=torch.int64))
    games = []
    for rows in torch.arange(12).split(3):
        rewards, seen = torch.tensor([0.0, 0.0, -1.0]), torch.zeros(3, 2)
        games.append(Episode(select_rows(told, rows), actions[rows], rewards, seen, -1.0, 0))
    analyst = VllmAnalyst(view, one.model, [one.client], 800, 3)
    found = analyst.critical(games)
    assert any(found)
    assert all(0 <= one.step < 3 and one.action in (0, 1) for named in found for one in named)
    said = analyst.prefers([(games[0], games[1]), (games[1], games[0])])
    assert all(one is not None and 0 <= one <= 1 for one in said)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_in_words(served: dict[str, Served], name: str) -> None:
    one = served[name]
    tutor = VllmTutor(
        VIEW, one.model, [one.client], TextWay(VIEW, bool(one.model.closing), tokens=8, samples=2, tries=2)
    )
    assert not tutor.advise(positions(5)).valid.any(), "random weights do not find the tags"
    assert silences(tutor) == {"unfinished" if name == "deepseek" else "no_action": 5}
    assert tutor.stats["asked"] == 10
    assert 10 < tutor.stats["answer_tokens"] <= 2 * 5 * 2 * 8


def test_two_servers_share_the_questions_and_answer_alike(served: dict[str, Served]) -> None:
    first, second = served["llama"], served["llama again"]
    state = positions(64)
    both = VllmTutor(VIEW, first.model, [first.client, second.client], LabelWay(VIEW, min_mass=0.0))
    before = [tokens_used(one) for one in (first, second)]
    advice = both.advise(state)
    used = [tokens_used(one) - count for one, count in zip((first, second), before, strict=True)]
    assert min(used) > 0.2 * sum(used)
    assert advice.valid.all()
    assert both.report()["vllm/prompt_tokens"] == pytest.approx(sum(used))
    alone = VllmTutor(VIEW, first.model, [first.client], LabelWay(VIEW, min_mass=0.0))
    assert (advice.probs - alone.advise(state).probs).abs().max() < 0.02


def tokens_used(one: Served) -> float:
    """Prompt tokens by the server's own count."""
    text = one.client.run(one.client.text("/metrics"))
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:prompt_tokens_total"))


def test_a_server_that_is_killed_and_comes_back_is_asked_again_but_another_model_in_its_place_is_not(
    served: dict[str, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is taken by servers that run already, to which the client is led: vLLM starts in a minute."""
    one = served["llama again"]
    tutor = VllmTutor(VIEW, one.model, [one.client], LabelWay(VIEW, min_mass=0.0))
    state = positions(8)
    first = tutor.advise(state)

    def ask() -> State:
        tutor.lines[0].breaker.look_at = 0.0  # it is time for a look
        return tutor.advise(state)

    one.end()
    for _ in range(6):
        assert not tutor.advise(state).valid.any()
    assert tutor.lines[0].breaker.is_open
    monkeypatch.setattr(one.client, "url", served["deepseek"].url)
    for _ in range(3):
        assert not ask().valid.any()
    assert silences(tutor)["other_model"] == 24
    monkeypatch.setattr(one.client, "url", served["llama"].url)
    again = ask()
    assert again.valid.all()
    assert (again.probs - first.probs).abs().max() < 0.02
