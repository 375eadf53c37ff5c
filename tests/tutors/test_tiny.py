"""The tiny tutor's parts against slow definitions, and its recipe on a very small scale.

That the committed weights answer the same here and in vLLM is in `test_serve.py`.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import envs
from envs.base import State, num_rows
from tutors.base import Advice
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.scripted import one_hot
from tutors.tiny import recipe as recipes
from tutors.tiny.model import Llama, Shape
from tutors.tiny.recipe import (
    POSITION_SHARES,
    LocalTutor,
    Recipe,
    ViewTask,
    first_rows,
    hold_out,
    is_best,
    learning_rate_scale,
    make_tiny,
    play_metrics,
    sample_positions,
    target_distribution,
)
from tutors.tiny.tokens import make_tokenizer

EVERY_VIEW = {(game, name): make_view(envs.make_game(game), name) for game, name in POSITION_SHARES}
SMALL = Shape(vocabulary=11, width=64, layers=2, heads=2, hidden=48)


def by_token(model: Llama, tokens: list[int]) -> torch.Tensor:
    """The next token's logits by the textbook, one head and one position at a time, in float64."""
    shape, body = model.shape, model.model.double()
    width = shape.width // shape.heads
    half = width // 2

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean() + shape.norm_eps).sqrt() * weight

    def turned(x: torch.Tensor, place: int) -> torch.Tensor:
        pairs = torch.complex(x[:half], x[half:])
        angle = place * shape.rope_theta ** (-torch.arange(half).double() / half)
        spun = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([spun.real, spun.imag])

    stream = [body.embed_tokens.weight[token] for token in tokens]
    for layer in body.layers:
        inputs = [norm(x, layer.input_layernorm.weight) for x in stream]
        attention = layer.self_attn
        for place in range(len(stream)):
            heads = []
            for head in range(shape.heads):
                part = slice(head * width, (head + 1) * width)
                query = turned(attention.q_proj.weight[part] @ inputs[place], place)
                keys = [turned(attention.k_proj.weight[part] @ x, at) for at, x in enumerate(inputs[: place + 1])]
                values = [attention.v_proj.weight[part] @ x for x in inputs[: place + 1]]
                weights = torch.stack([query @ key / width**0.5 for key in keys]).softmax(0)
                heads.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
            stream[place] = stream[place] + attention.o_proj.weight @ torch.cat(heads)
        for place, x in enumerate(stream):
            x = norm(x, layer.post_attention_layernorm.weight)
            gate, up = layer.mlp.gate_proj.weight @ x, layer.mlp.up_proj.weight @ x
            stream[place] = stream[place] + layer.mlp.down_proj.weight @ (gate * gate.sigmoid() * up)
    return body.embed_tokens.weight @ norm(stream[-1], body.norm.weight)


