"""Rollouts of GRPO: in each step the policy answers the step's questions, and is judged.

What an answer is depends on the weights, the seed, the step, the sample and the answer's number: a
killed run gives the same ones again, on any number of ranks (on the CPU, in float32, with one
thread a rank: elsewhere last bits of logits depend on the batch).

Shapes: b sequences (all answers to all prompts of a micro-batch), t new tokens, q sequences.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.batch import IGNORED, Batch
from model.batch_invariance import ALIGNED, batch_invariant
from model.features import media_features
from model.preference_lm import PreferenceLM
from model.sampling import Sampling, TokenChoice
from model.signal_decoding import Condition, Decoded, decode
from model.spec.output_branches import OutputBranchSpec
from model.spec.rlhf import Grpo
from pipeline.data.collate import collate, dummy_example, pack
from pipeline.data.encode import Example
from pipeline.data.loader import MicroBatch
from pipeline.data.preferences import Role, join_sequences
from pipeline.data.rollout_prompts import RolloutPrompt
from pipeline.distributed import device, max_over_ranks
from pipeline.train.judge_reward import JudgeReward
from pipeline.train.rewards import Answer, Reward, total
from pipeline.train.sampled_media import SampledMedium, generate_media, sample_condition


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How prompts are answered and judged.

    Args:
        objective: group, length and sampling.
        rewards: of the answers.
        judge: who grades them, too, if anyone does.
        seed: of the run.
        end_ids: of which any ends an answer.
        pad_id: the padding token.
        synced: whether the ranks must decode together, as under ZeRO-3.
    """

    objective: Grpo
    rewards: tuple[Reward, ...]
    seed: int
    end_ids: tuple[int, ...]
    pad_id: int
    synced: bool
    judge: JudgeReward | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """An answer of the policy's.

    Args:
        ids: its tokens, up to the one that ends it; signal tokens follow the vocabulary.
        answer: what rewards are given for.
        media: those in it.
    """

    ids: list[int]
    answer: Answer
    media: tuple[SampledMedium, ...] = ()


def with_rollouts(
    batches: Iterator[list[MicroBatch]],
    model: PreferenceLM,
    tokenizer: PreTrainedTokenizerBase,
    settings: RolloutSettings,
) -> Iterator[list[MicroBatch]]:
    """Yield each step's micro-batches with the policy's answers in place of their prompts.

    A collective: every rank answers in each micro-step, with a dummy prompt where it has none. A
    medium is encoded here, once; the answers and the update after them read its features.
    """
    cached = frozenset(model.feature_kinds)
    for items in batches:
        training = model.training
        model.eval()
        used = _used(items, model)
        encoded = [
            replace(item, prompts=_with_features(item.prompts, model, kinds, cached, settings))
            for item, kinds in zip(items, used, strict=True)
        ]
        model.feature_kinds = frozenset(model.spec.modalities)
        rollouts = [
            _sample(item.prompts, model, tokenizer, kinds, settings)
            for item, kinds in zip(encoded, used, strict=True)
        ]
        rewards = iter(_rewards([one.answer for own in rollouts for one in own], settings))
        answered = [
            _answered(item, own, [next(rewards) for _ in own], model, kinds, settings)
            for item, own, kinds in zip(encoded, rollouts, used, strict=True)
        ]
        if settings.objective.updates > 1:
            used = _used(answered, model)
            answered = [
                _with_old_logps(item, model, kinds)
                for item, kinds in zip(answered, used, strict=True)
            ]
        model.train(training)
        yield answered
        model.feature_kinds = cached


def _used(items: Sequence[MicroBatch], model: PreferenceLM) -> list[list[str]]:
    """Return per micro-batch the kinds of media that any rank has in it; a collective."""
    kinds = (*model.spec.modalities, *model.output_branches())
    flags = [[item.batch.count(kind) > 0 for kind in kinds] for item in items]
    flags_ik = torch.tensor(flags, dtype=torch.int32, device=device())
    dist.all_reduce(flags_ik, op=dist.ReduceOp.MAX)
    return [
        [kind for kind, flag in zip(kinds, row, strict=True) if flag] for row in flags_ik.tolist()
    ]


