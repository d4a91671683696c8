"""Tokenizers of bytes, which need no files: what models with random weights read and write."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")


def of_a_backbone() -> PreTrainedTokenizerFast:
    """One token per byte, after three special ones."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_bytes("<pad>", "<s>", "</s>"),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )


def like_bert_s() -> PreTrainedTokenizerFast:
    """One token per byte, after BERT's special ones, which stand around a text as BERT's do."""
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


def like_clip_s() -> PreTrainedTokenizerFast:
    """One token per byte, between CLIP's two special ones; the second one also pads."""
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


def _bytes(*special: str) -> Tokenizer:
    symbols = (*special, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
