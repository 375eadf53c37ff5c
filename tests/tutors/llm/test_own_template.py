"""Models without an entry in models.toml: their template is the one that their server renders."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.echo_view import EchoView
from tests.helpers.llm_tutors import MODEL, VIEW, connect_tutor, connected_tutor, positions, positions_of
from tests.helpers.probes import Echo
from tests.helpers.scripted_server import FIRST_ID, Server, serving
from tests.helpers.views import EVERY_VIEW
from tutors.base import TutorError
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import MARK, Model, closing_of, find_model, is_model, with_rendered_template
from tutors.llm.pool import EndpointPool
from tutors.llm.server import help_message, serve_command
from tutors.llm.text_generation import TextGeneration
from tutors.llm.tutor import VllmTutor

OWN = Model("org/model", "org/model", "")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one:
        one.models = ("org/model",)
        yield one


def test_hub_ids_folders_and_served_are_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weights", "scripted"):
        (tmp_path / name).mkdir()
    (tmp_path / "weights" / "config.json").touch()
    assert find_model("Qwen/Qwen3-8B") == Model("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "")
    assert find_model("weights") == Model("weights", str(tmp_path / "weights"), "")
    assert find_model("served", "mine") == Model("mine", "mine", "", is_named=True)
    assert find_model("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B") == find_model("deepseek"), "it has an entry"
    assert not is_model("lama")
    assert not is_model("scripted"), "a folder of another kind"
    assert not is_model("a/b/c")
    with pytest.raises(ValueError, match=r"'lama'.*did you mean 'llama'"):
        find_model("lama")


def test_prompts_are_rendered_in_the_servers_template(server: Server) -> None:
    with connected_tutor(server.url, model=OWN) as tutor:
        server.asked.clear()
        state = positions(3)
        assert tutor.advise(state).valid.all()
        (body,) = server.asked
        assert body["prompt"] == [f"<s>[{words}]" for words in VIEW.render(state)]
        assert body["add_special_tokens"] is False
        assert tutor.name == "org/model"
        assert tutor.identity["template"] == "<s>[{words}]"
        assert not tutor.pool.identity.uses_chat


def test_served_is_the_only_model_of_a_server(server: Server) -> None:
    with connected_tutor(server.url, model=find_model("served")) as tutor:
        assert tutor.name == tutor.identity["tutor"] == "org/model"
        assert tutor.advise(positions(1)).valid.all()
    server.models = ("org/model", "other")
    with pytest.raises(TutorError, match=r"serves org/model, other, not served .*--tutor-model"):
        connect_tutor(server.url, model=find_model("served"))
    with connected_tutor(server.url, model=find_model("served", "other")) as tutor:
        assert tutor.name == "other"


def test_letters_are_asked_for_after_a_space_where_they_are_tokens_there(server: Server) -> None:
    server.needs_space = True
    with connected_tutor(server.url, model=OWN) as tutor:
        assert tutor.model.before_label == " "
        assert server.asked[-1]["logprob_token_ids"] == [FIRST_ID + label for label in range(7)]
        assert tutor.identity["template"] == "<s>[{words}] ", "other answers than those without it"


def test_letters_that_are_no_tokens_are_refused_with_a_way_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_tokens(self: Server, body: dict[str, Any]) -> list[int]:
        text = body.get("prompt", "<s>[QUESTION]")
        return [*map(ord, text), *([0] if text[-1] in "ABCDEFG1234567" else [])]

    monkeypatch.setattr(Server, "tokenize", two_tokens)
    with pytest.raises(TutorError, match=r"org/model reads the label 'A' as 3 tokens .*--tutor-mode text"):
        connect_tutor(server.url, model=OWN)


def test_letters_that_are_all_one_unknown_token_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_at_the_end(self: Server, body: dict[str, Any]) -> list[int]:
        text = body.get("prompt", "<s>[QUESTION]")
        is_label = text[-1] in "ABCDEFG1234567"
        return [*map(ord, text[:-1].rstrip(" ")), 2] if is_label else [*map(ord, text)]

    monkeypatch.setattr(Server, "tokenize", unknown_at_the_end)
    with pytest.raises(TutorError, match=r"org/model reads the label 'B' like another label .*--tutor-mode text"):
        connect_tutor(server.url, model=OWN)


def test_thinking_is_switched_off_for_labels_and_left_on_for_text(server: Server) -> None:
    server.unthinking = "<think>\n\n</think>\n\n"
    state = positions(1)
    (words,) = VIEW.render(state)
    with connected_tutor(server.url, model=OWN) as tutor:
        tutor.advise(state)
        assert server.asked[-1]["prompt"] == [f"<s>[{words}]<think>\n\n</think>\n\n"]
    with connected_tutor(server.url, model=OWN, mode=TextGeneration(VIEW, False)) as tutor:
        tutor.advise(state)
        assert server.asked[-1]["prompt"][0].endswith("]")


def test_thinking_that_the_template_begins_is_closed_for_labels(server: Server) -> None:
    server.chat_template = "<s>[{}]<think>\n"
    server.text = "hm </think> <action>D</action>"
    with connected_tutor(server.url, model=OWN) as tutor:
        tutor.advise(positions(1))
        assert server.asked[-1]["prompt"][0].endswith("]<think>\n\n</think>\n\n")
    with connected_tutor(server.url, model=OWN, mode=TextGeneration(VIEW, False)) as tutor:
        assert tutor.advise(positions(1)).valid.all()
        assert server.asked[-1]["prompt"][0].endswith("]<think>\n")
        server.text = "<action>D</action> hm"
        assert not tutor.advise(positions(2)).valid.any(), "its thinking does not end"


@pytest.mark.parametrize(
    "breaks",
    [
        lambda server: setattr(server, "is_vllm", False),
        lambda server: setattr(server, "chat_template", "<s>no message"),
        lambda server: setattr(server, "chat_template", "{0}{0}"),
        lambda server: setattr(server, "tokenize", lambda body: [1, 2] if "messages" in body else [3]),
        lambda server: setattr(server, "tokenize", lambda body: "many"),
    ],
    ids=["no vLLM", "no message", "message twice", "other tokens", "no list"],
)
def test_server_that_does_not_say_its_template_is_asked_by_chat(
    breaks: Callable[[Server], None], server: Server
) -> None:
    breaks(server)
    with connected_tutor(server.url, model=OWN) as tutor:
        assert tutor.advise(positions(1)).valid.all()
        assert tutor.pool.identity.uses_chat
        assert "messages" in server.asked[-1]
        assert tutor.identity["template"] == "the server's own"


def test_servers_of_other_templates_are_not_one_model(server: Server) -> None:
    with serving() as other:
        other.models, other.chat_template = server.models, "<s>({})"
        with pytest.raises(TutorError, match="another API or chat template"):
            connect_tutor(server.url, other.url, model=OWN)


def test_model_without_an_entry_must_be_there_at_the_start() -> None:
    with serving() as gone:
        url = gone.url
    with pytest.raises(TutorError, match=r"org/model has no entry in models.toml: its server must answer"):
        connect_tutor(url, model=OWN, optional=True)


def test_no_server_is_started_for_whatever_is_served() -> None:
    served, url = find_model("served"), "http://127.0.0.1:8000"
    assert serve_command(served, url) is None
    assert "vllm serve MODEL --host" in help_message(served, url)


def test_rendered_template_holds_the_message_once() -> None:
    assert with_rendered_template(OWN, "<s>QUESTION", "<s>") is None
    assert with_rendered_template(OWN, "", "<s>QUESTION") is None
    model = with_rendered_template(OWN, "<s>QUESTION<think>", "<s>/no QUESTION")
    assert model is not None
    assert (model.template, model.answer_template) == ("<s>{words}<think>", "<s>/no {words}")


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        ("{words}", ""),
        ("{words}<think>", "\n</think>\n\n"),
        ("{words}<think>\n", "\n</think>\n\n"),
        ("{words}<reasoning>\n", "\n</reasoning>\n\n"),
        ("<think>{words}", ""),
        ("{words}<think></think>", ""),
        ("{words}<bot>", ""),
    ],
)
def test_thinking_that_a_template_begins_is_ended(template: str, closing: str) -> None:
    assert closing_of(template) == closing


def tokenize_by(server: Server, pattern: str) -> None:
    """Make the server's tokens those that a pattern finds: one letter, or several, whose code is above all letters'."""
    codes: dict[str, int] = {}

    def tokenize(body: dict[str, Any]) -> list[int]:
        text = server.chat_template.format(MARK) if "messages" in body else body["prompt"]
        found = re.findall(pattern, text, re.DOTALL)
        return [ord(token) if len(token) == 1 else codes.setdefault(token, 2_000_000 + len(codes)) for token in found]

    def detokenize(token_ids: list[int]) -> str:
        texts = {code: text for text, code in codes.items()}
        return "".join(texts.get(token) or chr(token) for token in token_ids)

    server.tokenize, server.detokenize = tokenize, detokenize  # type: ignore[method-assign]


def codes_of(labels: str) -> list[int]:
    return [ord(label) for label in labels]


@pytest.mark.parametrize("model", [OWN, Model("org/model", "org/model", "<s>{words}\n\n")], ids=["own", "entry"])
def test_token_after_a_prompt_whose_end_is_split_otherwise_before_a_letter(server: Server, model: Model) -> None:
    server.chat_template = "<s>[{}]\n\n"
    tokenize_by(server, r"\n\n(?!\S)|.")
    with connected_tutor(server.url, model=model) as tutor:
        assert server.asked[-1]["logprob_token_ids"] == codes_of("ABCDEFG")
        assert tutor.identity["template"].endswith("\n\n")


def test_space_before_the_letters_of_an_entry_is_part_of_the_identity(server: Server) -> None:
    server.needs_space = True
    with connected_tutor(server.url, model=Model("org/model", "org/model", "<s>{words}")) as tutor:
        assert tutor.identity["template"] == "<s>{words} "
        assert tutor.model.before_label == " "


@pytest.mark.parametrize("first", ["1", " 1"])
def test_digits_are_asked_for_where_letters_are_no_tokens(server: Server, first: str) -> None:
    """A tokenizer that reads a letter as two tokens; a digit as one, or as one after a space only."""

    def tokenize(body: dict[str, Any]) -> list[int]:
        text = server.chat_template.format(MARK) if "messages" in body else body["prompt"]
        if text[-1] in "ABCDEFG" or (text[-1].isdigit() and first == " 1" and text[-2] != " "):
            return [*codes_of(text), 0]
        ends_with_label = text[-1].isdigit() and first == " 1"
        return [*codes_of(text[:-2]), ord(text[-1])] if ends_with_label else codes_of(text)

    def prefer_four(index: int, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        logprobs = {f"token_id:{token}": -0.3 if token == ord("4") else -4.0 for token in body["logprob_token_ids"]}
        return {"index": index, "text": "4", "logprobs": {"top_logprobs": [logprobs]}}

    server.tokenize, server.answer = tokenize, prefer_four  # type: ignore[method-assign]
    with connected_tutor(server.url, model=OWN) as tutor:
        assert server.asked[-1]["logprob_token_ids"] == codes_of("1234567")
        assert tutor.identity["label_set"] == "digits"
        assert tutor.identity["template"] == "<s>[{words}]" + first[:-1]
        advice = tutor.advise(positions(3))
        assert advice.probs.argmax(1).eq(3).all()
        prompt = server.asked[-1]["prompt"][0]
        assert "named 1 to 7 from left to right" in prompt
        assert "Answer with the number of one option only." in prompt
        assert "Options: 1 2 3 4 5 6 7\n" in prompt
        assert "letter" not in prompt
    with pytest.raises(TutorError, match=r"reads the label 'A' as .* --tutor-mode text"):
        connect_tutor(server.url, model=OWN, mode=LabelLogprobs(VIEW, label_set="letters"))


@pytest.mark.parametrize("label_set", [None, "letters"])
def test_letters_are_stored_under_the_identity_that_they_always_had(server: Server, label_set: str | None) -> None:
    server.models = ("tiny",)
    with connected_tutor(server.url, mode=LabelLogprobs(VIEW, label_set=label_set)) as tutor:
        assert tutor.identity == {
            "tutor": "tiny", "template": MODEL.template, "mode": "label", "permutations": 1, "calibrated": False,
        }  # fmt: skip


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
@pytest.mark.parametrize("permutations", [1, 2])
def test_digits_name_the_same_actions_in_every_view(server: Server, game: str, name: str, permutations: int) -> None:
    view, state = positions_of(game, name)
    mode = LabelLogprobs(view, permutations, label_set="digits")
    letters = LabelLogprobs(view, permutations)
    assert mode.labels == tuple("123456789"[: len(view.labels)])
    to_digit = str.maketrans(dict(zip(view.labels, mode.labels, strict=True)))
    for digits, prompt in zip(mode.render(state), letters.render(state), strict=True):
        assert digits.count("Answer with the number of one option only.") == 1
        options, written = (text.partition("Options:")[2] for text in (prompt, digits))
        assert options.translate(to_digit).replace("1nswer", "Answer") == written


def test_view_that_cannot_have_digits_is_refused_or_keeps_its_letters() -> None:
    view = EchoView(Echo(4))
    assert LabelLogprobs(view).alternative is None
    with pytest.raises(ValueError, match="cannot have digits as labels"):
        LabelLogprobs(view, label_set="digits")


def test_digits_are_asked_for_where_an_answer_in_letters_is_prose(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a model that begins with "The", the letter A is a word that begins a sentence."""

    def begin_with_prose(index: int, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        if "messages" in body:  # whose log-probabilities this server does not return
            return {"index": index, "message": {"role": "assistant", "content": "The"}, "finish_reason": "length"}
        scores = {token: -1.5 if token == ord("A") else -3.0 for token in body["logprob_token_ids"]}
        top = {f"token_id:{token}": score for token, score in scores.items()}
        return {"index": index, "text": "The", "logprobs": {"top_logprobs": [top]}}

    server.answer = begin_with_prose  # type: ignore[method-assign]
    view, state = positions_of("blackjack")
    with closing(EndpointPool([server.url])) as pool:
        tutor = VllmTutor(view, OWN, pool, LabelLogprobs(view))
        assert tutor.identity["label_set"] == "digits"
        assert tutor.advise(state).valid.all()
    assert "asked for digits in place of letters" in caplog.text
    with closing(EndpointPool([server.url])) as pool, pytest.raises(TutorError, match="does not return"):
        VllmTutor(view, OWN, pool, LabelLogprobs(view, label_set="letters"))
