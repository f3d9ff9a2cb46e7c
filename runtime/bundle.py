"""The bundle: a portable, checksummed folder. Opened and verified here, written here, all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from runtime.errors import BundleError, OutputError, ParityError
from runtime.files import atomic_file
from runtime.manifest import SCHEMA_VERSION, FileEntry, Manifest, StageEntry

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Bundle:
    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, root: str | Path) -> Bundle:
        """Reads the manifest and checks that every file is there with its size.

        Raises:
            BundleError: not a bundle, a newer schema, or a missing or truncated file.
        """
        root = Path(root)
        bundle = cls(root, _read_manifest(root))
        for name, entry in bundle.manifest.files.items():
            path = root / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry.size:
                found = "is missing" if size is None else f"has {size} bytes"
                raise BundleError(f"{path} {found}, expected {entry.size} bytes; copy or build the bundle again")
        return bundle

    def stage(self, name: str) -> StageEntry:
        for stage in self.manifest.stages:
            if stage.name == name:
                return stage
        raise BundleError(f"{self.root} has no stage {name}; build the bundle again")

    def graph_name(self, stage: str, precision: str) -> str:
        """The ONNX file of a stage, relative to the bundle."""
        files = self.stage(stage).onnx
        if precision not in files:
            available = ", ".join(self.manifest.precisions)
            raise BundleError(
                f"{self.root} has no {precision} graph for stage {stage} (it has {available}); build it with "
                f"python export/build_engines.py --engine {precision}"
            )
        return files[precision]

    def onnx(self, stage: str, precision: str) -> Path:
        """The graph of a stage, after its checksum and that of its weights have been verified."""
        graph = self.graph_name(stage, precision)
        self.verify(graph)
        if (weights := f"{graph}.data") in self.manifest.files:
            self.verify(weights)
        return self.root / graph

    def tokenizer(self) -> Path:
        self.verify(TOKENIZER)
        return self.root / TOKENIZER

    def verify(self, name: str) -> None:
        """Raises BundleError if the file's sha256 is not the manifest's."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.root / name} is not listed in {MANIFEST}; build the bundle again")
        if (found := sha256(self.root / name)) != entry.sha256:
            raise BundleError(
                f"{self.root / name} was altered: sha256 {found[:12]}..., expected {entry.sha256[:12]}...; "
                "copy or build the bundle again"
            )

    def fingerprint(self, *names: str) -> str:
        """A hash over the contents of the named files, from the manifest."""
        joined = "".join(self.manifest.files[name].sha256 for name in names)
        return hashlib.sha256(joined.encode()).hexdigest()


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = int(content["schema_version"])
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{root} is not a bundle: it has no {MANIFEST}; build one with python export/build_engines.py"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy or build the bundle again") from None
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version}, this runtime reads up to {SCHEMA_VERSION}; "
            "update dinov3seg-deploy or build the bundle with this version"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path} is not valid: {where}: {first['msg']}; build the bundle again") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


@contextlib.contextmanager
def new_bundle(target: Path) -> Iterator[Path]:
    """A working folder beside `target` that takes its place if the block ends well, and vanishes if not.

    What fails the parity gate is kept as `rejected/<name>` beside `target`, to be looked at.

    Raises:
        ParityError: of the block; where the folder was kept is added.
        OutputError: `target` holds something that is not a bundle, or its parent cannot be written.
    """
    target = target.absolute()
    if target.exists() and not (target / MANIFEST).is_file() and (target.is_file() or any(target.iterdir())):
        raise OutputError(f"{target} exists and is not a bundle; name another folder or remove it")
    clear_leftovers(target)
    work = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        work.mkdir(parents=True)
        (work / "onnx").mkdir()
    except OSError as error:
        raise OutputError(f"cannot write a bundle to {target} ({error.strerror}); name another folder") from None
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        yield work
        try:
            if target.exists():
                target.replace(old)
            work.replace(target)
        except OSError as error:  # a mount point, for one, cannot be replaced
            raise OutputError(f"cannot put the bundle at {target} ({error.strerror}); name a new folder") from None
    except ParityError as error:
        aside = target.parent / "rejected" / target.name
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        work.replace(aside)
        raise ParityError(f"{error}; kept aside in {aside}, see parity.html there") from None
    finally:
        if old.exists() and not target.exists():  # stopped between the two renames
            old.replace(target)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)


def clear_leftovers(target: Path) -> None:
    """Removes what killed builds of this bundle left, gigabytes maybe; a bundle that one had moved away returns."""
    for kind in ("old", "partial"):
        for path in target.parent.glob(f".{target.name}.*.{kind}"):
            number = path.name.removeprefix(f".{target.name}.").removesuffix(f".{kind}")
            if not number.isdigit() or is_running(int(number)):
                continue
            if kind == "old" and not target.exists():
                path.replace(target)
            else:
                shutil.rmtree(path, ignore_errors=True)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def list_files(root: Path) -> dict[str, FileEntry]:
    """Every file under `root` but the manifest and engines, which are caches, with size and checksum."""
    return {
        path.relative_to(root).as_posix(): FileEntry(sha256=sha256(path), size=path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != MANIFEST and path.relative_to(root).parts[0] != "engines"
    }


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Whole or not at all: engines are added to bundles in use."""
    with atomic_file(root / MANIFEST) as path:
        path.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
