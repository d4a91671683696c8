"""The requests of one model that are decoded together, each at its own place in its answer.

Shapes: n requests, d width, v vocabulary followed by the signal tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS
from model.output_branch import signal_ids
from model.sampling import choose_token, token_rng
from model.signal_decoding import Condition, condition_of, next_signals
from pipeline.serve.decoding import step_decoder
from pipeline.serve.jobs import Done, Job, Likely, Piece, TokenLogprobs
from pipeline.serve.models import ServedModel
from pipeline.serve.text_stream import TextStream


@dataclass(eq=False, kw_only=True)
class Running:
    """An answer in progress.

    Attributes:
        ids: so far; signal tokens follow the vocabulary.
        states: per id the hidden state that predicts it, where the model generates media.
        unreported: log-probabilities of tokens whose text has not been passed on.
        reason: why the answer is complete; empty while it is not.
    """

    job: Job
    stream: TextStream
    rng: torch.Generator
    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    unreported: list[TokenLogprobs] = field(default_factory=list)
    reason: str = ""


class Lane:
    """Decodes the requests of one model.

    Args:
        served: the model, whose weights are loaded.

    Attributes:
        running: the answers in progress.
    """

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self._tokenizer = served.tokenizer
        self._decoder = step_decoder(served.module, served.tokenizer.pad_token_id)
        self._branches = served.module.output_branches()
        self._vocabulary = served.module.spec.backbone.vocabulary
        ids = signal_ids([each.spec for each in self._branches.values()], self._vocabulary)
        self._next = next_signals(ids.values())
        self._placeholders = {numbers[0]: PLACEHOLDERS[kind] for kind, numbers in ids.items()}
        self._by_first = {
            ids[branch.spec.modality][0]: branch for branch in self._branches.values()
        }
        self._later = [number for numbers in ids.values() for number in numbers[1:]]
        self.longest_medium = max((len(each) + 1 for each in ids.values()), default=0)
        self.running: list[Running] = []

    def reserved(self, job: Job) -> int:
        """Return how many positions a request may take until its end."""
        longest = job.settings.generation.max_new_tokens
        return len(job.example.ids) + longest + self.longest_medium

    def add(self, job: Job) -> None:
        """Encode a request's prompt, and choose its first token."""
        encoder = self.served.encoder
        stops = (*job.settings.stops, encoder.stop_text or "")
        running = Running(
            job=job,
            stream=TextStream(self._tokenizer, stops, self._placeholders),
            rng=token_rng(job.settings.generation.seed),
        )
        self.served.activate()
        hidden_d = self._decoder.add(job.example)
        self.running.append(running)
        self._choose([running], hidden_d[None])

    def step(self) -> None:
        """Choose the next token of every request."""
        self.served.activate()
        hidden_nd = self._decoder.step([running.ids[-1] for running in self.running])
        self._choose(self.running, hidden_nd)

    def remove(self, running: Running) -> None:
        """Free a request's slot; the last one takes it."""
        index = self.running.index(running)
        self._decoder.remove(index)
        last = self.running.pop()
        if index < len(self.running):
            self.running[index] = last

    def reset(self) -> list[Running]:
        """Remove all requests, and return them."""
        left, self.running = self.running, []
        self._decoder.reset()
        return left

    def _choose(self, rows: Sequence[Running], hidden_nd: Tensor) -> None:
        scores_nv = self._decoder.logits(hidden_nd).float()
        if self._later:
            scores_nv[:, self._later] = -torch.inf
        greedy: list[int] | None = None
        for row, running in enumerate(rows):
            settings = running.job.settings.generation
            limit = len(running.ids) >= settings.max_new_tokens
            if self._later and limit:  # no medium begins after the longest text
                scores_nv[row, list(self._placeholders)] = -torch.inf
        for row, running in enumerate(rows):
            settings = running.job.settings.generation
            number = self._next.get(running.ids[-1]) if running.ids else None
            if number is None and not settings.is_greedy:
                earlier_t = torch.tensor(running.ids, device=scores_nv.device)
                number = choose_token(scores_nv[row], earlier_t, settings, running.rng)
            if number is None:
                greedy = greedy or scores_nv.argmax(dim=1).tolist()
                number = greedy[row]
            if self._branches:
                running.states.append(hidden_nd[row])
            self._append(running, number, scores_nv[row])

    def _append(self, running: Running, number: int, scores_v: Tensor) -> None:
        job, before = running.job, len(running.ids)
        longest = job.settings.generation.max_new_tokens
        ends = number in self.served.encoder.stop_ids
        running.ids.append(number)
        if job.settings.logprobs is not None and number < self._vocabulary:
            running.unreported.append(self._logprobs(number, scores_v, job.settings.logprobs))
        is_text = number < self._vocabulary and not ends and before < longest
        text = running.stream.put(number) if is_text or number in self._placeholders else ""
        if running.stream.stopped or ends:
            running.reason = "stop"
        elif len(running.ids) >= longest and number < self._vocabulary:
            running.reason = "length"
        if running.reason:
            text += running.stream.end()
        if text or (running.reason and running.unreported):
            job.on_event(Piece(text=text, logprobs=tuple(running.unreported)))
            running.unreported.clear()

    def _logprobs(self, number: int, scores_v: Tensor, count: int) -> TokenLogprobs:
        logprobs_v = scores_v.log_softmax(dim=0)
        top = logprobs_v.topk(count) if count else None
        chosen = self._likely(number, float(logprobs_v[number]))
        if top is None:
            return TokenLogprobs(chosen=chosen)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return TokenLogprobs(chosen=chosen, top=tuple(self._likely(*pair) for pair in pairs))

    def _likely(self, number: int, logprob: float) -> Likely:
        is_word = number < self._vocabulary
        return Likely(number, self._tokenizer.decode([number]) if is_word else "", logprob)

    def done(self, running: Running) -> Done:
        """Return the end of an answer, without its media."""
        return Done(reason=running.reason, tokens=len(running.ids), text=running.stream.text)

    def conditions(self, running: Running) -> list[Condition]:
        """Return the media of a complete answer, as far as its text holds them."""
        if not self._branches:
            return []
        states_td = torch.stack(running.states)
        found: list[Condition] = []
        for start, number in enumerate(running.ids):
            if number in self._by_first:
                branch = self._by_first[number]
                condition_1lw = condition_of(branch, states_td, start)
                found.append(Condition(0, start, branch.spec.modality, condition_1lw))
        # After the text that ends an answer there may be one more.
        return found[: len(PLACEHOLDER_PATTERN.findall(running.stream.text))]


def padded_positions(lanes: Mapping[str, Lane], lane: Lane, job: Job) -> int:
    """Return how many cached positions all slots take at most once a job has joined a lane."""
    total = 0
    for each in lanes.values():
        reserved = [each.reserved(running.job) for running in each.running]
        reserved += [each.reserved(job)] if each is lane else []
        total += len(reserved) * max(reserved, default=0)
    return total
