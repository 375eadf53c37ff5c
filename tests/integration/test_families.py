"""Every family of language models, at toy size, asked through real vLLM: letters, words, two servers, one that changes.

What the served tokenizer makes of our prompts is compared with what it makes of the same message by the family's own
chat template.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch

import envs
from envs.base import State, select_rows
from tests.helpers.llm_tutors import failures, positions
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import serving
from tests.helpers.toys import FAMILIES, LETTERS, make_toy
from tests.helpers.vllm_program import is_alive
from tests.helpers.vllm_server import require_vllm
from tutors.episode_analyst import VllmAnalyst, schema_of
from tutors.episodes import Episode, to_canonical
from tutors.llm.api import CompletionsAPI
from tutors.llm.endpoint import EndpointState
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import Model, fill_template, find_model
from tutors.llm.pool import EndpointPool
from tutors.llm.server import START_TIMEOUT_S, child_environment, serve_flags, served_models
from tutors.llm.text_generation import TextGeneration
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view

pytestmark = [pytest.mark.serve, pytest.mark.timeout(1000)]
VIEW = make_view(envs.make_game("connect4"))


class Servers:
    """The program that forks servers, and talks in lines."""

    def __init__(self, python: Path, errors: IO[str]) -> None:
        self.program = subprocess.Popen(
            [python, "-m", "tests.helpers.forked_vllm"], cwd=ROOT, env=os.environ | child_environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip

    def order(self, *what: object) -> str:
        """Give an order, and return the answer."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        print(json.dumps(what), file=self.program.stdin, flush=True)
        return self.program.stdout.readline().rstrip()

    def close(self) -> None:
        """End all servers."""
        self.program.communicate()


class Served:
    """A model and its server."""

    def __init__(self, model: Model, servers: Servers, log: Path) -> None:
        with serving() as free:
            self.url = free.url
        self.model, self.servers, self.log = model, servers, log
        self.pool = EndpointPool([self.url])

    def start(self) -> None:
        self.pid = int(self.servers.order("start", str(self.log), "--model", *serve_flags(self.model, self.url)))

    def wait(self) -> None:
        """Wait until it answers."""
        until = time.monotonic() + START_TIMEOUT_S
        while served_models(self.url) is None:
            assert is_alive(self.pid), self.log.read_text()
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.5)

    def end(self) -> None:
        assert self.servers.order("stop", self.pid) == "gone"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """A toy of each family, and Llama's a second time. DeepSeek's calls itself by Llama's name, too."""
    python = require_vllm()
    folder = tmp_path_factory.mktemp("toys")
    models = {name: make_toy(name, folder / name) for name in FAMILIES}
    names = ("--served-model-name", "deepseek", "llama")
    models["deepseek"] = replace(models["deepseek"], serve=(*models["deepseek"].serve, *names))
    models["llama again"] = models["llama"]
    with ExitStack() as stack:
        servers = Servers(python, stack.enter_context((folder / "log").open("w")))
        stack.callback(servers.close)
        toys = {name: Served(model, servers, folder / f"{name}.log") for name, model in models.items()}
        for one in toys.values():
            stack.callback(one.pool.close)
            one.start()
        for one in toys.values():
            one.wait()
        yield toys


def tokens_of(one: Served, **what: object) -> list[int]:
    """How a server reads a prompt, or messages by its chat template."""
    question = {"model": one.model.name, **what}
    return one.pool.run(one.pool.clients[0].post("/tokenize", question))["tokens"]


@pytest.mark.parametrize("name", ["llama", "deepseek"])
def test_our_prompt_is_token_by_token_that_of_the_chat_template(served: dict[str, Served], name: str) -> None:
    one, words = served[name], VIEW.render(positions(1))[0]
    ours = tokens_of(one, prompt=fill_template(one.model.template, words))
    theirs = tokens_of(one, messages=[{"role": "user", "content": words}], add_generation_prompt=True)
    assert ours == theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_in_label_mode(served: dict[str, Served], name: str) -> None:
    one, state = served[name], positions(20)
    tutor = VllmTutor(VIEW, one.model, one.pool, LabelLogprobs(VIEW, min_mass=0.0))
    advice = tutor.advise(state)
    assert advice.valid.all()
    torch.testing.assert_close(advice.probs.sum(1), torch.ones(20))
    assert not advice.probs[~VIEW.action_mask(state)].any()
    served_model = tutor.pool.endpoints[0].served
    assert served_model is not None
    api = served_model.api
    assert isinstance(api, CompletionsAPI)
    before = fill_template(one.model.answer_template, "Which?")
    for letter in LETTERS:  # the token that a model would really write there
        spaced = before + (" " if name == "vicuna" else "") + letter
        assert tokens_of(one, prompt=spaced)[-1] == api.label_ids[letter]


