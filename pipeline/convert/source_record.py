"""The record of an import: the files and tensors of the checkpoint a run was imported from.

RUN/components/
    encoder/ backbone/ …   the frozen components, each a transformers checkpoint named by the specs
    text/                  the tokenizer of a projector that reads the instruction
    source/                the checkpoint's files without its weights, and
        mmloom.json            name, dtype and our name of each of its tensors
        mmloom.safetensors     the tensors without a counterpart in our model
A run that was trained from an import refers to the same components in its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from etl.cli import UserError
from etl.storage.atomic import write_json
from pipeline.config.decode import decode
from pipeline.config.run_config import RunConfig

COMPONENTS = "components"
SOURCE = "source"
TEXT = "text"
LEFT_OUT = "mmloom.safetensors"
_RECORD = "mmloom.json"

_SUFFIXES = (".json", ".txt", ".model", ".jinja")
_INDEX = ".index.json"


@dataclass(frozen=True, kw_only=True)
class SourceTensor:
    """A tensor of the imported checkpoint.

    Args:
        name: in the checkpoint.
        dtype: in the checkpoint, by safetensors' name.
        ours: its name in our model; None if it was left out.
    """

    name: str
    dtype: str
    ours: str | None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder of a frozen component, and the prefix of its tensors' names in our model."""

    name: str
    prefix: str


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """All tensors of the imported checkpoint, and the folders with those of frozen components."""

    folders: tuple[Folder, ...]
    tensors: tuple[SourceTensor, ...]

    def names(self) -> dict[str, str]:
        """Return our names → theirs; of several with the same name of ours, the first."""
        found: dict[str, str] = {}
        for tensor in self.tensors:
            if tensor.ours is not None:
                found.setdefault(tensor.ours, tensor.name)
        return found

    def save(self, components: Path) -> None:
        """Write the record to a run's components."""
        write_json(components / SOURCE / _RECORD, asdict(self))


def imported_components(run: RunConfig) -> Path | None:
    """Return the components folder of an imported run, or of a run trained from one, else None."""
    folder = Path(run.system.model.backbone.weights).parent
    return folder if (folder / SOURCE / _RECORD).is_file() else None


def read_record(components: Path) -> SourceRecord:
    """Read the record of a run's components; raises UserError if it is damaged."""
    file = components / SOURCE / _RECORD
    try:
        value: Mapping[str, object] = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    return decode(SourceRecord, value, file.name)


def is_config_file(path: Path) -> bool:
    """Whether a file next to the weights is a configuration or a tokenizer's, and not ours."""
    return path.suffix in _SUFFIXES and path.name != _RECORD and not path.name.endswith(_INDEX)