@torch.no_grad()
def _with_features(
    prompts: Sequence[RolloutPrompt],
    model: PreferenceLM,
    used: Sequence[str],
    cached: Collection[str],
    settings: RolloutSettings,
) -> tuple[RolloutPrompt, ...]:
    """Return prompts with the features of their media in place of the encoders' input."""
    examples: Sequence[Example] = prompts or [dummy_example(settings.pad_id, seq2seq=False)]
    batch = collate(examples, pad_id=settings.pad_id, side="left").to(device())
    features: dict[str, Iterator[Tensor]] = {}
    for branch in model.spec.inputs:
        kind = branch.modality
        if kind not in used:
            continue
        encode = partial(model.encode, kind)
        given = kind in cached
        own = batch.media.get(kind)
        features_mfnd = media_features(branch, encode, own, given=given, device=batch.ids_bt.device)
        features[kind] = iter(features_mfnd.cpu())
    return tuple(
        replace(
            prompt,
            media=tuple(
                replace(medium, input_values=None, features=next(features[medium.kind]))
                for medium in prompt.media
            ),
        )
        for prompt in prompts
    )


def _rewards(answers: Sequence[Answer], settings: RolloutSettings) -> list[float]:
    """Return the rewards of a step's answers but for those of reward models; a collective."""
    judged = settings.judge(answers) if settings.judge is not None else [0.0] * len(answers)
    return [
        total(settings.rewards, answer) + grade
        for answer, grade in zip(answers, judged, strict=True)
    ]


def _answered(
    item: MicroBatch,
    rollouts: Sequence[Rollout],
    rewards: Sequence[float],
    model: PreferenceLM,
    used: Sequence[str],
    settings: RolloutSettings,
) -> MicroBatch:
    """Return a micro-batch with answers in place of its prompts; a collective."""
    group, prompts = settings.objective.group, item.prompts
    if not prompts:
        _model_rewards(model, item.batch, used)
        return item
    batch = pack(
        [
            _joined(prompt, rollouts[number * group : (number + 1) * group], model.spec.outputs)
            for number, prompt in enumerate(prompts)
        ]
    )
    assert batch.sequences is not None
    rewards_q = torch.tensor(rewards) + _model_rewards(model, batch, used)
    advantages_q = advantages(rewards_q.view(-1, group), scaled=settings.objective.scaled).flatten()
    sequences = replace(batch.sequences, rewards_q=rewards_q, advantages_q=advantages_q)
    return replace(item, batch=replace(batch, sequences=sequences))


def _model_rewards(model: PreferenceLM, batch: Batch, used: Sequence[str]) -> Tensor:
    """Return the sum (q,) of what the reward models say of each answer; a collective."""
    if not model.reward_heads:
        return torch.zeros(())
    return model.rewards(batch.to(device()), used).sum(0).cpu()


def _with_old_logps(item: MicroBatch, model: PreferenceLM, used: Sequence[str]) -> MicroBatch:
    """Return answers with their log-probabilities under the policy that has sampled them.

    They are computed as the updates will, so that the first one's ratio is 1; those of sampling
    differ from them by rounding.
    """
    logps_o = model.policy_logps(item.batch.to(device()), used).cpu()
    assert item.batch.sequences is not None
    sequences = replace(item.batch.sequences, old_logps_o=logps_o)
    return replace(item, batch=replace(item.batch, sequences=sequences))


def advantages(rewards_pg: Tensor, *, scaled: bool) -> Tensor:
    """Return the advantages (p, g) of g answers to each of p prompts (Shao et al. 2024, §4.1.2).

    Args:
        rewards_pg: of the answers.
        scaled: whether they are divided by the group's standard deviation.
    """
    centred_pg = rewards_pg - rewards_pg.mean(1, keepdim=True)
    return centred_pg / (rewards_pg.std(1, keepdim=True) + 1e-4) if scaled else centred_pg


