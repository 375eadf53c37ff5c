"""The tiny tutor's parts against slow definitions, and its recipe on a very small scale.

That the committed weights answer the same here and in vLLM is in `test_serve.py`.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import envs
from tutors.tiny import recipe as recipes
from tutors.tiny.model import Llama, Shape
from tutors.tiny.recipe import Recipe, best, choice, cook, gather, schedule
from tutors.tiny.tokens import make_tokenizer
from tutors.views import make_view

VIEW = make_view("connect4")
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


def test_a_board_is_two_tokens_a_row_and_every_word_is_known() -> None:
    state = gather_few()
    words = VIEW.words(state)
    tokenizer = make_tokenizer(words[:50], VIEW.labels)
    for text in words:
        encoded = tokenizer.encode(text)
        assert "".join(encoded.tokens) == text
        assert tokenizer.token_to_id("<unknown>") not in encoded.ids
    rows = [token for token in tokenizer.encode(words[0]).tokens if set(token) <= set(".XO \n") and len(token) > 5]
    assert len(rows) == 12
    assert tokenizer.encode(VIEW.rules).ids == tokenizer.encode(words[0]).ids[: len(tokenizer.encode(VIEW.rules).ids)]


def gather_few() -> dict[str, torch.Tensor]:
    state = gather(VIEW, 3000, seed=5)
    return {name: tensor[:300] for name, tensor in state.items()}


def test_gathered_positions_are_canonical_different_and_have_a_move() -> None:
    state = gather(VIEW, 3000, seed=5)
    keys = VIEW.key(state)[:, 0]
    assert len(keys) >= 3000
    assert len(keys.unique()) == len(keys)
    assert torch.equal(VIEW.key(VIEW.canonical(state)[0])[:, 0], keys)
    assert VIEW.legal(state).any(1).all()


def test_the_choice_is_half_the_best_moves_and_half_a_softmax() -> None:
    values = torch.tensor([[3, 3, 1, -10_000], [999, 2, 0, -998]])
    legal = torch.tensor([[True, True, True, False], [True, True, True, True]])
    found = choice(values, legal, 1.0)
    soft = torch.tensor([3.0, 3.0, 1.0]).softmax(0)
    torch.testing.assert_close(found[0], torch.cat([soft / 2, torch.zeros(1)]) + torch.tensor([0.25, 0.25, 0, 0]))
    torch.testing.assert_close(found[1], torch.tensor([20.0, 2.0, 0.0, -20.0]).softmax(0) / 2 + torch.eye(4)[0] / 2)
    assert best(values).tolist() == [[True, True, False, False], [True, False, False, False]]


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    assert schedule(0) == 0
    assert schedule(0.05) == 1
    assert schedule(0.025) == pytest.approx(0.5)
    assert schedule(0.525) == pytest.approx(0.5)
    assert schedule(1) == pytest.approx(0)


def test_the_recipe_writes_a_folder_that_vllm_can_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "HELD_OUT", 200)
    monkeypatch.setattr(recipes, "score", lambda reader, opponent: 0.0)
    card = cook(Recipe(out=tmp_path, positions=1000, batch=250, depth=1, report_every=2))
    assert json.loads((tmp_path / "card.json").read_text()) == card
    assert card["batches"] == 4
    assert set(card["mean_return"]) == set(envs.OPPONENTS)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert weights["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert sum(tensor.numel() for tensor in weights.values()) == card["parameters"]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
