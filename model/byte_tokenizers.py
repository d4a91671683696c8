"""Byte-level tokenizers that need no files, for models with random weights."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from model.spec import ChatTemplate

_CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")


def plain() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and `<pad>`, `<s>` and `</s>`.

    Like LLaMA's it begins each text with `<s>`; it has a chat template.
    """
    tokenizer = _bytes("<pad>", "<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=ChatTemplate().jinja,
    )


def bert_style() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and BERT's special tokens around each text."""
    tokenizer = _bytes("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def clip_style() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and CLIP's start and end; the end also pads."""
    tokenizer = _bytes(*_CLIP_ENDS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_CLIP_ENDS[0]} $A {_CLIP_ENDS[1]}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in _CLIP_ENDS],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_CLIP_ENDS[0],
        eos_token=_CLIP_ENDS[1],
        pad_token=_CLIP_ENDS[1],
    )


def roberta_style() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and the special tokens of RoBERTa, at its ids."""
    tokenizer = _bytes("<s>", "<pad>", "</s>", "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def t5_style() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and the special tokens of T5, at its ids."""
    tokenizer = _bytes("<pad>", "</s>", "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


def _bytes(*special: str) -> Tokenizer:
    symbols = (*special, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
