"""Objectives of RLHF: what is learnt from preferences and written feedback (survey §3.2).

A sample of preferences holds the chosen answer as its last turn, the rejected one, and perhaps
feedback about that. Each objective trains on several sequences of it, which share its media.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.spec.base import SpecError, check_at_least, check_fraction


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Direct preference optimization (Rafailov et al. 2023, eq. 7), with what multimodal data need.

    Args:
        beta: strength of the divergence from the reference.
        length_normalized: whether log-ratios are means over the answer's tokens instead of sums
            (Grattafiori et al. 2024, *The Llama 3 Herd of Models*, §4.1.4 report the need; TRL's
            `sigmoid_norm`). `beta` then is to be larger by about the length of an answer.
        sft_weight: of the chosen answer's cross-entropy per token beside it (Pang et al. 2024,
            *Iterative Reasoning Preference Optimization*, eq. 1).
        media_weight: of mDPO's preference for the true image over a corrupted one, given the chosen
            answer (Wang et al. 2024, arXiv:2406.11839, eq. 4); 0 leaves out the third sequence.
        anchor_weight: of mDPO's anchor, which keeps the chosen answer's reward above 0 (eq. 5).
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = 0.1
    length_normalized: bool = False
    sft_weight: float = 0.0
    media_weight: float = 0.0
    anchor_weight: float = 0.0

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 0, "beta", "sft_weight", "media_weight", "anchor_weight")


@dataclass(frozen=True, kw_only=True)
class Kto:
    """Kahneman-Tversky optimization, for thumbs up or down (Ethayarajh et al. 2024, eq. 7).

    Its reference point z₀ is 0, as in APO-zero's unpaired form (D'Oosterlinck et al. 2024, eq. 7):
    the paper's estimate over a micro-batch would depend on how a step is split over ranks.

    Args:
        beta: strength of the divergence from the reference.
        desirable_weight, undesirable_weight: λ_D and λ_U, for data with more of one than of the
            other.
    """

    kind: Literal["kto"] = "kto"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 0, "beta", "desirable_weight", "undesirable_weight")


@dataclass(frozen=True, kw_only=True)
class Dress:
    """Conditional reinforcement on feedback (Chen et al. 2023, *DRESS*, arXiv:2311.10081, §3.3).

    Each answer is learnt by cross-entropy, given feedback about it that stands before it: the
    chosen one given `good`, the rejected one given its own critique. With `refinement` also the
    turn in which the critique leads from the rejected answer to the chosen one.

    Args:
        good: the feedback about chosen answers; answers are asked for with it (`ask`, `evaluate`).
        refinement: weight of that turn as a sequence of its own: 1 has it, 0 leaves it out.
    """

    kind: Literal["dress"] = "dress"
    good: str = "The answer is helpful, honest and harmless."
    refinement: bool = True


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A reward model, for GRPO: a scalar for an answer, learnt from which of two is preferred.

    The loss is Bradley and Terry's (Ouyang et al. 2022, *InstructGPT*, eq. 1, with two answers to a
    prompt), as in LLaVA-RLHF, whose prompts have images (Sun et al. 2023, arXiv:2309.14525, §2.1).

    Args:
        center: weight of (r_chosen + r_rejected)², which keeps rewards around 0, since preferences
            only determine differences (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2); TRL's
            `center_rewards_coefficient`, for which it suggests 0.01.
    """

    kind: Literal["reward"] = "reward"
    center: float = 0.0

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 0, "center")


Preference = Dpo | Kto | Dress | RewardModel
"""Objectives of RLHF from recorded preferences."""


_JUDGE = """Grade an answer to a question.

Question: {question}

Reference answer: {truth}

Answer to be graded: {answer}

Reply with nothing but a number from 0 (wrong) to 1 (as good as the reference answer)."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A language model behind an OpenAI-compatible address, whose grades are a reward of GRPO.

    Args:
        model: its name there.
        address: such as http://127.0.0.1:8000/v1; "" stands for OPENAI_BASE_URL of the environment,
            which may change between the starts of a run.
        prompt: what it is asked. `{question}`, `{truth}` and `{answer}` stand for the question, the
            sample's own answer, and the one to be graded. The last number of the reply is the
            reward.
        images: whether the images of the question, and those of the answer, are sent, too.
        max_tokens: longest reply.
        parallel: how many requests a rank makes at the same time.
    """

    model: str
    address: str = ""
    prompt: str = _JUDGE
    images: bool = False
    max_tokens: int = 16
    parallel: int = 8

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 1, "max_tokens", "parallel")
        if "{answer}" not in self.prompt:
            raise SpecError("prompt: has no {answer}, which is to be graded")


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Group relative policy optimization from verifiable rewards (Shao et al. 2024, §4.1).

    In each step the model answers each prompt several times; the advantage of an answer is its
    reward relative to those of the others.

    Args:
        group: answers to a prompt.
        max_new_tokens: longest answer.
        temperature: of sampling, and of the log-probabilities that are trained.
        top_p: share of the probability that is sampled from.
        rewards: `exact` (the answer is the sample's), `model:RUN` (a reward model), `judge`, or
            functions of the user's own, as `FILE.py:FUNCTION` or `MODULE:FUNCTION`; an answer's are
            added up.
        judge: the language model that the reward `judge` asks.
        scaled: whether advantages are divided by the group's standard deviation; Dr. GRPO leaves
            it out, since it favours questions that are nearly always, or never, answered right
            (Liu et al. 2025, §3.1).
        per_token: whether every token of the step weighs the same, as in DAPO (Yu et al. 2025,
            eq. 8), and not every answer.
        beta: weight of the divergence from the reference (the k3 estimate of Shao et al., eq. 4).
        updates: optimizer updates from the answers of a step (μ in Shao et al., algorithm 1). With
            one, the ratio of new and old policy is 1, and its clipping without effect.
        clip_low, clip_high: how far that ratio may fall below and rise above 1; DAPO's
            "clip-higher" is 0.2 and 0.28 (Yu et al. 2025, §3.1).
        media_noise: of a model with output branches: standard deviation of the noise that is added
            to the condition of each generated medium, relative to the root mean square of the
            condition. The condition is an action of the policy's then, as its tokens are; at 0 the
            media are those of inference, and only the tokens are learnt.
    """

    kind: Literal["grpo"] = "grpo"
    group: int = 8
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    rewards: tuple[str, ...] = ("exact",)
    judge: Judge | None = None
    scaled: bool = True
    per_token: bool = False
    beta: float = 0.0
    updates: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    media_noise: float = 0.3

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 2, "group")
        check_at_least(self, 1, "max_new_tokens", "updates")
        check_at_least(self, 0, "beta", "clip_low", "clip_high", "media_noise")
        check_fraction(self, "top_p")
        if self.temperature <= 0:
            raise SpecError(
                f"temperature: {self.temperature}, want more than 0, to get different answers"
            )
        if not self.rewards:
            raise SpecError("rewards: name at least one")
        if (self.judge is not None) != ("judge" in self.rewards):
            raise SpecError('rewards: "judge" needs the field `judge`, and the field the reward')


Objective = Preference | Grpo
"""Objectives of RLHF."""
