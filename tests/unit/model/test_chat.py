"""Chat templates: found where checkpoints keep them, rendered as transformers renders them, and never more than a text."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmpq.model.chat import ChatError, ChatTemplate

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße <b>"}]
PLAIN = "{% for message in messages %}{{ message.role }}={{ message.content }};{% endfor %}"


def written(directory: Path, jinja: str | None = None, **settings: Any) -> ChatTemplate:
    if jinja is not None:
        (directory / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    if settings:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return ChatTemplate.from_directory(directory)


def test_the_file_of_its_own_goes_before_the_key(tmp_path: Path) -> None:
    template = written(tmp_path, "{{ bos_token }}|" + PLAIN, chat_template="other", bos_token={"content": "<s>", "lstrip": False})
    assert template.render(MESSAGES) == "<s>|system=Be brief.;user=Grüße <b>;"


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": PLAIN}]
    assert written(tmp_path, chat_template=several).render(MESSAGES[1:]) == "user=Grüße <b>;"


def test_what_templates_expect_of_their_surroundings_is_there(tmp_path: Path) -> None:
    source = """{%- if tools %}tools{% endif -%}
    {%- for message in messages -%}
        {%- if message.role == 'system' %}{% continue %}{% endif -%}
        {% generation %}{{ message | tojson }}{% endgeneration %}
    {%- endfor -%}
    {{ strftime_now('%Y') | length }}{% if add_generation_prompt %}>{% endif %}"""
    assert written(tmp_path, source).render(MESSAGES) == '{"role": "user", "content": "Grüße <b>"}4>'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "the chat template refuses the messages: System role not supported"),
        ("{{ messages[0].content + 1 }}", "the chat template refuses the messages: can only concatenate"),
        ("{{ messages.append(1) }}", "refuses the messages: .*(unsafe|not safely callable)"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses the messages: .*unsafe"),
    ],
)
def test_a_template_that_fails_or_does_more_than_write_is_one_error(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        written(tmp_path, source).render(MESSAGES)


def test_no_template_and_a_broken_one_are_errors_that_say_so(tmp_path: Path) -> None:
    with pytest.raises(ChatError, match="has no chat template; give prompt or prompt_tokens in place of messages"):
        ChatTemplate.from_directory(tmp_path)
    with pytest.raises(ChatError, match=r"chat_template.jinja: not a chat template \("):
        written(tmp_path, "{% for %}")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ChatError, match=r"tokenizer_config.json: not a complete JSON file"):
        ChatTemplate.from_directory(tmp_path)


@pytest.mark.real_model
@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[1:], [*MESSAGES, {"role": "assistant", "content": "a\n"}, MESSAGES[1]]])
def test_the_prepared_model_has_its_template_and_renders_as_in_transformers(real_model_dir: Path, messages: list[dict[str, str]]) -> None:
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(real_model_dir).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate.from_directory(real_model_dir).render(messages) == expected


def test_a_template_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(ChatError, match=r"chat_template\.jinja: cannot be read"):
        ChatTemplate.from_directory(tmp_path)
