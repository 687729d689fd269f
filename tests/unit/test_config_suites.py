"""Which experiments there are, and the suites they belong to."""

from pathlib import Path

import pytest

from llmpq.config_suites import experiment_files, experiment_names
from llmpq.errors import ConfigError


def write(root: Path, name: str, text: str = "name: x\n") -> Path:
    path = root / "experiment" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_suite_is_the_folder_or_else_the_key_or_else_default(tmp_path: Path) -> None:
    write(tmp_path, "paper/one.yaml")
    write(tmp_path, "two.yaml", "name: two\nsuite: local\n")
    write(tmp_path, "three.yaml")
    found = experiment_files(tmp_path)
    assert {name: (each.suite, each.choice) for name, each in found.items()} == {
        "one": ("paper", "paper/one"),
        "two": ("local", "two"),
        "three": ("default", "three"),
    }


def test_overrides_for_all_leave_out_what_is_not_served_here(tmp_path: Path) -> None:
    for name in ("paper/one.yaml", "local/two.yaml", "three.yaml", "test/four.yaml"):
        write(tmp_path, name)
    assert experiment_names(tmp_path) == ["four", "one", "three", "two"]
    assert experiment_names(tmp_path, overridden=True) == ["three", "two"]


def test_a_file_that_others_are_made_of_is_no_experiment(tmp_path: Path) -> None:
    write(tmp_path, "paper/_row.yaml")
    write(tmp_path, "paper/one.yaml")
    assert experiment_names(tmp_path) == ["one"]


@pytest.mark.parametrize(
    ("names", "text", "words"),
    [
        (("a/one.yaml", "b/one.yaml"), "", ["b/one.yaml", "a/one.yaml has that name too", "rename"]),
        (("a/b/one.yaml",), "", ["a/b/one.yaml", "move the file up"]),
        (("a/one.yaml",), "suite: b\n", ["a/one.yaml", "key 'suite' is 'b'", "suite 'a'"]),
    ],
)
def test_what_cannot_be_told_apart_is_named(tmp_path: Path, names: tuple[str, ...], text: str, words: list[str]) -> None:
    for name in names:
        write(tmp_path, name, text)
    with pytest.raises(ConfigError) as caught:
        experiment_files(tmp_path)
    for word in words:
        assert word in str(caught.value)
