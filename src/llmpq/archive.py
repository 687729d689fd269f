"""One experiment as one file that someone else can open: configuration, plans, results, figures, logs, and what was left out."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.track_files import names_of, stage_files

LOGS = Path("results/logs")
README = """This is the experiment {name} of llmpq, packed by the rule `archive`.

results/experiments/{name}/report.html   the comparison, for a browser
results/experiments/{name}/config.yaml   every parameter
manifest.json                            every file with size and sha256; those with "packed": false (weights, statistics) are named only
results/logs/                            what every job said

In a clone of the repository at revision {revision}, with its requirements.lock (sha256 {lock}),
`snakemake --cores 2 --config experiments={name}` makes all of it again.
"""


def pack(experiment: Mapping[str, Any], out: str | Path, root: Path = Path(".")) -> dict[str, Any]:
    """Pack the files of ``experiment`` (a resolved configuration) below ``root`` into the tar.gz ``out``; returns the manifest.

    Equal files give equal bytes, whenever they are packed. Raises ArtifactError where the experiment has no report yet.
    """
    name = experiment["name"]
    home = Path("results/experiments") / name
    if not (root / home / "report.html").is_file():
        raise ArtifactError(f"{root / home / 'report.html'}: no such file; an experiment is packed when it has finished")
    files = _files(experiment, root)
    manifest = {
        "experiment": name,
        "provenance": artifacts.provenance("computed", config=dict(experiment)),
        "files": [
            {"path": str(path), "bytes": (root / path).stat().st_size, "sha256": artifacts.sha256_file(root / path), "packed": packed}
            for path, packed in files.items()
        ],
    }
    made_with = json.loads((root / home / "summary.json").read_text(encoding="utf-8"))["provenance"]
    about = README.format(name=name, revision=made_with["git_revision"], lock=made_with.get("lock_sha256"))
    with (
        artifacts.atomic_path(out) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        _add(archive, name, Path("README.txt"), about.encode())
        _add(archive, name, Path("manifest.json"), artifacts.dumps(manifest).encode())
        for path in (path for path, packed in files.items() if packed):
            _add(archive, name, path, (root / path).read_bytes())
    return manifest


def _files(experiment: Mapping[str, Any], root: Path) -> dict[Path, bool]:
    """Everything that belongs to the experiment, and whether it is packed (weights are only named), in the order of the paths."""
    listed = {file.path.relative_to(root): file.copied for file in stage_files(experiment, root)}
    figures = (root / "results/experiments" / experiment["name"] / "figures").glob("*")
    more = {path.relative_to(root): True for path in (*figures, *_logs(experiment, root)) if path.is_file()}
    return dict(sorted((listed | more).items()))


def _logs(experiment: Mapping[str, Any], root: Path) -> Iterator[Path]:
    """Logs of the jobs that made the experiment's files: below its own name, or below those of the entries that it shares with others."""
    names = names_of(experiment)
    own = {experiment["name"], *(name for group in ("model", "profile", "text") for name in names[group])}
    for path in (root / LOGS).glob("*/**/*.log"):
        if path.relative_to(root / LOGS).with_suffix("").parts[1] in own:
            yield path


def _add(archive: tarfile.TarFile, folder: str, path: Path, content: bytes) -> None:
    entry = tarfile.TarInfo(str(Path(folder) / path))
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))
