"""Scores of generated media, as pure functions of features: Fréchet distance and CLIPScore.

Shapes: n generated media, r real ones, d width of features, k rows of a factor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]


def frechet_distance(generated_nd: Features, real_rd: Features) -> float:
    """Return the Fréchet distance of two normal distributions with the features' moments.

    ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) (Dowson and Landau 1982): FID with features of Inception
    (Heusel et al. 2017, arXiv:1706.08500, eq. 6), FAD with those of sounds (Kilgour et al. 2019,
    arXiv:1812.08466), FVD with those of videos (Unterthiner et al. 2018, arXiv:1812.01717).
    Covariances are divided by the number of media less one, as the published scripts do.

    The trace of the root is the sum of the singular values of A₁A₂ᵀ, where Aᵢᵀ Aᵢ = Σᵢ: this needs
    neither a root of a matrix nor covariances of full rank.

    Raises:
        ValueError: fewer than two media, or features of other widths.
    """
    if len(generated_nd) < 2 or len(real_rd) < 2:
        raise ValueError("want two media or more on both sides")
    if generated_nd.shape[1] != real_rd.shape[1]:
        raise ValueError("want features of the same width on both sides")
    difference_d = generated_nd.mean(0) - real_rd.mean(0)
    factor_kd, other_kd = _factor(generated_nd), _factor(real_rd)
    root = np.linalg.svd(factor_kd @ other_kd.T, compute_uv=False).sum()
    traces = np.square(factor_kd).sum() + np.square(other_kd).sum()
    return float(difference_d @ difference_d + traces - 2 * root)


def _factor(features_nd: Features) -> Features:
    """Return a matrix (k, d), k at most d, of which the covariance is the square."""
    centred_nd = (features_nd - features_nd.mean(0)) / np.sqrt(len(features_nd) - 1)
    return np.linalg.qr(centred_nd).R


def clip_score(media_nd: Features, texts_nd: Features) -> float:
    """Return the mean of 100 · max(cos, 0) of each medium and its text.

    CLIPScore (Hessel et al. 2021, arXiv:2104.08718, eq. 1), whose factor is 2.5; with 100, as
    torchmetrics has it, and papers on generation after it.

    Args:
        media_nd: embeddings of the media.
        texts_nd: of their texts, by the same model.
    """
    products_n = (media_nd * texts_nd).sum(1)
    norms_n = np.linalg.norm(media_nd, axis=1) * np.linalg.norm(texts_nd, axis=1)
    return float(100 * np.maximum(products_n / norms_n, 0).mean())
