"""Features that training has to make anyway, kept for the next time they are needed.

Shapes: x media, f parts of a medium, n tokens of a part, d width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from torch import Tensor

from pipeline.feature_cache.feature_file import Row, write_part
from pipeline.feature_cache.store import FeatureStore

log = logging.getLogger(__name__)

PART_BYTES = 128 << 20
"""Features that a rank holds before it writes them; as much again is being written meanwhile."""


class Recorder:
    """Holds one rank's new features until there are enough for a file; writes beside training.

    A crash loses what was held, and nothing that was written. Where a file cannot be written, one
    line says so, and nothing is kept from there on: training does not need it.

    Args:
        stores: by kind of media; those that cannot be written are only read.
        part_bytes: of features, after which a file is written.
    """

    def __init__(self, stores: Mapping[str, FeatureStore], *, part_bytes: int = PART_BYTES) -> None:
        self._folders = {kind: store.folder for kind, store in stores.items() if store.writable}
        self._most = part_bytes
        self._held: dict[Path, dict[bytes, Tensor]] = {}
        self._bytes = 0
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.written = 0

    def keep(self, kind: str, keys: Sequence[bytes], features_xfnd: Tensor) -> None:
        """Hold features of media; see `model.features.FeatureRecorder`."""
        folder = self._folders.get(kind)
        if folder is None:
            return
        held = self._held.setdefault(folder, {})
        for key, features_fnd in zip(keys, features_xfnd.to("cpu"), strict=True):
            if key not in held:
                held[key] = features_fnd.clone()
                self._bytes += held[key].nbytes
        if self._bytes >= self._most:
            self.flush()

    def flush(self) -> None:
        """Begin to write what is held; waits for what was being written before."""
        self._wait()
        held, self._held, self._bytes = self._held, {}, 0
        if self._folders:
            self._writing = self._thread.submit(self._write, held)

    def _write(self, held: Mapping[Path, Mapping[bytes, Tensor]]) -> None:
        for folder, features in held.items():
            write_part(folder, (Row(key=key, features=f) for key, f in features.items()))
            self.written += len(features)

    def _wait(self) -> None:
        if self._writing is None:
            return
        try:
            self._writing.result()
        except OSError as error:
            log.warning("features are kept no longer: %s", error)
            self._folders = {}
        self._writing = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()
        self._wait()
        self._thread.shutdown()