def test_the_shared_beginning_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Llama(SMALL)
    beginning, ends = [1, 2, 3, 4, 5], [[6, 7, 8], [9, 10, 0]]
    with torch.no_grad():
        found = model(torch.tensor(beginning), torch.tensor(ends), torch.tensor([2, 1]))
        expected = torch.stack([by_token(model, beginning + ends[0]), by_token(model, beginning + ends[1][:2])])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def gathered() -> dict[tuple[str, str], State]:
    """Some hundred positions of every view, from play on a small scale."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "NUM_ENVS", 128)
        patch.setattr(recipes, "STEPS_PER_CHECK", 20)
        return {place: sample_positions(view, 1000, seed=5) for place, view in EVERY_VIEW.items()}


def test_every_word_is_known_and_tokens_join_to_the_words(gathered: dict[tuple[str, str], State]) -> None:
    words = {place: view.render(first_rows(gathered[place], 300)) for place, view in EVERY_VIEW.items()}
    tokenizer = make_tokenizer([text for texts in words.values() for text in texts[:40]], "ABCDEFG")
    for place, view in EVERY_VIEW.items():
        beginning = tokenizer.encode(view.instructions).ids
        for text in words[place]:
            encoded = tokenizer.encode(text)
            assert "".join(encoded.tokens) == text
            if place[0] != "blackjack":  # its numbers are words that the first 40 hands need not hold
                assert tokenizer.token_to_id("<unknown>") not in encoded.ids
            assert encoded.ids[: len(beginning)] == beginning


@pytest.mark.parametrize(("place", "cells", "tokens"), [(("connect4", "board"), 42, 12), (("snake", "full"), 144, 48)])
def test_a_board_is_the_same_number_of_tokens_whatever_lies_on_it(
    gathered: dict[tuple[str, str], State], place: tuple[str, str], cells: int, tokens: int
) -> None:
    view = EVERY_VIEW[place]
    words = [
        text.removeprefix(view.instructions).split("Options")[0]
        for text in view.render(first_rows(gathered[place], 300))
    ]
    tokenizer = make_tokenizer(words, "ABCDEFG")
    for text in words:
        assert len(text.split()) == cells
        found = tokenizer.encode(text).tokens
        assert len(found) == tokens + (found[-1] == "\n")


def test_gathered_positions_are_told_in_different_words_and_have_a_move(
    gathered: dict[tuple[str, str], State],
) -> None:
    for place, view in EVERY_VIEW.items():
        state = gathered[place]
        assert num_rows(state) >= {"blackjack": 250, "connect4": 1000, "snake": 40}[place[0]]
        assert len(view.key(state).unique(dim=0)) == num_rows(state)
        assert view.action_mask(state).any(1).all()
    assert num_rows(gathered["snake", "full"]) >= 1000


def test_positions_are_held_out_of_a_large_game_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "NUM_HELD_OUT", 10)
    learn, held_out = hold_out({"key": torch.arange(20)})
    assert sorted(held_out["key"].tolist() + learn["key"].tolist()) == list(range(20))
    assert len(held_out["key"]) == 10
    learn, held_out = hold_out({"key": torch.arange(19)})
    assert sorted(learn["key"].tolist()) == sorted(held_out["key"].tolist()) == list(range(19))


def test_the_choice_is_half_the_best_moves_and_half_a_softmax() -> None:
    values = torch.tensor([[3, 3, 1, -10_000], [999, 2, 0, -998], [-990, -992, -1000, -2000]])
    action_mask = torch.tensor([[True, True, True, False], [True, True, True, True], [False, True, True, True]])
    found = target_distribution(values, action_mask, 2.0)
    soft = torch.tensor([0.0, 0.0, -1.0]).softmax(0)
    torch.testing.assert_close(found[0], torch.cat([soft / 2, torch.zeros(1)]) + torch.tensor([0.25, 0.25, 0, 0]))
    torch.testing.assert_close(found[1], torch.tensor([0.0, -10.0, -10.0, -10.0]).softmax(0) / 2 + torch.eye(4)[0] / 2)
    worst = torch.tensor([0.0, -4.0, -10.0]).softmax(0)
    torch.testing.assert_close(found[2], torch.cat([torch.zeros(1), worst / 2]) + torch.eye(4)[1] / 2)
    assert is_best(values).tolist() == [[True, True, False, False], *[[True, False, False, False]] * 2]


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    assert learning_rate_scale(0) == 0
    assert learning_rate_scale(0.05) == 1
    assert learning_rate_scale(0.025) == pytest.approx(0.5)
    assert learning_rate_scale(0.525) == pytest.approx(0.5)
    assert learning_rate_scale(1) == pytest.approx(0)


@pytest.mark.train
def test_the_recipe_writes_a_folder_that_vllm_can_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "NUM_HELD_OUT", 200)
    monkeypatch.setattr(recipes, "NUM_ENVS", 128)
    monkeypatch.setattr(recipes, "STEPS_PER_CHECK", 20)
    monkeypatch.setattr(recipes, "mean_return", lambda task, env: 0.5)
    card = make_tiny(Recipe(out=tmp_path, positions=500, batch=10, depth=1, report_every=20))
    assert json.loads((tmp_path / "card.json").read_text()) == card
    assert card["batches"] == 50
    reports = card["views"]
    assert {name: set(report) - {"agreement", "chance", "positions"} for name, report in reports.items()} == {
        "blackjack table": {"regret"},
        "connect4 board": {"random", "tactical"},
        "snake local": {"fruits"},
        "snake full": {"fruits"},
    }
    assert all(0 < report["chance"] < 1 and 0 <= report["agreement"] <= 1 for report in reports.values())
    assert 0 < reports["blackjack table"]["regret"] < 1
    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert weights["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert sum(tensor.numel() for tensor in weights.values()) == card["parameters"]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]


class Oracle(LocalTutor):
    """Reads nothing and answers as the expert: what a model that has learned everything comes to."""

    def __init__(self, view: PromptView) -> None:
        self.view, self.stats = view, Counter()

    def advise(self, state: State) -> Advice:
        values = self.view.expert_values(state, 4).float().masked_fill(~self.view.action_mask(state), -torch.inf)
        return one_hot(values.argmax(1), len(self.view.labels))


def test_who_answers_as_the_expert_agrees_with_it_and_plays_like_it(
    gathered: dict[tuple[str, str], State], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "NUM_SNAKE_EPISODES", 20)
    for place, view in EVERY_VIEW.items():
        if place == ("snake", "full"):
            continue  # minutes of search
        game, state = envs.make_game(place[0]), gathered[place]
        task = ViewTask(game, Oracle(view), state, first_rows(state, 200), 4)
        assert task.agreement(100) == 1
        played = play_metrics(task)
        assert all(
            value >= {"random": 0.98, "tactical": 0.85, "fruits": 12}.get(name, 0) for name, value in played.items()
        )
        assert played.get("regret", 0) == pytest.approx(0, abs=1e-6)
