"""Rollouts: what is sampled depends on seed, sample and number alone, and is judged as it says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from model.batch import IGNORED, Batch
from model.build import build_policy
from model.peft.reference import add_reference
from model.preference_lm import PreferenceLM
from model.presets import system
from model.spec import ModelSpec
from model.spec.peft import Lora
from model.spec.rlhf import Grpo
from pipeline.data.collate import pack
from pipeline.data.encode import SampleEncoder
from pipeline.data.loader import MicroBatch
from pipeline.data.preferences import Role
from pipeline.data.rollout_prompts import RolloutEncoder, RolloutPrompt
from pipeline.train.losses import compute_losses
from pipeline.train.preference_losses import divergence, grpo_loss, preference_terms
from pipeline.train.rewards import Answer, exact, load_rewards, total
from pipeline.train.rollouts import RolloutSettings, advantages, with_rollouts
from tests.worlds import preference_sample

GROUP, LONGEST = 3, 5
OBJECTIVE = Grpo(group=GROUP, max_new_tokens=LONGEST)


@pytest.fixture(scope="module")
def policy() -> PreferenceLM:
    """The digits preset without a trained projector: it says words, but not what it sees."""
    preset = system("digits")
    stage = preset.stage("rlhf")
    assert isinstance(stage.peft, Lora)
    model = build_policy(preset.model, stage, weights="pretrained")  # type: ignore[arg-type]
    add_reference(model.backbone, stage.peft)
    model.with_reference = False
    return model


@pytest.fixture
def prompts(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> list[RolloutPrompt]:
    one = SampleEncoder(spec, tokenizer, prompt="chat", max_tokens=192)
    encoder = RolloutEncoder(one, OBJECTIVE)
    return [encoder.encode(preference_sample(number), position=number) for number in range(4)]


def answered(
    groups: Sequence[Sequence[RolloutPrompt]],
    policy: PreferenceLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    rewards: Sequence[str] = ("exact",),
    updates: int = 1,
) -> list[Batch]:
    """Return the batches of one step whose micro-batches hold these prompts."""
    items = [
        MicroBatch(batch=pack(group), samples=len(group), prompts=tuple(group)) for group in groups
    ]
    settings = RolloutSettings(
        objective=replace(OBJECTIVE, updates=updates),
        rewards=load_rewards(rewards),
        seed=seed,
        end_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id,
        synced=False,
    )
    (step,) = with_rollouts(iter([items]), policy, tokenizer, settings)
    return [item.batch for item in step]


def sampled(batches: Sequence[Batch]) -> list[list[int]]:
    """Return the ids of every answer."""
    found = []
    for batch in batches:
        assert batch.sequences is not None
        for number in range(len(batch.sequences.roles_q)):
            own_t = batch.sequences_bt[0] == number
            labels_t = batch.labels_bt[0][own_t]
            found.append(labels_t[labels_t != IGNORED].tolist())
    return found


@pytest.mark.usefixtures("alone")
def test_answers_depend_on_seed_and_sample_alone(
    policy: PreferenceLM, prompts: list[RolloutPrompt], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Not on the micro-batch; the answers to a prompt are different ones."""
    together = sampled(answered([prompts], policy, tokenizer))
    apart = sampled(answered([prompts[:1], prompts[1:3], prompts[3:]], policy, tokenizer))
    assert together == apart
    assert len(together) == 4 * GROUP
    assert len({tuple(answer) for answer in together[:GROUP]}) > 1
    assert sampled(answered([prompts], policy, tokenizer, seed=1)) != together
    for answer in together:  # up to an end token, or the limit
        ends = tokenizer.eos_token_id in answer
        assert answer.index(tokenizer.eos_token_id) == len(answer) - 1 if ends else True
        assert ends or len(answer) == LONGEST


