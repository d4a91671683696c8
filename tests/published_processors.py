"""Published systems in small with transformers' processors: an oracle for prompts and answers.

Each case is a checkpoint as it is published: a tiny model with random weights, a tokenizer of the
same kind, an image processor and, where the original has one, a chat template. It is imported by
our command; a dialogue about an image file is then encoded and answered twice: by us, and by the
processor and `generate` of transformers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    InstructBlipProcessor,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
)

from etl.storage.schema import Medium, Sample, Turn, sha256, split_media
from model.batch import IGNORED
from model.build import build_text_tokenizer, build_tokenizer
from model.encoders.pictures import normalise
from model.presets import system
from pipeline.config.run_config import read_config
from pipeline.convert.export import export_run
from pipeline.convert.import_ import import_run
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.evaluate import load_run
from pipeline.evaluate.generate_answers import generate_answers
from tests import published, published_tokenizers
from tests.runs import random_run

NEW_TOKENS = 8
SIDE, PATCH = 32, 8  # of `tests.published`

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Lists of parts, answers marked, no end of an answer: as llava-hf/llava-1.5-7b-hf has it."""

LLAMA_3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
"""Texts, no marks, BOS written: as Llama-3-Instruct has it."""

VIDEO_LLAVA_TEMPLATE = LLAVA_TEMPLATE.replace(
    "{% if message['role'] != 'assistant' %}",
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}",
)
"""As LanguageBind/Video-LLaVA-7B-hf has it."""

CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Lists of parts, no marks: as llava-hf/llava-interleave-qwen-0.5b-hf has it."""

DIALOGUES = (
    ("<image>\nWhat is in the picture?", "A red cat."),
    ("<image>\nWhich digit is it?", "7", "Sure?", "It is the 3 at the top left."),
    ("<image>\n Where?  ", " the centre", "What colour?", "red\n", "12 or 7?", "12"),
)


@dataclass(frozen=True)
class Case:
    """A published system.

    Args:
        name: of the case.
        model: makes it.
        tokenizer: makes it.
        processor: makes it of an image processor and a tokenizer.
        pixels: its image processor.
        template: its chat template; None for a system that has none.
        prompt: the published prompt for a question, of a system without a template.
        end: what follows an answer in training there.
    """

    name: str
    model: Callable[[], PreTrainedModel]
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    processor: Callable[..., ProcessorMixin]
    pixels: object
    template: str | None = None
    prompt: str = ""
    end: str = ""

    def dialogues(self) -> Sequence[Sequence[str]]:
        """Return the dialogues that the system takes: without a template only one question."""
        return DIALOGUES if self.template else [texts[:2] for texts in DIALOGUES]


@dataclass(frozen=True)
class Comparison:
    """How often both sides were equal, of how many comparisons."""

    ids: int = 0
    mask: int = 0
    pixels: int = 0
    answers: int = 0
    compared: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    @property
    def equal(self) -> bool:
        """Whether all were."""
        return set(vars(self).values()) == {self.compared}


def llama_3() -> PreTrainedTokenizerBase:
    names = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = published_tokenizers.gpt2(
        names, bos_token=names[0], eos_token=names[1], unk_token=None, add_bos_token=True
    )
    tokenizer.add_special_tokens({"additional_special_tokens": names[2:]})
    return tokenizer


def _llava(image_processor, tokenizer, template):
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


class _PicturesOnly(VideoLlavaProcessor):
    """Video-LLaVA's processor without that of videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return type(argument)


def _video_llava(image_processor, tokenizer, template):
    return _PicturesOnly(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        chat_template=template,
    )


def _blip_2(image_processor, tokenizer, template):
    return Blip2Processor(image_processor, tokenizer, num_query_tokens=5)


def _instructblip(image_processor, tokenizer, template):
    qformer_tokenizer = published_tokenizers.bert()
    return InstructBlipProcessor(image_processor, tokenizer, qformer_tokenizer, num_query_tokens=5)


_CROP = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_CLIP = CLIPImageProcessor(**_CROP)
_PAD = LlavaImageProcessor(do_pad=True, **_CROP)
_BLIP = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
_VIDEO_LLAVA = VideoLlavaImageProcessor(**_CROP)
_LLAMA = partial(published_tokenizers.llama, legacy=True)
_NEW_LLAMA = partial(published_tokenizers.llama, legacy=False)

