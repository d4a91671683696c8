"""Parameter-efficient fine-tuning of the backbone (survey §2.3).

Every spec defines a substring of its parameters' names (`parameter_marker`; a stage trains e.g.
`backbone.*lora_*`), and whether ZeRO-3 can partition the backbone's weights (`zero3`).

Targets are names of linear layers. The linear layers of each backbone's blocks are:

| backbone | attention | feed-forward |
|---|---|---|
| Llama, Qwen, Palm | q_proj k_proj v_proj o_proj | gate_proj up_proj down_proj |
| Opt | q_proj k_proj v_proj out_proj | fc1 fc2 |
| T5 | q k v o | wi_0 wi_1 wo |
| Glm | q_proj k_proj v_proj o_proj | gate_up_proj down_proj |
| ChatGlm | query_key_value attention.dense | dense_h_to_4h dense_4h_to_h |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from model.spec.backbones import Backbone
from model.spec.base import SpecError, check_at_least, check_fraction

LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPT_LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
T5_LINEAR = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")
GLM_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
CHATGLM_LINEAR = ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
"""All linear layers of a backbone's blocks, by the backbone's class."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters in the backbone (Hu et al. 2021).

    Args:
        targets: names of the backbone's linear layers that are adapted.
        learning_rate: of the adapters, if different from the stage's.
        use_rslora: scale their output by α / √r, so that a higher rank learns as fast (rsLoRA,
            Kalajdzievski 2023, *A rank stabilization scaling factor*, §4), instead of α / r.
        use_dora: learn the norm of each output's weights apart from their direction (DoRA, Liu et
            al. 2024, eq. 5).
    """

    kind: Literal["lora"] = "lora"
    rank: int
    alpha: int
    dropout: float = 0.05
    targets: tuple[str, ...] = LLAMA_LINEAR
    learning_rate: float | None = None
    use_rslora: bool = False
    use_dora: bool = False

    parameter_marker: ClassVar[str] = "lora_"
    zero3: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 1, "rank", "alpha")
        check_at_least(self, 0, "learning_rate")
        check_fraction(self, "dropout")

    @property
    def scale(self) -> float:
        """Factor of the adapters' output."""
        return lora_scale(self)

    def check(self, backbone: Backbone) -> None:
        """Do nothing: any backbone has linear layers."""


@dataclass(frozen=True, kw_only=True)
class QLora:
    """Low-rank adapters on weights quantised to four bits (Dettmers et al. 2023, *QLoRA*).

    Weights are stored as NormalFloat with double quantisation (§3), which requires the package
    bitsandbytes. The defaults are the paper's for 7B and 13B (appendix B.2, table 9).

    Args:
        rank: of the adapters.
        alpha: of the adapters; their output is scaled by alpha / rank.
        dropout: 0.1, but 0.05 for 33B and 65B.
        targets: names of the backbone's linear layers that are adapted, all of them in the paper.
            Every linear layer of the backbone's blocks is quantised, target or not.
        learning_rate: of the adapters: 2e-4, but 1e-4 for 33B and 65B.
        use_rslora, use_dora: see `Lora`.
    """

    kind: Literal["qlora"] = "qlora"
    rank: int = 64
    alpha: int = 16
    dropout: float = 0.1
    targets: tuple[str, ...] = LLAMA_LINEAR
    learning_rate: float | None = 2e-4
    use_rslora: bool = False
    use_dora: bool = False

    parameter_marker: ClassVar[str] = "lora_"
    zero3: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 1, "rank", "alpha")
        check_at_least(self, 0, "learning_rate")
        check_fraction(self, "dropout")

    @property
    def scale(self) -> float:
        """Factor of the adapters' output."""
        return lora_scale(self)

    def check(self, backbone: Backbone) -> None:
        """Do nothing: any backbone has linear layers."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Learned keys and values before those of every layer (Li and Liang 2021, *Prefix-tuning*).

    The defaults are the paper's for generation from tables (§6.1 and table 5 of its appendix).

    Args:
        length: of the prefix, in positions; 200 for summarisation.
        hidden: hidden width of the MLP that reparametrises the prefix in training (§4.3); 800 for
            summarisation. None learns the prefix directly.
        learning_rate: of the prefix, if different from the stage's.
    """

    kind: Literal["prefix"] = "prefix"
    length: int = 10
    hidden: int | None = 512
    learning_rate: float | None = 5e-5

    parameter_marker: ClassVar[str] = "prefix"
    zero3: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 1, "length", "hidden")
        check_at_least(self, 0, "learning_rate")

    def check(self, backbone: Backbone) -> None:
        """Raise SpecError unless the backbone is causal: T5's positions do not allow a prefix."""
        if backbone.seq2seq:
            raise SpecError(
                f"peft: {self.kind!r} requires a causal backbone, {backbone.kind!r} is seq2seq"
            )


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Bottleneck adapters after attention and after feed-forward (Houlsby et al. 2019, §2.1).

    Args:
        bottleneck: width of the bottleneck; the paper's §3 tries 8 to 256, and 64 does well.
        targets: the linear layers that an adapter follows: the last of attention and of the
            feed-forward network; the default has LLaMA's names, see this file's table.
        learning_rate: of the adapters, if different from the stage's; the paper tries 3e-4 among
            others.
    """

    kind: Literal["adapter"] = "adapter"
    bottleneck: int = 64
    targets: tuple[str, ...] = ("o_proj", "down_proj")
    learning_rate: float | None = 3e-4

    parameter_marker: ClassVar[str] = "adapter"
    zero3: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 1, "bottleneck")
        check_at_least(self, 0, "learning_rate")

    def check(self, backbone: Backbone) -> None:
        """Do nothing: any backbone has linear layers."""


Peft = Lora | QLora | Prefix | Adapter


def lora_scale(lora: Lora | QLora) -> float:
    """Return α / r (Hu et al. 2021, §4.1), or rsLoRA's α / √r."""
    return lora.alpha / (math.sqrt(lora.rank) if lora.use_rslora else lora.rank)
