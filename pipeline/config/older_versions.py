"""Keys and files that were renamed: what an older version made is refused in one clear line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from etl.cli import UserError

RENAMED_KEYS: Mapping[str, tuple[str, ...]] = {
    # Of a run.
    "bad_share": ("max_bad_fraction",),
    "feature_cache_mode": ("feature_cache",),
    "features": ("feature_cache",),
    "features_mode": ("feature_cache",),
    "keep": ("keep_last",),
    "workers": ("num_workers",),
    # Of a preset: stages and model.
    "cross_every": ("cross_attention_frequency",),
    "embedding": ("embedding_width",),
    "every": ("every_n_layers",),
    "fit": ("processor",),
    "image_size": ("processor",),
    "masked": ("mask_ratio",),
    "mean": ("processor",),
    "neighbours": ("group_size",),
    "norm_epsilon": ("norm_eps",),
    "parts": ("segments", "clips"),
    "positions": ("max_frames", "max_segments"),
    "smoothing": ("label_smoothing",),
    "std": ("processor",),
    "trains": ("trainable",),
    "width_inside": ("hidden_width",),
    # Of a checkpoint's manifest.
    "cursor": ("trainer_state",),
}
"""Old key → new keys: the one that the class (or the manifest) has replaces it."""

MANIFEST_KEYS = ("trainer_state", "identity", "files")

RENAMED_FILES: Mapping[str, str] = {
    "hindsight.json": "forecast.json",
}
"""Old name → new name, of files in a run folder."""


class OlderVersionError(UserError):
    """Something has the name that an older version gave it.

    Args:
        where: the run folder, the file, or the dotted field.
        old: the name found.
        new: the name that replaced it.
        advice: what to do about it.
    """

    def __init__(
        self, where: Path | str, old: str, new: str, *, advice: str = "start a new run folder"
    ) -> None:
        super().__init__(
            f"{where}: made by an older version of mmloom (it has `{old}`, now `{new}`); {advice}"
        )
        self.old, self.new = old, new


def check_key(where: str, key: str, fields: Collection[str]) -> None:
    """Raise OlderVersionError if an unknown key is the old name of one of a class's fields."""
    for new in RENAMED_KEYS.get(key, ()):
        if new in fields:
            raise OlderVersionError(where, key, new)


def check_manifest(run: Path, manifest: Mapping[str, Any]) -> None:
    """Raise OlderVersionError if the manifest of one of a run's checkpoints has a renamed key."""
    for old in manifest:
        check_key(str(run), old, MANIFEST_KEYS)


def check_files(run: Path) -> None:
    """Raise OlderVersionError if a run folder has a file that was renamed."""
    for old, new in RENAMED_FILES.items():
        if (run / old).is_file():
            raise OlderVersionError(run, old, new)
