"""A trained model that answers questions about files, with the prompts of its evaluation."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from etl.cli import UserError
from etl.storage.schema import (
    PLACEHOLDER_PATTERN,
    PLACEHOLDERS,
    Medium,
    Sample,
    SampleError,
    Turn,
    sha256,
)
from model import load
from model.build import build_text_tokenizer, build_tokenizer
from model.exported import SPEC_FILE, read_spec
from model.multimodal_lm import MultimodalLM
from model.sampling import GREEDY, Sampling, cut_at
from model.spec import ModelSpec, Stage
from model.spec.system import InitStage
from model.weights import Weights
from pipeline.checkpoint.checkpoints import checkpoint_weights
from pipeline.config.files import CONFIG_FILE
from pipeline.config.run_config import RunConfig, read_run
from pipeline.data.encode import SampleEncoder
from pipeline.data.generation_targets import EarlierMedia, earlier_media
from pipeline.evaluate.device import inference_device
from pipeline.evaluate.evaluate import load_checkpoint
from pipeline.evaluate.generate_answers import generate_answers, stop_texts

WriteText = Callable[[str], object]

_INCOMPLETE = re.compile(r"(?:[^\s\u2e80-\U0003ffff]|\ufffd)*$")
"""The last word, which may go on; there are no spaces between words from U+2E80 on."""
_KINDS = {placeholder: kind for kind, placeholder in PLACEHOLDERS.items()}


class Assistant:
    """A trained model with its tokenizer and its prompts, which answers one question at a time.

    The weights are loaded when the first question and its files are known to be in order.

    Args:
        spec: of the model.
        load_model: loads it, as the run trained it.
        tokenizer: the backbone's.
        stage: of the run; its prompt is used.
        weights: `pretrained`, or `random` for a run without a hub or folders.
        name: of the folder, for messages.
        config: of the run; None for an exported folder.

    Attributes:
        generates_media: whether the weights are loaded that generated media need.
        load_model: loads the model, once.
        encoder: of the stage's prompts.
    """

    generates_media: ClassVar[bool] = False

    def __init__(
        self,
        spec: ModelSpec,
        load_model: Callable[[], MultimodalLM],
        tokenizer: PreTrainedTokenizerBase,
        stage: Stage,
        *,
        weights: Weights,
        name: str,
        config: RunConfig | None = None,
    ) -> None:
        self.spec, self.tokenizer, self._name = spec, tokenizer, name
        self.stage, self.config = stage, config
        self.load_model = cache(load_model)
        self.reads_questions = stage.prompt == "chat"
        self.encoder = SampleEncoder(
            spec,
            tokenizer,
            prompt=stage.prompt,
            max_tokens=stage.max_tokens,
            text_tokenizer=build_text_tokenizer(spec, weights=weights),
            generation_targets=self._earlier_media(stage),
            feedback=stage.answer_feedback,
        )

    def _earlier_media(self, stage: Stage) -> EarlierMedia | None:
        """Return what encodes the media of the assistant's earlier answers, if it makes any."""
        return earlier_media(stage.output_branches(self.spec))

    @classmethod
    def open(cls, folder: Path | str, *, checkpoint: str = "newest") -> Self:
        """Open a run folder, or a self-contained exported folder.

        Args:
            folder: of the run.
            checkpoint: of a run: `newest` (and valid), `best` or the step of one.

        Raises:
            UserError, SpecError: no such folder or checkpoint, or a run that cannot answer.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; want a trained run, or an exported one")
        if (folder / SPEC_FILE).is_file():
            if checkpoint != "newest":
                raise UserError(
                    f"--checkpoint {checkpoint}: {folder} is exported and has one set of weights; "
                    "want a run folder"
                )
            return cls._open_exported(folder)
        if "architectures" in _fields(folder / CONFIG_FILE):
            raise UserError(
                f"{folder}: a checkpoint of transformers; open it with AutoProcessor and "
                "AutoModelForImageTextToText, or import it first"
            )
        config = read_run(folder)
        if isinstance(config.settings, InitStage):
            raise UserError(f"{folder}: a run of stage init gives no answers; want pt or sft")
        return cls(
            config.system.model,
            lambda: load_checkpoint(
                config, checkpoint_weights(folder, checkpoint), decoding=cls.generates_media
            ),
            build_tokenizer(config.system.model, weights=config.weights),
            config.settings,
            weights=config.weights,
            name=str(folder),
            config=config,
        )

    @classmethod
    def _open_exported(cls, folder: Path) -> Self:
        spec = read_spec(folder)
        return cls(
            spec.model,
            lambda: load(folder, decoding=cls.generates_media).module.to(inference_device()),
            build_tokenizer(spec.model, weights="pretrained"),
            spec.stage,
            weights="pretrained",
            name=str(folder),
        )

    def ask(
        self,
        text: str,
        *,
        image: Path | str | None = None,
        video: Path | str | None = None,
        audio: Path | str | None = None,
        points: Path | str | None = None,
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        on_text: WriteText | None = None,
    ) -> str:
        """Return the answer to a question about files, by default the greedy one.

        Args:
            text: the question. A medium is shown before it, or where the text has its placeholder,
                such as `<image>`.
            image: a file of an image.
            video: of a video.
            audio: of a sound.
            points: of a point cloud.
            max_new_tokens: length at which the answer is cut.
            sampling: how tokens are chosen; of several answers the first is returned.
            on_text: called with each piece of the answer as soon as its words are complete.

        Raises:
            UserError: a file that cannot be read, or a kind of media that the model does not take.
            SpecError: weights that cannot be loaded.
        """
        files = {"image": image, "video": video, "audio": audio, "points": points}
        return self.answers(
            text, files, max_new_tokens=max_new_tokens, sampling=sampling, on_text=on_text
        )[0]

    def answers(
        self,
        text: str,
        files: Mapping[str, Path | str | None],
        *,
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        on_text: WriteText | None = None,
    ) -> list[str]:
        """Return the `sampling.n` answers to a question about files, by kind; see `ask`.

        Several answers are not streamed.
        """
        given = [(kind, Path(file)) for kind, file in files.items() if file is not None]
        sample = self._sample(text, given)
        try:
            self.encoder.encode_prompt(sample)
        except SampleError as error:
            raise self._mistake(str(error), given) from None
        ends = stop_texts(self.encoder, sampling)
        streamer = (
            None
            if on_text is None or sampling.n > 1
            else AnswerStreamer(partial(self._text_of, ends=ends), on_text, ends)
        )
        [prediction] = generate_answers(
            self.load_model(),
            self.tokenizer,
            self.encoder,
            [sample],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            streamer=streamer,
        )
        if prediction.skip_reason:
            raise self._mistake(prediction.skip_reason, given)
        return [prediction.answer, *prediction.others]

    def _text_of(self, ids: Sequence[int], *, ends: Sequence[str]) -> str:
        return cut_at(self.tokenizer.decode(ids, skip_special_tokens=True), ends)

    @staticmethod
    def _mistake(reason: str, files: Sequence[tuple[str, Path]]) -> UserError:
        where = ", ".join(str(file) for _, file in files) or "the question"
        return UserError(reason.replace("sample asked", where, 1))

    def _sample(self, text: str, files: Sequence[tuple[str, Path]]) -> Sample:
        """Return a question about files, each with its kind, as a sample.

        They are shown where their placeholders are; all others before the text.
        """
        for kind, _ in files:
            if kind not in self.spec.modalities:
                takes = ", ".join(self.spec.modalities)
                raise UserError(f"--{kind}: {self._name} takes {takes}, not {kind}")
        left = list(files)
        shown = PLACEHOLDER_PATTERN.findall(text)
        missing = [kind for kind, _ in files]
        for placeholder in shown:
            kind = _KINDS[placeholder]
            if kind not in missing:
                raise UserError(f"the question has {placeholder} without a file; want one --{kind}")
            missing.remove(kind)
        text = "".join(f"{PLACEHOLDERS[kind]}\n" for kind in missing) + text
        media = []
        for placeholder in PLACEHOLDER_PATTERN.findall(text):
            found = next(each for each in left if each[0] == _KINDS[placeholder])
            left.remove(found)
            media.append(_read(*found))
        turns = (Turn(role="user", text=text), Turn(role="assistant", text=""))
        return Sample(id="asked", source="", turns=turns, media=tuple(media))


def _fields(file: Path) -> Collection[str]:
    """Return the names of a configuration's fields; none if it is not a JSON object."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return ()
    return value.keys() if isinstance(value, dict) else ()