CASES = (
    Case("llava vicuna", published.llava, _LLAMA, _llava, _CLIP, LLAVA_TEMPLATE),
    Case("llava vicuna, not legacy", published.llava, _NEW_LLAMA, _llava, _PAD, LLAVA_TEMPLATE),
    Case("llava llama-3", published.llava, llama_3, _llava, _CLIP, LLAMA_3_TEMPLATE),
    Case("llava qwen", published.llava, published_tokenizers.chatml, _llava, _PAD, CHATML_TEMPLATE),
    Case(
        "video-llava",
        published.video_llava,
        _LLAMA,
        _video_llava,
        _VIDEO_LLAVA,
        VIDEO_LLAVA_TEMPLATE,
    ),
    Case(
        "blip-2 opt",
        partial(published.blip_2, published.OPT),
        published_tokenizers.opt,
        _blip_2,
        _BLIP,
        prompt="Question: {} Answer:",
        end="\n",
    ),
    Case(
        "blip-2 t5",
        partial(published.blip_2, published.T5),
        published_tokenizers.t5,
        _blip_2,
        _BLIP,
        prompt="Question: {} Short answer:",
        end="</s>",
    ),
    Case(
        "instructblip vicuna",
        partial(published.instructblip, published.LLAMA),
        _LLAMA,
        _instructblip,
        _BLIP,
        prompt="{}",
        end="</s>",
    ),
    Case(
        "instructblip vicuna, not legacy",
        partial(published.instructblip, published.LLAMA),
        _NEW_LLAMA,
        _instructblip,
        _BLIP,
        prompt="{}",
        end="</s>",
    ),
    Case(
        "instructblip t5",
        partial(published.instructblip, published.T5),
        published_tokenizers.t5,
        _instructblip,
        _BLIP,
        prompt="{}",
        end="</s>",
    ),
)

EXPORTED = (
    "llava_1_5_7b",
    "llava_1_5_13b",
    "blip_2",
    "blip_2_flan_t5_xxl",
    "dlp",
    "instructblip",
    "instructblip_flan_t5_xl",
    "digits",
)
"""The presets that transformers has a class for, InstructBLIP's of pictures alone."""