def _sample(
    prompts: Sequence[RolloutPrompt],
    model: PreferenceLM,
    tokenizer: PreTrainedTokenizerBase,
    used: Sequence[str],
    settings: RolloutSettings,
) -> list[Rollout]:
    """Return all answers to prompts, those to one as neighbours; a collective."""
    pad_id, vocabulary = settings.pad_id, model.spec.backbone.vocabulary
    repeated = [(one, number) for one in prompts for number in range(settings.objective.group)]
    seeds = tuple(
        int(np.random.SeedSequence((settings.seed, one.position, number)).generate_state(1)[0])
        for one, number in repeated
    )
    rows: list[Example] = [one for one, _ in repeated]
    rows = rows or [dummy_example(pad_id, seq2seq=False)]
    batch = collate(rows, pad_id=pad_id, side="left", multiple=ALIGNED).to(device())
    decoded = _decode(model, batch, seeds or (0,), used, settings)
    ids = decoded.ids_bt.tolist()
    sampled = [
        _sampled_media(
            [each for each in decoded.media if each.row == row], one, number, model, settings
        )
        for row, (one, number) in enumerate(repeated)
    ]
    flat = [medium for own in sampled for medium in own]
    media = iter(generate_media(model, flat, synced=settings.synced))
    rollouts = []
    for row, ((one, _), own) in enumerate(zip(repeated, sampled, strict=True)):
        new = _until_end(ids[row], own, settings)
        words = [number for number in new if number < vocabulary]
        answer = Answer(
            sample=one.sample,
            text=tokenizer.decode(words, skip_special_tokens=True),
            finished=new[-1] in settings.end_ids,
            media=tuple(next(media) for _ in own),
        )
        rollouts.append(Rollout(ids=new, answer=answer, media=own))
    return rollouts


def _decode(
    model: PreferenceLM,
    batch: Batch,
    seeds: Sequence[int],
    used: Sequence[str],
    settings: RolloutSettings,
) -> Decoded:
    """Return tokens and conditions of the answers to a batch of prompts; a collective."""
    objective = settings.objective
    sampling = Sampling(temperature=objective.temperature, top_p=objective.top_p)
    options: dict[str, Any] = {
        "max_new_tokens": objective.max_new_tokens,
        "pad_id": settings.pad_id,
        "end_ids": settings.end_ids,
        "used": used,
    }
    with batch_invariant(model):
        if not model.output_branches():
            choose = TokenChoice(sampling, seeds)
            ids_bt = model.generate(batch, choose=choose, synced=settings.synced, **options)
            return Decoded(ids_bt, ())
        most = max_over_ranks if settings.synced else None
        return decode(model, batch, sampling=sampling, seeds=seeds, most=most, **options)


def _sampled_media(
    media: Sequence[Condition],
    prompt: RolloutPrompt,
    answer: int,
    model: PreferenceLM,
    settings: RolloutSettings,
) -> tuple[SampledMedium, ...]:
    """Return the media of an answer, in reading order, with noise in their conditions."""
    branches: dict[str, OutputBranchSpec] = {each.modality: each for each in model.spec.outputs}
    return tuple(
        sample_condition(
            branches[medium.modality],
            medium,
            noise=settings.objective.media_noise,
            key=(settings.seed, prompt.position, answer, number),
        )
        for number, medium in enumerate(media)
    )


def _until_end(
    ids: list[int], media: Sequence[SampledMedium], settings: RolloutSettings
) -> list[int]:
    """Return an answer up to the token that ends it, or up to its limit and the medium there."""
    limit = max([settings.objective.max_new_tokens, *(one.end for one in media)])
    ends = (place for place, number in enumerate(ids[:limit], 1) if number in settings.end_ids)
    return ids[: next(ends, limit)]


def _joined(
    prompt: RolloutPrompt, rollouts: Sequence[Rollout], outputs: Sequence[OutputBranchSpec]
) -> Example:
    """Return all answers to a prompt, each after the prompt, whose media are there once."""
    shapes = {branch.kind: branch.generator.condition_shape for branch in outputs}
    earlier = tuple(
        replace(target, cached_embeds=torch.zeros(shapes[target.kind]), noise=0.0)
        for target in prompt.generation_targets
    )
    prompt = replace(prompt, generation_targets=earlier)
    joined = join_sequences([(Role.SAMPLED, _continued(prompt, one)) for one in rollouts])
    return replace(joined, id=prompt.id, source=prompt.source)


def _continued(prompt: RolloutPrompt, rollout: Rollout) -> Example:
    """Return a prompt with an answer; of a medium's signal tokens only the first is a target."""
    ids, labels, kinds = [*rollout.ids], [*rollout.ids], [""] * len(rollout.ids)
    for one in rollout.media:
        count = one.end - one.start
        ids[one.start : one.end] = [0] * count
        labels[one.start + 1 : one.end] = [IGNORED] * (count - 1)
        kinds[one.start : one.end] = [one.target.kind] * count
    targets = tuple(one.target for one in rollout.media)
    return Example(
        ids=[*prompt.ids, *ids],
        labels=[*prompt.labels, *labels],
        kinds=[*prompt.kinds, *kinds],
        media=prompt.media,
        generation_targets=(*prompt.generation_targets, *targets),
    )
