"""What a run remembers of the checkpoint that it was imported from.

RUN/components/
    encoder/ backbone/ …   the frozen parts, each a transformers checkpoint that the specs load
    text/                  the tokenizer of a projector that reads the instruction
    source/                the checkpoint's files without its weights, and
        mmloom.json            name, dtype and our name of each of its tensors
        mmloom.safetensors     the tensors that have no name of ours
A run that was trained from an import has the same components, by their paths in its configuration.
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

_ENDINGS = (".json", ".txt", ".model", ".jinja")
_INDEX = ".index.json"


@dataclass(frozen=True, kw_only=True)
class SourceTensor:
    """A tensor of the imported checkpoint.

    Args:
        name: there.
        dtype: there, as safetensors names it.
        ours: its name in our model; None for one that was left out.
    """

    name: str
    dtype: str
    ours: str | None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A frozen part: its folder among the components, and the prefix of its tensors' names."""

    name: str
    prefix: str


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """All tensors of the imported checkpoint, and where those of frozen parts are now."""

    folders: tuple[Folder, ...]
    tensors: tuple[SourceTensor, ...]

    def names(self) -> dict[str, str]:
        """Return our names → theirs; of those that are one tensor of ours, the first."""
        found: dict[str, str] = {}
        for tensor in self.tensors:
            if tensor.ours is not None:
                found.setdefault(tensor.ours, tensor.name)
        return found

    def save(self, components: Path) -> None:
        """Write the record among a run's components."""
        write_json(components / SOURCE / _RECORD, asdict(self))


def components_of(run: RunConfig) -> Path:
    """Return the folder of the components that a run was imported with.

    Raises:
        UserError: it neither was imported nor started from a run that was.
    """
    folder = Path(run.system.model.backbone.weights).parent
    if not (folder / SOURCE / _RECORD).is_file():
        raise UserError(
            f"{run.output}: its backbone is {run.system.model.backbone.weights!r}, which no import "
            "has left; want a run made by `python -m pipeline import`, or trained from one"
        )
    return folder


def read_record(components: Path) -> SourceRecord:
    """Read the record among a run's components; raises UserError where it is damaged."""
    file = components / SOURCE / _RECORD
    try:
        value: Mapping[str, object] = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    return decode(SourceRecord, value, file.name)


def is_text(path: Path) -> bool:
    """Whether a file beside the weights is a configuration or a tokenizer's, and not ours."""
    return path.suffix in _ENDINGS and path.name != _RECORD and not path.name.endswith(_INDEX)