@pytest.mark.usefixtures("alone")
def test_a_medium_is_encoded_once_for_answers_and_update(
    policy: PreferenceLM,
    prompts: list[RolloutPrompt],
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = []
    encode = policy.encode
    monkeypatch.setattr(
        policy, "encode", lambda kind, values: encoded.append(len(values)) or encode(kind, values)
    )
    items = [MicroBatch(batch=pack(prompts), samples=4, prompts=tuple(prompts))]
    settings = RolloutSettings(
        objective=OBJECTIVE, rewards=(exact,), seed=0, end_ids=(2,), pad_id=0, synced=False
    )
    for step in with_rollouts(iter([items]), policy, tokenizer, settings):
        out = policy(step[0].batch, ["image"])
        losses = compute_losses(preference_terms(OBJECTIVE), out)
        assert losses["grpo"].count == 4 * GROUP
        losses["grpo"].total.backward()
    assert encoded == [4]
    assert policy.feature_kinds == frozenset()


@pytest.mark.usefixtures("alone")
def test_rewards_are_of_each_answer_and_advantages_of_each_group(
    policy: PreferenceLM,
    prompts: list[RolloutPrompt],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    (tmp_path / "own.py").write_text("def letters(answer):\n    return len(answer.text)\n")
    (batch,) = answered(
        [prompts], policy, tokenizer, rewards=[f"{tmp_path / 'own.py'}:letters", "exact"]
    )
    sequences = batch.sequences
    assert sequences is not None
    assert sequences.rewards_q is not None
    assert sequences.advantages_q is not None
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in sampled([batch])]
    truths = [prompt.sample.turns[-1].text for prompt in prompts for _ in range(GROUP)]
    expected = [
        len(text) + float(text.strip() == truth) for text, truth in zip(texts, truths, strict=True)
    ]
    assert sequences.rewards_q.tolist() == expected
    grouped = torch.tensor(expected).view(4, GROUP)
    torch.testing.assert_close(
        sequences.advantages_q.view(4, GROUP), advantages(grouped, scaled=True)
    )
    assert sequences.roles_q.tolist() == [Role.SAMPLED] * 4 * GROUP


@pytest.mark.usefixtures("alone")
def test_several_updates_know_the_policy_that_has_sampled(
    policy: PreferenceLM, prompts: list[RolloutPrompt], tokenizer: PreTrainedTokenizerBase
) -> None:
    """At the first one policy and old policy are one to the bit, so that nothing is clipped."""
    (batch,) = answered([prompts], policy, tokenizer, updates=2)
    policy.feature_kinds = frozenset(["image"])  # as during the step
    outputs = policy(batch, ["image"])
    policy.feature_kinds = frozenset()
    assert outputs.sequences.old_logps_o is not None
    assert torch.equal(outputs.logps_o, outputs.sequences.old_logps_o)
    (once,) = answered([prompts], policy, tokenizer)
    assert once.sequences is not None
    assert once.sequences.old_logps_o is None


def test_advantages() -> None:
    """By hand; (r - mean) / (std + 1e-4), as TRL 1.16 has it, and 0 where all are alike."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    each = 0.5 / (0.57735027 + 1e-4)
    expected = torch.tensor([[each, -each, -each, each], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages(rewards, scaled=True), expected)
    assert advantages(rewards, scaled=False)[0].tolist() == [0.5, -0.5, -0.5, 0.5]


def test_the_surrogate_is_clipped_above_and_below() -> None:
    """Ratios 1.5 and 0.5 with advantages of both signs; ε of 0.2 and, above, 0.28 (DAPO)."""
    logps = torch.tensor([1.5, 1.5, 0.5, 0.5]).log()
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    same = grpo_loss(logps, torch.zeros(4), signs)
    torch.testing.assert_close(same, torch.tensor([-1.2, 1.5, -0.5, 0.8]))
    higher = grpo_loss(logps, torch.zeros(4), signs, clip_high=0.28)
    torch.testing.assert_close(higher, torch.tensor([-1.28, 1.5, -0.5, 0.8]))


def test_the_divergence_is_never_negative_and_0_where_both_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    logps, reference = torch.randn(2, 100, generator=generator, dtype=torch.float64)
    assert (divergence(logps, reference) > 0).all()
    assert not divergence(logps, logps).any()


def test_rewards_of_the_users_own(tmp_path: Path) -> None:
    answer = Answer(sample=preference_sample(0), text=" BLUE", finished=True)
    answer = replace(answer, text=f" {answer.truth.upper()} ")
    assert exact(answer) == 1.0
    assert exact(replace(answer, text="none")) == 0.0
    assert load_rewards(["math:sqrt"])[0](16.0) == 4.0  # type: ignore[arg-type]
    (tmp_path / "bad.py").write_text("def wrong(answer):\n    return answer.nothing\n")
    for name, reason in (
        ("exactly", "want exact, model:RUN, judge, FILE.py:FUNCTION or MODULE:FUNCTION"),
        ("math:nothing", "nothing"),
        (f"{tmp_path}/none.py:f", "No such file"),
    ):
        with pytest.raises(UserError, match=reason):
            load_rewards([name])
    with pytest.raises(UserError, match=r"reward wrong: sample question-0-000000: AttributeError"):
        total(load_rewards([f"{tmp_path / 'bad.py'}:wrong"]), answer)
