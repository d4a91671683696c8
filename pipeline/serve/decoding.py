"""One step of decoding for requests of any age: the prompt of one, then a token of each.

Most backbones decode all requests in one batch. Those whose decoder takes more than positions and a
mask (an encoder's states, media that every layer attends to, experts, a bidirectional context), or
whose layers see a window, decode request by request, each with transformers' own cache: requests
still join and leave at every step, but share no matrix product.

Shapes: n requests, t positions of a prompt, s positions including cached ones, d width, v
vocabulary followed by the signal tokens.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from model.batch_invariance import ALIGNED
from model.fusion.conditioning import inject_decoder_kwargs
from model.multimodal_lm import MultimodalLM
from model.spec.fusion import Splice
from pipeline.data.collate import collate
from pipeline.data.encode import Example
from pipeline.serve.kv_cache import SlotCache


class StepDecoder(ABC):
    """Decodes the requests of one model, in the order in which they were added.

    Args:
        model: in evaluation mode.
        pad_id: the padding token, with which a seq2seq decoder starts.

    Attributes:
        device: of the model.
    """

    def __init__(self, model: MultimodalLM, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        self._backbone: Any = model.backbone
        self._branches = model.output_branches()
        self.device = next(model.parameters()).device

    @abstractmethod
    def add(self, example: Example) -> Tensor:
        """Add a request after the others; returns the hidden state (d,) of its first new token."""

    @abstractmethod
    def step(self, ids: Sequence[int]) -> Tensor:
        """Append a token to each request; returns the hidden states (n, d) of the next ones."""

    @abstractmethod
    def remove(self, index: int) -> None:
        """Remove a request; the last one takes its place."""

    @abstractmethod
    def reset(self) -> None:
        """Remove all requests."""

    def logits(self, hidden_nd: Tensor) -> Tensor:
        """Return the logits (n, v)."""
        logits_nv: Tensor = self._backbone.get_output_embeddings()(hidden_nd)
        signals = [branch.head(hidden_nd).to(logits_nv) for branch in self._branches.values()]
        return torch.cat([logits_nv, *signals], dim=-1) if signals else logits_nv

    def _prompt(self, example: Example, multiple: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the backbone's input (1, t, d) for a prompt, padded on the right, and arguments.

        A prompt is encoded alone, so that nothing depends on the others.
        """
        batch = collate([example], pad_id=self._pad_id, side="right", multiple=multiple)
        batch = batch.to(self.device)
        embeddings_1td, kwargs = self._model.embed(batch, self._model.media_tokens(batch))
        if batch.generation_targets:  # media of the assistant's earlier answers
            embeddings_1td = self._model.embed_signals(embeddings_1td, batch)
        return embeddings_1td, dict(kwargs)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        """Return the input embeddings (n, 1, d) of tokens, of which some may be signal tokens."""
        vocabulary = self._model.spec.backbone.vocabulary
        ids_n1 = torch.tensor(ids, device=self.device)[:, None]
        words_n1d: Tensor = self._backbone.get_input_embeddings()(ids_n1.clamp(max=vocabulary - 1))
        if max(ids) < vocabulary:
            return words_n1d
        signals_sd = torch.cat([each.signal_embeddings() for each in self._branches.values()])
        signals_n1d = signals_sd[(ids_n1 - vocabulary).clamp(min=0)].to(words_n1d)
        return torch.where((ids_n1 >= vocabulary)[..., None], signals_n1d, words_n1d)


