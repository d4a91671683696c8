"""Trains the digits world's language model: a small LLaMA, from texts about scenes only.

It learns from text alone what a multimodal model needs from it: to repeat a description, and to
answer questions about it. An image token will encode all features of a mark at once, so the model
also reads scenes in shorthand: the three words of a mark in one position, their embeddings summed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from etl.digits.scenes import Scene, random_scene
from etl.digits.texts import QUESTION_MAKERS, Question, caption, questions

log = logging.getLogger(__name__)

VOCABULARY = 384
_PAD, _START, _END = "<pad>", "<s>", "</s>"
_IGNORED = -100


def config() -> LlamaConfig:
    """Return the shape of the language model: 4 layers of width 128."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


Position = tuple[int, ...]
"""The token ids in one position: one id, or the three words of a mark in shorthand."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, position by position, and which of its tokens are targets."""

    positions: list[Position]
    is_target: list[bool]


class Writer:
    """Writes texts about scenes of up to six marks.

    Scenes with more marks than any image make looking up worthwhile: among three marks a guess is
    correct too often.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> None:
        self._tokenizer = tokenizer
        self._rng = rng

    def document(self) -> Document:
        """Describe a scene, mostly in shorthand; then repeat the description, or ask about it."""
        scene = random_scene(self._rng, "train", most=int(self._rng.choice((3, 6))))
        text = Document(positions=[(self._tokenizer.bos_token_id,)], is_target=[False])
        if self._rng.random() < 0.8:
            self._shorthand(text, scene)
        else:
            self._add(text, caption(self._shuffled(scene), self._rng), is_target=False)
        if self._rng.random() < 0.3:
            self._add(text, caption(scene, self._rng), is_target=True, end=True)
            return text
        self._add(text, "\n", is_target=False)
        for _ in range(6):
            make = QUESTION_MAKERS[int(self._rng.integers(len(QUESTION_MAKERS)))]
            self.ask(text, make(scene, self._rng))
        return text

    def opening(self, scene: Scene) -> Document:
        """Start a dialogue about a scene in shorthand."""
        text = Document(positions=[(self._tokenizer.bos_token_id,)], is_target=[False])
        self._shorthand(text, scene)
        self._add(text, "\n", is_target=False)
        return text

    def ask(self, text: Document, question: Question) -> None:
        """Add a question, and its answer as target."""
        self._add(text, question.text, is_target=False)
        self._add(text, f" {question.answer}", is_target=True, end=True)

    def _shorthand(self, text: Document, scene: Scene) -> None:
        for mark in self._shuffled(scene).marks:
            words = (f" {mark.digit}", f" {mark.colour}", f" {mark.position}")
            # Each word is one token; a missing merge would show as a wrong number of ids.
            ids = tuple(number for word in words for number in self._ids(word))
            text.positions.append(ids)
            text.is_target.append(False)

    def _add(self, text: Document, words: str, *, is_target: bool, end: bool = False) -> None:
        ids = self._ids(words) + [self._tokenizer.eos_token_id] * end
        text.positions.extend((number,) for number in ids)
        text.is_target.extend([is_target] * len(ids))

    def _ids(self, words: str) -> list[int]:
        ids: list[int] = self._tokenizer(words, add_special_tokens=False)["input_ids"]
        return ids

    def _shuffled(self, scene: Scene) -> Scene:
        order = self._rng.permutation(len(scene.marks))
        return replace(scene, marks=tuple(scene.marks[number] for number in order))


def train_tokenizer(rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the world's texts; it encodes any other text byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((_sample_text(rng) for _ in range(5000)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # it begins a sequence, as LLaMA's
        single=f"{_START} $A", special_tokens=[(_START, tokenizer.token_to_id(_START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, bos_token=_START, eos_token=_END
    )


def _sample_text(rng: np.random.Generator) -> str:
    scene = random_scene(rng, "train", most=6)
    asked = questions(scene, rng, 3)
    return caption(scene, rng) + "".join(f"\n{item.text} {item.answer}" for item in asked)


def collate(documents: Sequence[Document]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids (B, T, 3), their weights (B, T, 3; 0 is padding), and labels (B, T)."""
    length = max(len(text.positions) for text in documents)
    ids_bt3 = torch.zeros(len(documents), length, 3, dtype=torch.long)
    weights_bt3 = torch.zeros(len(documents), length, 3)
    labels_bt = torch.full((len(documents), length), _IGNORED)
    for row, text in enumerate(documents):
        for column, (ids, is_target) in enumerate(zip(text.positions, text.is_target, strict=True)):
            ids_bt3[row, column, : len(ids)] = torch.tensor(ids)
            weights_bt3[row, column, : len(ids)] = 1
            if is_target:
                labels_bt[row, column] = ids[0]
    return ids_bt3, weights_bt3, labels_bt


def predict(model: LlamaForCausalLM, documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """Return the logits (M, V) and ids (M,) of all target tokens."""
    ids_bt3, weights_bt3, labels_bt = collate(documents)
    embeddings_btd = (model.get_input_embeddings()(ids_bt3) * weights_bt3[..., None]).sum(2)
    hidden_btd = model.model(
        inputs_embeds=embeddings_btd,
        attention_mask=(weights_bt3[..., 0] > 0).long(),
        use_cache=False,
    ).last_hidden_state
    targets_bt = labels_bt[:, 1:]
    is_target_bt = targets_bt != _IGNORED
    return model.lm_head(hidden_btd[:, :-1][is_target_bt]), targets_bt[is_target_bt]


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for the rest.

    With AdamW alone the model keeps guessing *which* mark is meant for thousands of steps.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    return [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def _lr_factor(step: int, steps: int) -> float:
    """Warmup over 20 steps, constant, then linear decay to zero over the last third."""
    return min(1.0, (step + 1) / 20, 3 * (steps - step) / steps)


def train(folder: Path, *, steps: int, seed: int = 0) -> None:
    """Train for `steps` batches of 48 random texts; save model and tokenizer to `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = train_tokenizer(rng)
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM(config())
    optimizers = _optimizers(model)
    schedules = [LambdaLR(o, partial(_lr_factor, steps=steps)) for o in optimizers]
    writer = Writer(tokenizer, rng)
    for step in range(steps):
        logits, targets = predict(model, [writer.document() for _ in range(48)])
        loss = F.cross_entropy(logits, targets)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 50 == 49 or step == steps - 1:
            log.info("language step %d: loss %.4f, %s", step + 1, loss, evaluate(model, tokenizer))
            model.save_pretrained(folder)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Return the share of correct answers about scenes in shorthand, 60 of each kind."""
    rng = np.random.default_rng(1)
    writer = Writer(tokenizer, rng)
    scores = {}
    for make in QUESTION_MAKERS:
        correct = 0
        for _ in range(60):
            scene = random_scene(rng, "train")
            text = writer.opening(scene)
            question = make(scene, rng)
            writer.ask(text, question)
            logits, targets = predict(model, [text])
            correct += bool((logits.argmax(-1) == targets).all())
        scores[question.kind] = correct / 60
    return scores
