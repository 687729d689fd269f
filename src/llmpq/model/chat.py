"""The checkpoint's chat template: messages in, the text of the prompt out."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmpq.errors import LlmpqError, first_line


class ChatError(LlmpqError):
    """There is no template, it is broken, or it refuses these messages."""


class ChatTemplate:
    """A template as Hugging Face's tokenizers have it; it is a program of the model's, so it runs in jinja2's sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: Path) -> None:
        self._where, self._special_tokens = where, dict(special_tokens)
        extensions: list[Any] = [jinja2.ext.loopcontrols, _Generation]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ChatError(f"{where}: not a chat template ({first_line(error)}); save the tokenizer with its template again") from None

    @classmethod
    def from_directory(cls, directory: str | Path) -> "ChatTemplate":
        """That of chat_template.jinja, or of the key chat_template in tokenizer_config.json (``default``, where it has several).

        Raises ChatError where there is none or it is no template.
        """
        path, settings_path = Path(directory) / "chat_template.jinja", Path(directory) / "tokenizer_config.json"
        settings = _read_settings(settings_path) if settings_path.is_file() else {}
        special = {key: token for key, value in settings.items() if key.endswith("_token") and (token := _token(value)) is not None}
        if path.is_file():
            try:
                return cls(path.read_text(encoding="utf-8"), special, path)
            except (OSError, UnicodeDecodeError) as error:
                raise ChatError(f"{path}: cannot be read ({first_line(error)}); save the tokenizer with its template again") from None
        source = settings.get("chat_template")
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if not isinstance(source, str):
            raise ChatError(f"{directory}: the checkpoint has no chat template; give prompt or prompt_tokens in place of messages")
        return cls(source, special, settings_path)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that asks for the next message of the assistant. Raises ChatError with what the template says against ``messages``."""
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, tools=None, **self._special_tokens)
        except Exception as error:  # whatever the program raises, on messages that it was not written for
            raise ChatError(f"the chat template refuses the messages: {first_line(error)}") from None


class _Generation(jinja2.ext.Extension):
    """``{% generation %} … {% endgeneration %}`` marks the assistant's text for training; here it only contains it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ChatError(f"{path}: not a complete JSON file ({first_line(error)}); prepare the model again") from None
    return found if isinstance(found, dict) else {}


def _token(value: Any) -> str | None:
    """A special token is written as a string or as an object with its ``content``."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Without jinja2's escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