def _read(kind: str, file: Path) -> Medium:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); want a file with {kind}"
        ) from None
    mime = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return Medium(kind=kind, data=data, mime=mime, sha256=sha256(data))


class AnswerStreamer(BaseStreamer):
    """Passes on the text of an answer while it is generated, a few words at a time.

    Args:
        text_of: returns the text of an answer's first ids.
        write: is called with each new piece of it.
        ends: texts, each of which ends an answer; `text_of` leaves them out once complete.
    """

    def __init__(
        self,
        text_of: Callable[[Sequence[int]], str],
        write: WriteText,
        ends: Sequence[str] = (),
    ) -> None:
        self._text_of, self._write = text_of, write
        self._starts = sorted({end[:n] for end in ends for n in range(1, len(end) + 1)}, key=len)
        self._ids: list[int] | None = None
        self._written = 0

    def put(self, value: Tensor) -> None:
        """Take the next ids, and pass on what is complete."""
        if self._ids is None:  # of the prompt `generate` knows only embeddings
            self._ids = []
            return
        self._ids += value.reshape(-1).tolist()
        text = _INCOMPLETE.sub("", self._text_of(self._ids))
        begun = next(filter(text.endswith, reversed(self._starts)), "")  # perhaps an end
        self._pass_on(text.removesuffix(begun))

    def end(self) -> None:
        """Pass on the rest."""
        self._pass_on(self._text_of(self._ids or []))

    def _pass_on(self, text: str) -> None:
        if new := text[self._written :]:
            self._write(new)
            self._written = len(text)
