"""Losses are sums and counts, so that any split of a batch gives the same gradient."""

import pytest
import torch
import torch.nn.functional as F

from model.batch import IGNORED
from pipeline.train.losses import contrastive_loss, matching_loss, squared_distance, text_loss


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_sums_over_parts_divided_by_the_whole_count_are_the_mean(parts: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(10, 7, requires_grad=True)
    targets = torch.randint(7, (10,))
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    sizes = torch.tensor_split(torch.arange(10), parts)
    pieces = [text_loss(logits[index], targets[index]) for index in sizes]
    total = sum(piece.total for piece in pieces) / sum(piece.number for piece in pieces)
    (actual,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(actual, expected)


def test_no_targets_give_zero_and_a_gradient_of_zero() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    total, count, _ = text_loss(logits, torch.zeros(0, dtype=torch.long))
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    assert logits.grad is not None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_summands_change_no_gradient(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(10, 7, requires_grad=True)
    targets = torch.randint(7, (10,))
    whole = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    found = text_loss(logits, targets, smoothing=smoothing)
    scale = 3 / 7
    (expected,) = torch.autograd.grad(whole * scale, logits)
    (actual,) = torch.autograd.grad(found.total * scale, logits)
    assert torch.equal(actual, expected)
    assert found.each_m is not None
    assert not found.each_m.requires_grad
    torch.testing.assert_close(found.each_m.sum(), whole.detach())


def everyone(rows: int) -> torch.Tensor:
    return torch.ones(rows, dtype=torch.bool)


def test_the_contrast_is_a_smoothed_cross_entropy() -> None:
    torch.manual_seed(0)
    similarity, positives = torch.randn(3, 5), torch.tensor([1, 0, 4])
    total, count, _ = contrastive_loss(
        similarity, positives, everyone(3), everyone(5), smoothing=0.1
    )
    expected = F.cross_entropy(similarity, positives, label_smoothing=0.1)
    torch.testing.assert_close(total / count, expected)


def test_nobody_is_compared_with_a_filler() -> None:
    torch.manual_seed(0)
    similarity = torch.randn(3, 3, requires_grad=True)
    valid = torch.tensor([True, True, False])
    total, count, _ = contrastive_loss(similarity, torch.arange(3), valid, valid, smoothing=0.1)
    alone, *_ = contrastive_loss(
        similarity[:2, :2], torch.arange(2), everyone(2), everyone(2), smoothing=0.1
    )
    assert count == 2
    torch.testing.assert_close(total, alone)
    (gradient,) = torch.autograd.grad(total, similarity)
    assert gradient.isfinite().all()
    assert not gradient[2].any()
    assert not gradient[:, 2].any()


def test_a_batch_of_fillers_has_no_contrast() -> None:
    similarity = torch.randn(2, 2, requires_grad=True)
    none = ~everyone(2)
    total, count, _ = contrastive_loss(similarity, torch.arange(2), none, none, smoothing=0.1)
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    assert similarity.grad is not None
    assert not similarity.grad.any()


def test_matching_counts_three_pairs_for_each_right_one() -> None:
    logits = torch.randn(6, 2)
    matches = torch.tensor([1, IGNORED, 0, IGNORED, 0, IGNORED])
    total, count, _ = matching_loss(logits, matches)
    assert count == 3
    torch.testing.assert_close(total / count, F.cross_entropy(logits[::2], matches[::2]))


def test_a_distance_moves_the_vectors_and_not_what_they_are_drawn_to() -> None:
    vectors, targets = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    total, count, _ = squared_distance(vectors, targets)
    torch.testing.assert_close(total / count, F.mse_loss(vectors, targets))
    total.backward()
    assert vectors.grad is not None
    assert targets.grad is None
