"""The writer of the feature cache during training: saves features that training computes anyway.

Shapes: x media, f frames (tiles, clips) of a medium, n tokens of each, d width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from torch import Tensor

from pipeline.feature_cache.feature_file import FeatureRow, write_feature_file
from pipeline.feature_cache.store import FeatureStore

log = logging.getLogger(__name__)

FILE_BYTES = 128 << 20
"""Features that a rank buffers before it writes a file; a second buffer is written meanwhile."""


class FeatureWriter:
    """Buffers one rank's new features until a file is full; writes it in the background.

    A crash loses the buffer, and nothing that was written. Where a file cannot be written, training
    continues: the writer logs one line and saves nothing more.

    Args:
        stores: by kind of media; those that are not writable are only read.
        file_bytes: features after which a file is written.
    """

    def __init__(self, stores: Mapping[str, FeatureStore], *, file_bytes: int = FILE_BYTES) -> None:
        self._folders = {kind: store.folder for kind, store in stores.items() if store.writable}
        self._file_bytes = file_bytes
        self._buffers: dict[Path, dict[bytes, Tensor]] = {}
        self._buffered_bytes = 0
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.written = 0

    def add(self, kind: str, keys: Sequence[bytes], features_xfnd: Tensor) -> None:
        """Add features of media; see `model.features.FeatureRecorder`."""
        folder = self._folders.get(kind)
        if folder is None:
            return
        buffer = self._buffers.setdefault(folder, {})
        for key, features_fnd in zip(keys, features_xfnd.to("cpu"), strict=True):
            if key not in buffer:
                buffer[key] = features_fnd.clone()
                self._buffered_bytes += buffer[key].nbytes
        if self._buffered_bytes >= self._file_bytes:
            self.flush()

    def flush(self) -> None:
        """Start writing the buffer; first wait for the one that is being written."""
        self._wait()
        buffers, self._buffers, self._buffered_bytes = self._buffers, {}, 0
        if self._folders:
            self._writing = self._thread.submit(self._write, buffers)

    def _write(self, buffers: Mapping[Path, Mapping[bytes, Tensor]]) -> None:
        for folder, features in buffers.items():
            rows = (FeatureRow(key=key, features=f) for key, f in features.items())
            write_feature_file(folder, rows)
            self.written += len(features)

    def _wait(self) -> None:
        if self._writing is None:
            return
        try:
            self._writing.result()
        except OSError as error:
            log.warning("features are no longer saved: %s", error)
            self._folders = {}
        self._writing = None

    def __enter__(self) -> FeatureWriter:
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
