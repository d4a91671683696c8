"""Tokenizers of the published kinds, trained in a moment on a few sentences.

Each has the ids of `tests.published` for the placeholders of media, which come last.
"""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    T5Tokenizer,
)

from tests.published import IMAGE_ID, VIDEO_ID

TEXTS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What is in the picture? ASSISTANT: A red cat on the mat.",
    "Question: Which digit is it? Short answer: It is a 7 at the top left, not a 12.",
    "Human: Describe the image in detail. Assistant: There are 3 dogs.",
    "system user assistant Where? What colour? Sure, it is the centre. [INST] [/INST] ###",
]
_SPACE = "▁"


def llama(*, legacy: bool, **options) -> PreTrainedTokenizerBase:
    """SentencePiece's BPE with bytes for unknown characters, as LLaMA's and Vicuna's."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary, merges = _bpe(VIDEO_ID - len(symbols), pre_tokenizers.Metaspace())
    symbols += [piece for piece in vocabulary if piece not in symbols]
    ids = {symbol: number for number, symbol in enumerate(symbols)}
    options = {"add_bos_token": True} | options
    tokenizer = LlamaTokenizer(vocab=ids, merges=merges, legacy=legacy, **options)
    tokenizer.init_kwargs["legacy"] = legacy  # as in published files; saving would drop it
    return _with_media(tokenizer)


def gpt2(special: list[str], **options) -> PreTrainedTokenizerBase:
    """A byte-level BPE, as GPT-2's, OPT's, LLaMA-3's and Qwen's."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = _bpe(VIDEO_ID - len(special), split, alphabet)
    symbols = [*special, *vocabulary]
    ids = {symbol: number for number, symbol in enumerate(symbols)}
    return _with_media(GPT2Tokenizer(vocab=ids, merges=merges, **options))


def opt() -> PreTrainedTokenizerBase:
    """OPT's, which begins a text with the token that also ends it."""
    ends = {f"{name}_token": "</s>" for name in ("bos", "eos", "unk")}
    return gpt2(["<pad>", "</s>"], pad_token="<pad>", add_bos_token=True, **ends)


def chatml(**options) -> PreTrainedTokenizerBase:
    """Qwen's: neither BOS nor UNK, and SmolLM2's if given a BOS, which it does not put anywhere."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    options = {"bos_token": None, "unk_token": None, "eos_token": "<|im_end|>"} | options
    tokenizer = gpt2(names, pad_token="<|endoftext|>", **options)
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer


def t5() -> PreTrainedTokenizerBase:
    """SentencePiece's unigram model, as T5's."""
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    pieces += [(chr(0x4E00 + number), -30.0) for number in range(VIDEO_ID - len(pieces))]
    return _with_media(T5Tokenizer(vocab=pieces, extra_ids=0))


def bert() -> PreTrainedTokenizerBase:
    """A Q-Former's, of WordPieces."""
    words = sorted({word.lower() for text in TEXTS for word in text.split()})
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [f"##{letter}" for letter in letters]
    pieces += [word for word in words if word not in pieces][: 300 - len(pieces)]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})


def _bpe(
    size: int, split: pre_tokenizers.PreTokenizer, alphabet: list[str] | None = None
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the vocabulary of a trained BPE in the order of its ids, and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet or [], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    return vocabulary, [tuple(merge) for merge in model["merges"]]


def _with_media(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add the placeholders as published checkpoints have them."""
    fill = [AddedToken(f"<unused{n}>", special=True) for n in range(VIDEO_ID - len(tokenizer))]
    media = [AddedToken(name, normalized=False, special=True) for name in ("<video>", "<image>")]
    tokenizer.add_tokens([*fill, *media])
    assert tokenizer.convert_tokens_to_ids("<image>") == IMAGE_ID
    assert tokenizer.convert_tokens_to_ids("<video>") == VIDEO_ID
    return tokenizer
