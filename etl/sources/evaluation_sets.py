"""Evaluation sets for decontamination: folders of shards, lists of texts, folders of images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.dedup.decontaminate import EvalItem
from etl.media.decode import normalize_image
from etl.media.embedded import Location
from etl.media.image import ImageLimits
from etl.sources.files import parquet_or_json_rows
from etl.storage.atomic import file_sha256
from etl.storage.manifest import MANIFEST
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet

_log = logging.getLogger("etl")

_LISTS = (".json", ".jsonl", ".parquet", ".txt")
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_NO_LIMITS = ImageLimits(min_side=1, max_aspect=float("inf"), max_pixels=500_000_000)


@dataclass(frozen=True)
class EvaluationSets:
    """The items of evaluation sets; read again on each iteration.

    Args:
        paths: complete folders of shards, folders of images (searched recursively), and files of
            texts: all strings of JSON, lines of JSON or parquet, and all lines of a .txt file.

    Raises:
        UserError: a path is none of these.
    """

    paths: Sequence[Path]

    def __post_init__(self) -> None:
        for path in self.paths:
            if not path.exists():
                raise UserError(f"--decontaminate {path}: no such file or folder")
            if path.is_file() and path.suffix not in _LISTS:
                raise UserError(f"--decontaminate {path}: want one of {', '.join(_LISTS)}")
            if path.is_dir() and not (path / MANIFEST).exists():
                images = _images(path)
                if not images:
                    raise UserError(
                        f"--decontaminate {path}: the folder holds neither shards nor images"
                    )
                if not any(_item("", [file.read_bytes()], []).hashes for file in images):
                    raise UserError(
                        f"--decontaminate {path}: none of its {len(images)} images can be read"
                    )

    def __iter__(self) -> Iterator[EvalItem]:
        for path in self.paths:
            if path.is_file():
                yield from _texts(path)
            elif (path / MANIFEST).exists():
                shards = ShardSet([path], verify=False)
                for index in range(len(shards)):
                    yield _from_sample(path, shards[index])
            else:
                yield from _from_images(path)

    def fingerprint(self) -> list[str]:
        """Digests of the sets' content, independent of their paths."""
        return [_fingerprint(path) for path in self.paths]


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGES)


def _from_images(folder: Path) -> Iterator[EvalItem]:
    for file in _images(folder):
        item = _item(str(file.relative_to(folder.parent)), [file.read_bytes()], [])
        if not item.hashes:  # its bytes still count
            _log.warning("--decontaminate %s: cannot be read as an image", file)
        yield item


def _fingerprint(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    if (path / MANIFEST).exists():
        return ShardSet([path], verify=False).fingerprint
    digests = [file_sha256(file) for file in _images(path)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _texts(path: Path) -> Iterator[EvalItem]:
    if path.suffix == ".txt":
        rows: Any = path.read_text(encoding="utf-8", errors="replace").splitlines()
    else:
        rows = parquet_or_json_rows(path)
    for number, row in enumerate(rows):
        yield EvalItem(name=f"{path.name}:{number}", texts=list(_strings(row)))


def _strings(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever a list of texts holds
    if isinstance(value, str) and not isinstance(value, Location):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def _from_sample(path: Path, sample: Sample) -> EvalItem:
    images = [medium.data for medium in sample.media if medium.kind == "image"]
    texts = [turn.text for turn in sample.turns]
    return _item(f"{path.name}:{sample.id}", images, texts)


def _item(name: str, images: Sequence[bytes], texts: Sequence[str]) -> EvalItem:
    digests, hashes = [], []
    for data in images:
        digests.append(hashlib.sha256(data).hexdigest())
        image = normalize_image(data, _NO_LIMITS, None)
        if not isinstance(image, str):
            digests.append(image.medium.sha256)
            hashes.append(image.phash)
    return EvalItem(name=name, texts=texts, digests=digests, hashes=hashes)
