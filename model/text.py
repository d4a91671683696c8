"""Token ids of texts for components other than the backbone, e.g. a Q-Former's instruction.

Shapes: b media, l text positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TextIds:
    """Padded token ids (b, l), one row per medium, and their mask: 1 for tokens, 0 for padding."""

    ids_bl: Tensor
    mask_bl: Tensor

    def to(self, device: torch.device | str) -> TextIds:
        """Return the texts on `device`."""
        return TextIds(ids_bl=self.ids_bl.to(device), mask_bl=self.mask_bl.to(device))
