"""WikiText-2, PTB and C4, the texts on which papers report perplexity, prepared as in GPTQ and LLM-PQ.

They are in no package: each is one file of a data set on the Hugging Face hub, or a local copy of it (key ``evaluate.sources.NAME``), read
with ``datasets``. Fetched by its path: the configuration name ``allenai--c4``, by which older programs ask for C4, is gone from the hub,
and PTB's loading script is no longer run by ``datasets``, so its converted file is taken.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llmpq.errors import ConfigError, LlmpqError, first_line


@dataclass(frozen=True)
class HubText:
    """Where a text's rows are and how they become one text.

    ``columns``: names that the column of text goes by; ``row``: makes a line of a plain file the row that the data set has; ``rows``:
    how many are taken (None: all).
    """

    repository: str
    path: str
    revision: str
    columns: tuple[str, ...]
    separator: str
    row: Callable[[str], str]
    rows: int | None = None

    @property
    def url(self) -> str:
        return f"https://huggingface.co/datasets/{self.repository}/resolve/{self.revision.replace('/', '%2F')}/{self.path}"


def _line_or_empty(line: str) -> str:
    """WikiText's rows keep the end of their line; blank lines are empty rows."""
    return f"{line}\n" if line.strip() else ""


# Separators and the number of C4's documents are those of the GPTQ authors' evaluation (wikitext2, ptb-new and c4-new).
BENCHMARK_TEXTS: Mapping[str, HubText] = {
    "wikitext2": HubText("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet", "main", ("text",), "\n\n", _line_or_empty),
    "ptb": HubText(
        "ptb-text-only/ptb_text_only", "penn_treebank/test/0000.parquet", "refs/convert/parquet", ("sentence", "text"), " ", str.strip
    ),
    "c4": HubText("allenai/c4", "en/c4-validation.00000-of-00008.json.gz", "main", ("text",), " ", str.strip, rows=1100),
}

# What a file is read as, by how its name ends (before .gz, .xz, .zst or .bz2).
_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text", ".raw": "text", ".tokens": "text"}
_PACKED = (".gz", ".xz", ".zst", ".bz2")


def benchmark_text(name: str, source: str | Path = "") -> str:
    """The text ``name`` from ``source``, a local copy of its file (plain text with a row a line, jsonl or parquet), else from the hub.

    Raises LlmpqError naming the key to set where neither is to be had, or where the file is not what it should be.
    """
    text = BENCHMARK_TEXTS[name]
    file = Path(source) if str(source) else _from_hub(name, text)
    rows = list(islice(_rows(name, text, file), text.rows))
    joined = text.separator.join(rows)
    if not joined.strip():
        raise LlmpqError(f"{file}: there is no text in it (key 'evaluate.sources.{name}'); give a copy of {text.url}")
    return joined


def _from_hub(name: str, text: HubText) -> Path:
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(text.repository, text.path, repo_type="dataset", revision=text.revision))
    except Exception as error:  # the hub client raises dozens of kinds, all meaning: not to be had
        reason = "HF_HUB_OFFLINE is set, and it is not in the cache" if constants.HF_HUB_OFFLINE else first_line(error)
        raise LlmpqError(
            f"text '{name}' cannot be had from the Hugging Face hub ({reason}): download {text.url} elsewhere and set "
            f"evaluate.sources.{name} to the file (llmpq prepare: --source FILE), or choose packaged texts in evaluate.texts"
        ) from None


def _rows(name: str, text: HubText, file: Path) -> Iterable[str]:
    where = f"key 'evaluate.sources.{name}'"
    suffixes = [suffix for suffix in file.suffixes if suffix not in _PACKED]
    kind = _FORMATS.get(suffixes[-1] if suffixes else "")
    if not file.is_file():
        raise ConfigError(f"{file}: no such file ({where}); give a copy of {text.url}")
    if kind is None:
        raise ConfigError(f"{file}: {where} is not one of the formats known ({', '.join(_FORMATS)}, packed or not); rename or convert it")
    yield from (text.row(row) if kind == "text" else row for row in _read(text, file, kind, where))


def _read(text: HubText, file: Path, kind: str, where: str) -> Iterable[str]:
    """Rows of a file in order, read as far as they are asked for; nothing is kept in a cache."""
    try:
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ImportError:
        raise LlmpqError("the package 'datasets' is not installed; install what requirements.txt lists (make does)") from None
    disable_progress_bar()
    try:
        for row in load_dataset(kind, data_files=str(file), split="train", streaming=True):
            yield _cell(row, ("text",) if kind == "text" else text.columns, file, where)
    except LlmpqError:
        raise
    except Exception as error:  # pyarrow, json, gzip and datasets each have their own
        raise LlmpqError(f"{file}: cannot be read as {kind} ({first_line(error)}); {where} needs a copy of {text.url}") from None


def _cell(row: Mapping[str, Any], columns: tuple[str, ...], file: Path, where: str) -> str:
    for column in columns:
        if isinstance(row.get(column), str):
            return str(row[column])
    raise LlmpqError(f"{file}: no column '{columns[0]}' with text ({where}); it has: {', '.join(map(str, row))}")
