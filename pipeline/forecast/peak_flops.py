"""Peak FLOP/s of a device: as published by its maker, or from a short measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from deepspeed.accelerator import get_accelerator

from etl.cli import UserError
from model.build import DTYPES

UTILIZATION = 0.4
"""Assumed share of a published peak that a training step reaches: large dense models were trained
at 21 % to 46 % (Chowdhery et al. 2022, *PaLM*, table 3), later ones at about 40 % (Llama Team 2024,
*The Llama 3 herd of models*, table 4: 38 % to 43 %)."""
UTILIZATION_OF_MEASURED = 0.6
"""Assumed share of a *measured* matrix multiplication's FLOP/s: a layer's other operations take
time, too, and its matrices are smaller."""

_PUBLISHED: Mapping[str, tuple[float, float]] = {
    "a10g": (70.0, 35.0),
    "a40": (149.7, 37.4),
    "a100": (312.0, 19.5),
    "b200": (2250.0, 75.0),
    "h100": (989.4, 66.9),
    "h100-pcie": (756.0, 51.2),
    "h200": (989.4, 66.9),
    "l4": (121.0, 30.3),
    "l40s": (362.0, 91.6),
    "mi300x": (1307.4, 163.4),
    "rtx3090": (71.0, 35.6),
    "rtx4090": (165.2, 82.6),
    "rtxa6000": (154.8, 38.7),
}
"""TFLOP/s in bf16 (dense, float32 accumulation) and in float32, from the makers' data sheets."""

_NAMES: Mapping[str, str] = {
    "NVIDIA A10G": "a10g",
    "NVIDIA A40": "a40",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-PCIE-40GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA B200": "b200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "AMD Instinct MI300X": "mi300x",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA RTX A6000": "rtxa6000",
}
"""Device name as PyTorch reports it → short name."""

_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class PeakFlops:
    """A device's peak FLOP/s.

    Args:
        peak: in FLOP/s.
        utilization: the share of it that a training step is assumed to reach.
        source: where the peak comes from, in words.
        published: whether it is the maker's figure; MFU is reported against such a peak only.
    """

    peak: float
    utilization: float
    source: str
    published: bool

    @property
    def effective(self) -> float:
        """The FLOP/s that a training step is assumed to reach."""
        return self.peak * self.utilization

    def __str__(self) -> str:
        return f"{self.utilization:.0%} of {self.peak / 1e12:.3g} TFLOP/s, {self.source}"


def published(gpu: str, precision: str) -> PeakFlops:
    """Return the peak of a GPU by its short name; raises UserError for an unknown one."""
    if gpu not in _PUBLISHED:
        raise UserError(f"--device {gpu}: unknown; want one of {', '.join(_PUBLISHED)}")
    bf16, fp32 = _PUBLISHED[gpu]
    return PeakFlops(
        peak=1e12 * (bf16 if precision == "bf16" else fp32),
        utilization=UTILIZATION,
        source=f"{gpu}'s published {precision} peak",
        published=True,
    )


def of_this_device(
    precision: str, shape: tuple[int, int, int], *, measure: bool
) -> PeakFlops | None:
    """Return the peak of the device that this process uses.

    Args:
        precision: fp32 or bf16.
        shape: (m, k, n) of a typical matrix multiplication.
        measure: whether to measure a device without a published peak, or to return None for it.
    """
    accelerator = get_accelerator()
    if accelerator.device_name() == "cuda":
        name = _NAMES.get(torch.cuda.get_device_name())
        if name is not None:
            return published(name, precision)
    return measured(precision, shape) if measure else None


def measured(precision: str, shape: tuple[int, int, int]) -> PeakFlops:
    """Return the best FLOP/s of matrix multiplications within a fraction of a second."""
    accelerator = get_accelerator()
    device = accelerator.current_device_name()
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=DTYPES[precision])
    right = torch.randn(inner, columns, device=device, dtype=DTYPES[precision])
    out = left @ right  # warm-up
    accelerator.synchronize()
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.matmul(left, right, out=out)
        accelerator.synchronize()
        best = min(best, time.perf_counter() - started)
    return PeakFlops(
        peak=2.0 * rows * inner * columns / best,
        utilization=UTILIZATION_OF_MEASURED,
        source=f"measured here: {precision} matrices of {rows}×{inner} by {inner}×{columns}",
        published=False,
    )
