"""Output branches: which hidden states are read, and dropout of the condition for guidance."""

from dataclasses import replace

import pytest
import torch

from model.batch import Batch, GenerationTargets
from model.generators import latent_diffusion
from model.output_branch import OutputBranch, signal_hidden
from model.output_projectors import output_transformer
from model.spec import SpecError
from model.spec.generators import StableDiffusion
from model.spec.output_branches import OutputBranchSpec, OutputTransformer

WIDTH, SIGNALS = 16, 2
AT = OutputBranchSpec(signals=SIGNALS).tiny()
BEFORE = replace(AT, projector=replace(AT.projector, states="before"))


def batch(mask, positions=None):
    """Return a micro-batch whose signal tokens are where the mask says."""
    mask_bt = torch.tensor(mask, dtype=torch.bool)
    targets = GenerationTargets(
        media_mask_bt=mask_bt,
        seeds_g=torch.zeros(int(mask_bt.sum()) // SIGNALS, dtype=torch.long),
        ids_gl=None,
        input_values=torch.zeros(0),
    )
    return Batch(
        ids_bt=torch.zeros_like(mask_bt, dtype=torch.long),
        attention_bt=torch.ones_like(mask_bt, dtype=torch.long),
        labels_bt=torch.zeros_like(mask_bt, dtype=torch.long),
        context_bt=torch.zeros_like(mask_bt),
        generation_targets={"to_image": targets},
        positions_bt=positions,
    )


def test_a_projector_reads_the_states_at_its_signal_tokens_or_before_them():
    """NExT-GPT's reads the former, plus their embeddings; MiniGPT-5's and CoDi-2's the latter."""
    hidden, signals = torch.randn(2, 5, WIDTH), torch.randn(SIGNALS, WIDTH)
    two = batch([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
    at = signal_hidden(two, AT, hidden, signals)
    before = signal_hidden(two, BEFORE, hidden, signals)
    assert torch.equal(at, torch.stack([hidden[0, 2:4], hidden[1, 1:3]]) + signals)
    assert torch.equal(before, torch.stack([hidden[0, 1:3], hidden[1, 0:2]]))


def test_no_state_is_before_the_first_token_of_a_sample():
    hidden, signals = torch.randn(1, 6, WIDTH), torch.randn(SIGNALS, WIDTH)
    packed = batch([[0, 0, 1, 1, 0, 0]], positions=torch.tensor([[0, 1, 0, 1, 2, 3]]))
    [before] = signal_hidden(packed, BEFORE, hidden, signals)
    assert not before[0].any()
    assert torch.equal(before[1], hidden[0, 2])
    [before] = signal_hidden(batch([[1, 1, 0, 0, 0, 0]]), BEFORE, hidden, signals)
    assert not before[0].any()
    assert torch.equal(before[1], hidden[0, 0])


def branch_of(dropout):
    torch.manual_seed(0)
    spec = replace(AT, condition_dropout=dropout)
    generator = latent_diffusion.build(
        spec.generator, denoising=True, weights="random", dtype=torch.float32
    )
    return OutputBranch(
        spec,
        WIDTH,
        projector=output_transformer.build(spec.projector, WIDTH, spec.generator.streams),
        generator=generator,
        denoising=True,
    )


def test_a_dropped_condition_is_of_no_signal_tokens_and_no_caption():
    """As in MiniGPT-5: the projector gets zeros, and eq. 4 pulls H towards τ("")."""
    count, spec = 40, AT.generator
    targets = GenerationTargets(
        media_mask_bt=torch.zeros(1, 1, dtype=torch.bool),
        seeds_g=torch.arange(count),
        ids_gl=torch.full((count, 77), 7),
        input_values=torch.zeros(count, *spec.shape, dtype=torch.uint8),
    )
    hidden = torch.randn(count, SIGNALS, WIDTH)
    branch = branch_of(0.25)
    with torch.no_grad():
        output = branch.train().generation_output(targets, hidden, embeds_given=False)
        empty, given = branch.generator.negative(1)[0], branch.generator.embed(targets.ids_gl)
        zeros = branch.projector(torch.zeros(1, SIGNALS, WIDTH))[0]
        under = branch.projector(hidden)
    near = {"atol": 1e-5, "rtol": 1e-5}
    dropped = [number for number in range(count) if branch._dropped(torch.tensor([number]))]
    assert 3 < len(dropped) < 20
    for number in range(count):
        target, condition = output.target_embeds_glw[number], output.condition_embeds_glw[number]
        drops = number in dropped
        torch.testing.assert_close(target, empty if drops else given[number], **near)
        torch.testing.assert_close(condition, zeros if drops else under[number], **near)
    # Noise and time step are those of the seed, dropped or not.
    noise = branch_of(0.0).train().generation_output(targets, hidden, embeds_given=False)
    assert torch.equal(
        output.noise_prediction.noise_target_gcyx, noise.noise_prediction.noise_target_gcyx
    )
    with torch.no_grad():
        whole = branch.eval().generation_output(targets, hidden, embeds_given=False)
    torch.testing.assert_close(whole.condition_embeds_glw, under, **near)


def test_the_backward_pass_of_a_dummy_calls_frozen_modules_too():
    """Under ZeRO-3 these are collectives. MiniGPT-5's IT freezes its projector's first layers."""
    branch = branch_of(0.0).train()
    branch.projector.enter.requires_grad_(False)
    called = []
    branch.projector.enter.register_full_backward_hook(lambda *_: called.append(1))
    output = branch.generation_output(None, torch.zeros(0, SIGNALS, WIDTH), embeds_given=False)
    assert len(output.condition_embeds_glw) == 0
    output.condition_embeds_glw.square().sum().backward()
    assert called


def test_branches_that_do_not_fit_are_refused():
    with pytest.raises(SpecError, match="the condition is 768 wide, but the projector"):
        OutputBranchSpec(projector=OutputTransformer(width=1024, projects=False))
    with pytest.raises(SpecError, match="generates image, not audio"):
        OutputBranchSpec(modality="audio", generator=StableDiffusion())
    with pytest.raises(SpecError, match="condition_dropout: 2, want a number from 0 to 1"):
        OutputBranchSpec(condition_dropout=2)
