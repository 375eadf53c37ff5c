"""The models' templates against the published ones: golden files by hand, and the published jinja, rendered.

llama      chat_template of meta-llama/Llama-3.1-8B-Instruct's tokenizer_config.json: no tools, no message of a system,
           its own date; its <|begin_of_text|> is left out, since the server adds it.
vicuna     FastChat, fastchat/conversation.py, `vicuna_v1.1`: ADD_COLON_TWO with " " as the first separator.
deepseek   chat_template of deepseek-ai/DeepSeek-R1-Distill-Qwen-32B's tokenizer_config.json, as llama.cpp keeps it in
           models/templates/; that of -Llama-8B is the same. Its first token is left out likewise.
"""

from pathlib import Path

import jinja2
import pytest

from tests.helpers.paths import GOLDEN
from tutors.llm.models import Model, fill_template, find_model, known_models

TEMPLATES = GOLDEN / "templates"
QUESTION = "What is 2 + 2?"
LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
VICUNA = (  # what FastChat joins in Python, written as jinja
    "{{ system }}{{ seps[0] }}{% for message in messages %}{{ roles[message.role] }}: {{ message.content }}"
    "{{ seps[loop.index0 % 2] }}{% endfor %}{% if add_generation_prompt %}{{ roles.assistant }}:{% endif %}"
)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
DEEPSEEK = """\
{%- set ns = namespace(system_prompt='') -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}{%- set ns.system_prompt = message['content'] -%}{%- endif -%}
{%- endfor -%}
{{bos_token}}{{ns.system_prompt}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}{{'<｜User｜>' + message['content']}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<｜Assistant｜><think>\\n'}}{%- endif -%}
"""
PUBLISHED = {"llama": LLAMA, "vicuna": VICUNA, "deepseek": DEEPSEEK, "deepseek-llama": DEEPSEEK}
FIRST = {
    "llama": "<|begin_of_text|>",
    "deepseek": "<｜begin▁of▁sentence｜>",
    "deepseek-llama": "<｜begin▁of▁sentence｜>",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_question_is_written_as_published(name: str) -> None:
    assert fill_template(find_model(name).template, QUESTION) == (TEMPLATES / f"{name}.txt").read_bytes().decode()


@pytest.mark.parametrize("question", [QUESTION, "Two\n\nparagraphs with {braces} and <tags>:"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_template_renders_the_same(name: str, question: str) -> None:
    rendered = jinja2.Environment().from_string(PUBLISHED[name]).render(
        messages=[{"role": "user", "content": question}],
        add_generation_prompt=True,
        bos_token=FIRST.get(name, ""),
        system=SYSTEM,
        roles={"user": "USER", "assistant": "ASSISTANT"},
        seps=[" ", "</s>"],
    )  # fmt: skip
    assert fill_template(find_model(name).template, question) == rendered.removeprefix(FIRST.get(name, ""))


@pytest.mark.parametrize("name", [name for name, model in known_models().items() if model.template])
def test_every_template_holds_the_question_once_and_does_not_begin_with_the_first_token(name: str) -> None:
    template = find_model(name).template
    assert template.count("{words}") == 1
    assert not any(template.startswith(token) for token in [*FIRST.values(), "<s>"])


def test_every_model_of_the_paper_has_a_golden_file() -> None:
    assert {path.stem for path in TEMPLATES.iterdir()} == set(PUBLISHED) == set(known_models()) - {"tiny", "smollm2"}


def test_for_a_letter_the_thinking_that_a_template_begins_is_ended() -> None:
    for name, model in known_models().items():
        assert model.answer_template == model.template + model.closing
        assert ("<think>" in model.template) == ("</think>" in model.closing), name
    assert fill_template(find_model("deepseek").answer_template, QUESTION) == (
        "<｜User｜>What is 2 + 2?<｜Assistant｜><think>\n\n</think>\n\n"
    )
    assert find_model("llama").closing == find_model("vicuna").closing == ""
    assert find_model("vicuna").before_label == " ", "USER: … ASSISTANT: A"


def test_a_question_may_hold_braces_of_its_own() -> None:
    assert fill_template("<s>{words}</s>", "a {word} and {0}") == "<s>a {word} and {0}</s>"


def test_another_served_model_is_asked_in_the_template() -> None:
    other = find_model("deepseek", "my/finetuned")
    assert (other.name, other.model) == ("my/finetuned", "my/finetuned")
    assert (other.template, other.closing) == (find_model("deepseek").template, find_model("deepseek").closing)


def test_a_model_without_a_name_here_is_refused_with_the_closest() -> None:
    with pytest.raises(ValueError, match="deepseek") as error:
        find_model("deepsek")
    assert "did you mean 'deepseek'" in str(error.value)


def test_a_model_of_this_repository_is_a_folder_and_others_are_ids() -> None:
    assert Path(find_model("tiny").model).is_dir()
    assert find_model("llama").model == "meta-llama/Llama-3.1-8B-Instruct"
    assert isinstance(find_model("llama"), Model)