class BatchDecoder(StepDecoder):
    """Decodes one token of every request in one forward pass."""

    def __init__(self, model: MultimodalLM, pad_id: int) -> None:
        super().__init__(model, pad_id)
        self._decoder = self._backbone.get_decoder()
        self._cache = SlotCache(len(_new_cache(model).layers))

    def add(self, example: Example) -> Tensor:
        """See the base class. The padding comes last: no token attends to it."""
        embeddings_1td, _ = self._prompt(example, ALIGNED)
        cache, length = _new_cache(self._model), len(example.ids)
        hidden_1td: Tensor = self._decoder(
            inputs_embeds=embeddings_1td, past_key_values=cache, use_cache=True
        ).last_hidden_state
        self._cache.add(cache, length)
        return hidden_1td[0, length - 1]

    def step(self, ids: Sequence[int]) -> Tensor:
        """See the base class."""
        mask_ns, position_n1 = self._cache.begin_step(self.device)
        hidden_n1d: Tensor = self._decoder(
            inputs_embeds=self._embed(ids),
            attention_mask=mask_ns,
            position_ids=position_n1,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden_n1d[:, 0]

    def remove(self, index: int) -> None:
        """See the base class."""
        self._cache.remove(index)

    def reset(self) -> None:
        """See the base class."""
        self._cache.reset()


@dataclass
class _Own:
    """A request's own cache, and the decoder's arguments in every step."""

    cache: Any
    kwargs: Mapping[str, Tensor]
    always: dict[str, Tensor] = field(default_factory=dict)


class SingleDecoder(StepDecoder):
    """Decodes the requests of a step one after the other."""

    def __init__(self, model: MultimodalLM, pad_id: int) -> None:
        super().__init__(model, pad_id)
        self._seq2seq = model.spec.backbone.seq2seq
        self._rows: list[_Own] = []

    def add(self, example: Example) -> Tensor:
        """See the base class."""
        embeddings_1td, kwargs = self._prompt(example, 1)
        if self._seq2seq:
            attention_1t = torch.ones(embeddings_1td.shape[:2], device=self.device).long()
            states_1td = self._backbone.get_encoder()(
                inputs_embeds=embeddings_1td, attention_mask=attention_1t
            ).last_hidden_state
            always = {"encoder_hidden_states": states_1td, "encoder_attention_mask": attention_1t}
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            self._rows.append(_Own(cache, kwargs, always))
            return self._next(self._rows[-1], self._pad_id)
        own = _Own(_new_cache(self._model), kwargs)
        hidden_d = self._forward(own, inputs_embeds=embeddings_1td)
        self._rows.append(own)
        return hidden_d

    def step(self, ids: Sequence[int]) -> Tensor:
        """See the base class."""
        return torch.stack(
            [self._next(own, number) for own, number in zip(self._rows, ids, strict=True)]
        )

    def _next(self, own: _Own, number: int) -> Tensor:
        if self._seq2seq:  # whose decoder may scale its own embeddings
            return self._forward(own, input_ids=torch.tensor([[number]], device=self.device))
        return self._forward(own, inputs_embeds=self._embed([number]))

    def _forward(self, own: _Own, **inputs: Tensor) -> Tensor:
        [given] = inputs.values()
        length = own.cache.get_seq_length() + given.shape[1]
        if not self._seq2seq:
            own.always["attention_mask"] = torch.ones(1, length, device=self.device).long()
        decoder = self._backbone.get_decoder()
        with inject_decoder_kwargs(decoder, own.kwargs):
            hidden_1td: Tensor = decoder(
                **inputs, **own.always, past_key_values=own.cache, use_cache=True
            ).last_hidden_state
        return hidden_1td[0, -1]

    def remove(self, index: int) -> None:
        """See the base class."""
        self._rows[index] = self._rows[-1]
        self._rows.pop()

    def reset(self) -> None:
        """See the base class."""
        self._rows.clear()


def step_decoder(model: MultimodalLM, pad_id: int) -> StepDecoder:
    """Return what decodes the requests of a model, in one batch if its backbone can."""
    return (BatchDecoder if decodes_in_batches(model) else SingleDecoder)(model, pad_id)


def decodes_in_batches(model: MultimodalLM) -> bool:
    """Return whether requests of different lengths can share a step of the backbone."""
    backbone = model.spec.backbone
    if backbone.seq2seq or backbone.prefix_lm or not isinstance(model.spec.fusion, Splice):
        return False
    whole = all(type(layer) is DynamicLayer for layer in _new_cache(model).layers)
    decoder: Any = model.backbone.get_decoder()
    return whole and "position_ids" in inspect.signature(decoder.forward).parameters


def _new_cache(model: MultimodalLM) -> DynamicCache:
    return DynamicCache(config=model.backbone.config)
