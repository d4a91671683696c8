"""Losses return sums and counts, so that any split of a batch gives the same gradient."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.batch import IGNORED
from model.build import build_outputs
from model.presets import PRESETS, system
from model.spec import SpecError
from model.spec.output_branches import BranchWeights, Generation
from pipeline.train.losses import (
    contrastive_loss,
    loss_terms,
    matching_loss,
    squared_distance,
    text_loss,
    z_loss,
)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_sums_of_parts_divided_by_the_total_count_are_the_mean(parts: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(10, 7, requires_grad=True)
    targets = torch.randint(7, (10,))
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    sizes = torch.tensor_split(torch.arange(10), parts)
    sums = [text_loss(logits[index], targets[index]) for index in sizes]
    mean = sum(part.total for part in sums) / sum(part.count for part in sums)
    (actual,) = torch.autograd.grad(mean, logits)
    torch.testing.assert_close(actual, expected)


def test_no_targets_give_zero_and_a_gradient_of_zero() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = text_loss(logits, torch.zeros(0, dtype=torch.long))
    loss.total.backward()
    assert (loss.total.item(), loss.count) == (0.0, 0)
    assert logits.grad is not None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_keeping_the_summands_changes_no_gradient(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(10, 7, requires_grad=True)
    targets = torch.randint(7, (10,))
    expected_sum = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    loss = text_loss(logits, targets, smoothing=smoothing)
    scale = 3 / 7
    (expected,) = torch.autograd.grad(expected_sum * scale, logits)
    (actual,) = torch.autograd.grad(loss.total * scale, logits)
    assert torch.equal(actual, expected)
    assert loss.per_target_m is not None
    assert not loss.per_target_m.requires_grad
    torch.testing.assert_close(loss.per_target_m.sum(), expected_sum.detach())


def all_valid(rows: int) -> torch.Tensor:
    return torch.ones(rows, dtype=torch.bool)


def test_the_contrastive_loss_is_a_smoothed_cross_entropy() -> None:
    torch.manual_seed(0)
    similarity, positives = torch.randn(3, 5), torch.tensor([1, 0, 4])
    loss = contrastive_loss(similarity, positives, all_valid(3), all_valid(5), smoothing=0.1)
    expected = F.cross_entropy(similarity, positives, label_smoothing=0.1)
    torch.testing.assert_close(loss.total / loss.count, expected)


def test_dummies_are_not_negatives() -> None:
    torch.manual_seed(0)
    similarity = torch.randn(3, 3, requires_grad=True)
    valid = torch.tensor([True, True, False])
    loss = contrastive_loss(similarity, torch.arange(3), valid, valid, smoothing=0.1)
    without = contrastive_loss(
        similarity[:2, :2], torch.arange(2), all_valid(2), all_valid(2), smoothing=0.1
    )
    assert loss.count == 2
    torch.testing.assert_close(loss.total, without.total)
    (gradient,) = torch.autograd.grad(loss.total, similarity)
    assert gradient.isfinite().all()
    assert not gradient[2].any()
    assert not gradient[:, 2].any()


def test_a_batch_of_dummies_has_a_contrastive_loss_of_zero() -> None:
    similarity = torch.randn(2, 2, requires_grad=True)
    none = ~all_valid(2)
    loss = contrastive_loss(similarity, torch.arange(2), none, none, smoothing=0.1)
    loss.total.backward()
    assert (loss.total.item(), loss.count) == (0.0, 0)
    assert similarity.grad is not None
    assert not similarity.grad.any()


def test_matching_counts_three_pairs_per_matched_one() -> None:
    logits = torch.randn(6, 2)
    matches = torch.tensor([1, IGNORED, 0, IGNORED, 0, IGNORED])
    loss = matching_loss(logits, matches)
    assert loss.count == 3
    torch.testing.assert_close(loss.total / loss.count, F.cross_entropy(logits[::2], matches[::2]))


def test_a_squared_distance_has_no_gradient_for_its_targets() -> None:
    vectors, targets = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    loss = squared_distance(vectors, targets)
    torch.testing.assert_close(loss.total / loss.count, F.mse_loss(vectors, targets))
    loss.total.backward()
    assert vectors.grad is not None
    assert targets.grad is None


@pytest.mark.parametrize("name", PRESETS)
def test_every_stage_of_every_preset_has_loss_terms_with_names_of_their_own(name: str) -> None:
    preset = system(name)
    for stage in (*preset.init, preset.pt, preset.sft):
        terms = loss_terms(preset.model, stage)
        names = [term.name for term in terms]
        assert len(set(names)) == len(names) > 0
        assert all(term.weight > 0 for term in terms)
        assert ("align" in names) == (stage.reference is not None)
        assert any(name.startswith("to_") for name in names) == (stage.generation is not None)


def test_published_weights_of_eqs_2_4_and_5() -> None:
    """MiniGPT-5's (model.py); NExT-GPT's, in whose IT a video's eq. 4 counts double."""

    def weights(name: str, stage: str) -> dict[str, float]:
        terms = loss_terms(system(name).model, system(name).stage(stage))
        return {term.name: term.weight for term in terms}

    minigpt_5 = {"text": 0.01, "to_image.align": 0.1, "to_image.denoise": 1.0}
    assert weights("minigpt_5", "pt") == weights("minigpt_5", "sft") == minigpt_5
    kinds = ("to_image", "to_video", "to_audio")
    next_gpt = {f"{kind}.{loss}": 1.0 for kind in kinds for loss in ("align", "denoise")}
    assert weights("next_gpt", "pt") == {"text": 1.0} | next_gpt
    assert weights("next_gpt", "sft") == {"text": 1.0} | next_gpt | {"to_video.align": 2.0}


def test_a_branch_may_do_without_one_of_the_losses() -> None:
    whole = Generation(branches=(BranchWeights(modality="audio", denoise=0.0),))
    preset = system("next_gpt").tiny()
    stage = replace(preset.sft, generation=whole)
    names = [term.name for term in loss_terms(preset.model, stage)]
    assert "to_audio.align" in names
    assert "to_audio.denoise" not in names
    assert [b.modality for b in stage.denoising_branches(preset.model)] == ["image", "video"]
    built = build_outputs(preset.model, stage, weights="random")
    unets = {kind: branch.generator.unet is not None for kind, branch in built.items()}
    assert unets == {"image": True, "video": True, "audio": False}
    twice = 2 * (BranchWeights(modality="audio"),)
    with pytest.raises(SpecError, match="want each modality once"):
        Generation(branches=twice)
    with pytest.raises(SpecError, match="one of them positive"):
        Generation(branches=(BranchWeights(modality="audio", align=0.0, denoise=0.0),))


def test_the_z_loss_is_the_squared_log_of_the_softmax_denominator() -> None:
    torch.manual_seed(0)
    logits = torch.randn(10, 7, requires_grad=True)
    loss = z_loss(logits)
    assert loss.count == 10
    torch.testing.assert_close(loss.total, logits.exp().sum(1).log().square().sum())
    assert z_loss(logits[:0]).total.item() == 0.0


def test_a_stage_has_a_z_loss_where_its_weight_says_so() -> None:
    preset = system("digits")
    without = [term.name for term in loss_terms(preset.model, preset.pt)]
    text, z = loss_terms(preset.model, replace(preset.pt, z_loss=1e-4))
    assert without == [text.name]
    assert (z.name, z.weight) == ("z", 1e-4)
    logits, targets = torch.randn(3, 7), torch.zeros(3, dtype=torch.long)
    assert torch.equal(z.fn((logits, targets)).total, z_loss(logits).total)