@pytest.mark.parametrize("name", ["llama", "deepseek"])
def test_a_model_without_an_entry_answers_as_with_one(served: dict[str, Served], name: str) -> None:
    """By its folder alone: template, special tokens and closed thinking are what the server says."""
    one, state = served[name], positions(20)
    own = replace(find_model(one.model.model), name=one.model.name)
    assert own.template == ""
    answers = []
    for model in (one.model, own):
        with closing(EndpointPool([one.url])) as pool:
            tutor = VllmTutor(VIEW, model, pool, LabelLogprobs(VIEW, min_mass=0.0))
            answers.append(tutor.advise(state))
            assert not pool.identity.uses_chat
    assert answers[1].valid.all()
    assert (answers[0].probs - answers[1].probs).abs().max() < 0.02
    assert tutor.model.answer_template.endswith(one.model.answer_template)
    assert tutor.model.has_special_tokens


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
    positions, actions = to_canonical(view, state, torch.ones(12, dtype=torch.int64))
    games = []
    for rows in torch.arange(12).split(3):
        rewards, seen = torch.tensor([0.0, 0.0, -1.0]), torch.zeros(3, 2)
        games.append(
            Episode(select_rows(positions, rows), actions[rows], rewards, seen, -1.0, 0, select_rows(state, rows))
        )
    analyst = VllmAnalyst(view, one.model, one.pool, 800, 3)
    found = analyst.find_critical_steps(games)
    assert any(found)
    assert all(0 <= one.step < 3 and one.action in (0, 1) for named in found for one in named)
    said = analyst.compare_pairs([(games[0], games[1]), (games[1], games[0])])
    assert all(one is not None and 0 <= one <= 1 for one in said)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_in_text_mode(served: dict[str, Served], name: str) -> None:
    one = served[name]
    tutor = VllmTutor(
        VIEW, one.model, one.pool, TextGeneration(VIEW, bool(one.model.closing), max_tokens=8, samples=2, max_tries=2)
    )
    assert not tutor.advise(positions(5)).valid.any(), "random weights do not find the tags"
    assert failures(tutor) == {"unfinished": 5}, "eight tokens cut whatever they write"
    assert tutor.stats["asked"] == 10
    assert 10 < tutor.stats["answer_tokens"] <= 2 * 5 * 2 * 8


def test_two_servers_share_the_prompts_and_answer_alike(served: dict[str, Served]) -> None:
    first, second = served["llama"], served["llama again"]
    state = positions(64)
    pool = EndpointPool([first.url, second.url])
    both = VllmTutor(VIEW, first.model, pool, LabelLogprobs(VIEW, min_mass=0.0))
    before = [tokens_used(one) for one in (first, second)]
    advice = both.advise(state)
    used = [tokens_used(one) - count for one, count in zip((first, second), before, strict=True)]
    assert min(used) > 0.2 * sum(used)
    assert advice.valid.all()
    assert both.report()["vllm/prompt_tokens"] == pytest.approx(sum(used))
    pool.close()
    alone = VllmTutor(VIEW, first.model, first.pool, LabelLogprobs(VIEW, min_mass=0.0))
    assert (advice.probs - alone.advise(state).probs).abs().max() < 0.02


def tokens_used(one: Served) -> float:
    """Prompt tokens by the server's own count."""
    text = one.pool.run(one.pool.clients[0].get_text("/metrics"))
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:prompt_tokens_total"))


def test_a_server_that_is_killed_and_comes_back_is_asked_again_but_another_model_in_its_place_is_not(
    served: dict[str, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is taken by servers that run already, to which the client is led: vLLM starts in a minute."""
    one = served["llama again"]
    tutor = VllmTutor(VIEW, one.model, one.pool, LabelLogprobs(VIEW, min_mass=0.0))
    state = positions(8)
    first = tutor.advise(state)

    def lead_to(other: Served) -> None:
        for attribute, suffix in (("url", ""), ("api_url", "/v1")):
            monkeypatch.setattr(one.pool.clients[0], attribute, other.url + suffix)

    def ask() -> State:
        tutor.pool.endpoints[0].breaker.retry_at = 0.0  # it is time for a probe
        return tutor.advise(state)

    one.end()
    for _ in range(6):
        assert not tutor.advise(state).valid.any()
    assert tutor.pool.endpoints[0].state is EndpointState.DOWN
    lead_to(served["deepseek"])
    for _ in range(3):
        assert not ask().valid.any()
    assert failures(tutor)["other_model"] == 24
    lead_to(served["llama"])
    again = ask()
    assert again.valid.all()
    assert (again.probs - first.probs).abs().max() < 0.02