class Oracle:
    """A case, published to `folder/source` and imported to `folder/run`."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.model, tokenizer = case.model(), case.tokenizer()
        self.tokenizer = tokenizer
        self.processor = case.processor(case.pixels, tokenizer, case.template)
        settings = self.model.generation_config
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id or 0
        if case.end and case.end != "</s>":
            settings.eos_token_id = tokenizer.encode(case.end, add_special_tokens=False)[-1]
        self._publish(folder / "source")
        import_run(folder / "source", folder / "run", "sft")
        run = read_config(folder / "run" / "config.json")
        settings = replace(run.system.sft, peft=None, precision="fp32")
        self.run = replace(run, system=replace(run.system, sft=settings))
        self.placeholders = published.TOKENS
        self._open(folder)

    def _open(self, folder: Path) -> None:
        """Load our side of the comparison from `folder/run`."""
        spec, weights = self.run.system.model, self.run.weights
        self.ours = load_run(self.run, folder / "run").eval()
        self.our_tokenizer = build_tokenizer(spec, weights=weights)
        self.encoder = SampleEncoder(
            spec,
            self.our_tokenizer,
            prompt="chat",
            max_tokens=400,
            text_tokenizer=build_text_tokenizer(spec, weights=weights),
        )

    def _publish(self, folder: Path) -> None:
        """Write what a published checkpoint has."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.case.pixels.save_pretrained(folder)
        if self.case.template:
            (folder / "chat_template.jinja").write_text(self.case.template)
        if isinstance(self.processor, InstructBlipProcessor):
            self.processor.qformer_tokenizer.save_pretrained(folder / "qformer_tokenizer")

    def compare(self, image: Path) -> Comparison:
        """Compare all dialogues about an image file."""
        found = (self.compare_dialogue(texts, image) for texts in self.case.dialogues())
        return sum(found, start=Comparison())

    def compare_dialogue(self, texts: Sequence[str], image: Path) -> Comparison:
        """Compare the ids and targets of a dialogue, its pixels, and the answer to its end."""
        sample = sample_of(texts, image)
        ids, targets = self.published_example(texts, image)
        example = self.encoder.encode(sample)
        our_ids, our_targets = self._in_their_ids(example)
        inputs = self.published_prompt(texts[:-1], image)
        prompt = self.encoder.encode_prompt(sample)
        prompt_ids, _ = self._in_their_ids(prompt)
        ids_equal = our_ids == ids and prompt_ids == inputs["input_ids"][0].tolist()
        return Comparison(
            ids=int(ids_equal),
            mask=int(our_targets == targets),
            pixels=int(self._pixels_equal(prompt, inputs)),
            answers=int(self.our_answer(sample) == self.published_answer(inputs)),
            compared=1,
        )

    def _in_their_ids(self, example) -> tuple[list[int], list[bool]]:
        """Return ids with transformers' placeholders, and which are targets; decoder's last."""
        kinds = zip(example.ids, example.kinds, strict=True)
        ids = [self.placeholders[kind] if kind else number for number, kind in kinds]
        targets = [label != IGNORED for label in example.labels]
        answer = example.answer or []
        return ids + answer, targets + [True] * len(answer)

    def published_prompt(self, texts: Sequence[str], image: Path):
        """Return the processor's inputs of a dialogue that ends with a question."""
        picture = Image.open(image).convert("RGB")
        if self.case.template is None:
            text = self.case.prompt.format(_words(texts[-1]))
            return self.processor(images=picture, text=text, return_tensors="pt")
        text = self._rendered(texts, prompt=True)
        return self._processed(text, picture)

    def published_example(self, texts: Sequence[str], image: Path) -> tuple[list[int], list[bool]]:
        """Return the ids of a whole dialogue, and which are targets.

        Where the published format has no end of the last answer, ours adds the tokenizer's.
        """
        picture = Image.open(image).convert("RGB")
        prompt = self.published_prompt(texts[:1], image)["input_ids"][0].tolist()
        if self.case.template is None:
            answer = self._answer_ids(texts[1])
            return prompt + answer, [False] * len(prompt) + [True] * len(answer)
        ids = self._processed(self._rendered(texts), picture)["input_ids"][0].tolist()
        if "{% generation %}" in self.case.template:
            ids, targets = self._marked(texts, picture)
            return [*ids, self.tokenizer.eos_token_id], [*targets, True]
        targets = [False] * len(ids)
        for number in range(1, len(texts), 2):
            before = self._processed(self._rendered(texts[:number], prompt=True), picture)
            start = before["input_ids"].shape[1]
            assert ids[:start] == before["input_ids"][0].tolist()
            end = ids.index(self.tokenizer.eos_token_id, start) + 1
            targets[start:end] = [True] * (end - start)
        return ids, targets

    def _marked(self, texts: Sequence[str], picture) -> tuple[list[int], list[bool]]:
        """Return ids and targets that a template with `{% generation %}` says itself."""
        found = self.processor.apply_chat_template(
            self._messages(texts, picture),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = (
            torch.as_tensor(rows).flatten().tolist()
            for rows in (found["input_ids"], found["assistant_masks"])
        )
        return ids, [bool(one) for one in mask]

    def _answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer without a template, as LAVIS concatenates them."""
        text = answer + ("" if self.case.end == "</s>" else self.case.end)
        if self.run.system.model.backbone.seq2seq:
            return self.tokenizer.encode(text)
        whole = self.tokenizer.encode(f"a {text}", add_special_tokens=False)
        first = self.tokenizer.encode("a", add_special_tokens=False)
        assert whole[: len(first)] == first
        ends = [self.tokenizer.eos_token_id] * (self.case.end == "</s>")
        return whole[len(first) :] + ends

    def _messages(self, texts: Sequence[str], picture) -> list[dict]:
        messages = []
        for number, text in enumerate(texts):
            role = ("user", "assistant")[number % 2]
            if self.case.template == LLAMA_3_TEMPLATE:
                messages.append({"role": role, "content": text})
                continue
            images = [{"type": "image", "image": picture}] * ("<image>" in text)
            words = text.replace("<image>\n", "")
            messages.append({"role": role, "content": [*images, {"type": "text", "text": words}]})
        return messages

    def _rendered(self, texts: Sequence[str], *, prompt: bool = False) -> str:
        return self.processor.apply_chat_template(
            self._messages(texts, None), tokenize=False, add_generation_prompt=prompt
        )

    def _processed(self, text: str, picture):
        bos = self.tokenizer.bos_token
        add = not (bos and text.startswith(bos))  # as the processor's own `apply_chat_template`
        return self.processor(
            images=[picture], text=[text], return_tensors="pt", add_special_tokens=add
        )

    def _pixels_equal(self, prompt, inputs) -> bool:
        name = "pixel_values_images" if "pixel_values_images" in inputs else "pixel_values"
        encoder = self.run.system.model.input_branch("image").encoder
        ours = normalise(prompt.media[0].input_values[0], encoder.processor)
        return torch.allclose(ours[None], inputs[name].float(), atol=1e-5)

    def published_answer(self, inputs) -> str:
        """Return transformers' greedy answer."""
        with torch.no_grad():
            ids = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        if not self.run.system.model.backbone.seq2seq:
            start = inputs["input_ids"].shape[1]
            ids = ids[start:] if ids.shape[0] > start else ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def our_answer(self, sample: Sample) -> str:
        """Return our greedy answer."""
        [found] = generate_answers(
            self.ours, self.our_tokenizer, self.encoder, [sample], max_new_tokens=NEW_TOKENS
        )
        return found.answer


class Exported(Oracle):
    """A preset, trained in small to `folder/run` and exported to `folder/out`."""

    def __init__(self, preset: str, folder: Path) -> None:
        base = system(preset)
        base = base if preset.startswith("digits") else base.tiny()
        # Transformers' InstructBLIP takes pictures alone, ours videos, too.
        base = replace(base, model=replace(base.model, inputs=base.model.inputs[:1]))
        self.run = random_run(folder / "run", base)
        export_run(folder / "run", folder / "out", layout="transformers")
        self.processor = AutoProcessor.from_pretrained(folder / "out")
        self.tokenizer = self.processor.tokenizer
        self.model = AutoModelForImageTextToText.from_pretrained(folder / "out").eval()
        self.placeholders = {"image": self.tokenizer.convert_tokens_to_ids("<image>")}
        template = self.run.system.model.backbone.template
        assert template is not None
        # BLIP-2's processors leave their template to the tokenizer, and take one question.
        self._renderer = self.processor if self.processor.chat_template else self.tokenizer
        self._first = template.media_first
        jinja = self._renderer.chat_template
        self.case = Case(preset, None, None, None, None, None if self._first else jinja)
        self._open(folder)

    def published_prompt(self, texts: Sequence[str], image: Path):
        picture = Image.open(image).convert("RGB")
        return self._processed(self._rendered(texts, prompt=True), picture)

    def published_example(self, texts: Sequence[str], image: Path) -> tuple[list[int], list[bool]]:
        """Return the ids of a whole dialogue, and which are targets."""
        if not self._first:
            return self._marked(texts, Image.open(image).convert("RGB"))
        prompt = self.published_prompt(texts[:1], image)["input_ids"][0].tolist()
        answer = self._rendered(texts).removeprefix(self._rendered(texts[:1], prompt=True))
        if self.run.system.model.backbone.seq2seq:
            answer = answer.removeprefix(" ")
        ids = self.tokenizer.encode(answer, add_special_tokens=False)
        return prompt + ids, [False] * len(prompt) + [True] * len(ids)

    def _messages(self, texts: Sequence[str], picture) -> list[dict]:
        messages = []
        for number, text in enumerate(texts):
            parts = [
                {"type": "image", "image": picture} if kind else {"type": "text", "text": words}
                for kind, words in split_media(text)
            ]
            messages.append({"role": ("user", "assistant")[number % 2], "content": parts})
        return messages

    def _rendered(self, texts: Sequence[str], *, prompt: bool = False) -> str:
        return self._renderer.apply_chat_template(
            self._messages(texts, None), tokenize=False, add_generation_prompt=prompt
        )


def _words(text: str) -> str:
    return text.replace("<image>", "").lstrip()


def sample_of(texts: Sequence[str], image: Path) -> Sample:
    """Return a dialogue about an image file as a sample."""
    data = image.read_bytes()
    medium = Medium(kind="image", data=data, mime="image/png", sha256=sha256(data))
    turns = [
        Turn(role=("user", "assistant")[number % 2], text=text) for number, text in enumerate(texts)
    ]
    return Sample(id=image.stem, source="oracle", turns=tuple(turns), media=(medium,))


def write_image(path: Path, *, width: int = 60, height: int = 44, seed: int = 0) -> Path:
    """Write an image file that is not a square."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    picture.save(path)
    return path
