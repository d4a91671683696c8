"""The processor of an exported transformers checkpoint: tokenizer, chat template, and pictures."""

from __future__ import annotations

import re
from pathlib import Path

import transformers
from transformers import AutoImageProcessor, PreTrainedTokenizerBase

from etl.storage.atomic import write_json
from etl.storage.schema import PLACEHOLDERS
from model.build import build_text_tokenizer
from model.convert.layouts import Layout
from model.spec import ModelSpec, Stage
from model.weights import Weights
from pipeline.convert.trained_model import TrainedModel
from pipeline.data.chat_template import PLAIN

_PICTURES = "preprocessor_config.json"

_JOIN_PARTS = re.sub(
    r"\n *",
    "",
    """
    {%- set joined = namespace(messages=[]) -%}
    {%- for message in messages -%}
        {%- set parts = namespace(text='') -%}
        {%- if message.content is string -%}{%- set parts.text = message.content -%}
        {%- else -%}
            {%- for part in message.content -%}
                {%- set parts.text = parts.text ~
                    (part.text if part.type == 'text' else '<' ~ part.type ~ '>\\n') -%}
            {%- endfor -%}
        {%- endif -%}
        {%- set joined.messages =
            joined.messages + [{'role': message.role, 'content': parts.text}] -%}
    {%- endfor -%}
    {%- set messages = joined.messages -%}
    """,
)
"""Put before a template that takes texts alone: messages of parts become texts."""


def export_template(
    model: ModelSpec, stage: Stage, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Return the chat template that renders what the model was trained with, if it has any.

    Contents of messages may be texts, or lists of parts.
    """
    if stage.prompt != "chat":
        return PLAIN.jinja
    if model.backbone.template is not None:
        return model.backbone.template.jinja
    own: str | None = tokenizer.chat_template
    takes_parts = own is not None and "type" in own
    return own if own is None or takes_parts else _JOIN_PARTS + own


def write_processor(
    layout: Layout,
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    *,
    weights: Weights,
) -> None:
    """Write the processor; the placeholder of pictures becomes a token of the tokenizer.

    Args:
        layout: its class and arguments.
        model: the trained one.
        tokenizer: the published one, which is changed.
        output: the folder.
        weights: where a Q-Former's tokenizer comes from, as of the run.
    """
    tokenizer.add_special_tokens({"extra_special_tokens": [PLACEHOLDERS["image"]]})
    write_json(output / _PICTURES, layout.pictures.to_config())
    pictures = AutoImageProcessor.from_pretrained(output)
    parts = {"image_processor": pictures, "tokenizer": tokenizer}
    text_tokenizer = build_text_tokenizer(model.spec, weights=weights)
    if text_tokenizer is not None:
        parts["qformer_tokenizer"] = text_tokenizer
    processor = getattr(transformers, layout.processor)(**parts, **layout.processor_fields)
    processor.chat_template = export_template(model.spec, model.stage, tokenizer)
    processor.save_pretrained(output)
