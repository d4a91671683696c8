"""Parameters of the systems as their papers publish them, with sources; see docs/systems.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BILLION = 1_000_000_000
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published figure.

    Args:
        preset: our preset of the system.
        what: `total`, `trainable`, `trainable / backbone`, or a component.
        stage: of the model in which ours is counted.
        value: the figure.
        unit: of its last digit, e.g. 0.1 B for 3.8 B.
        source: paper and table or section.
        why: the reason for a difference that rounding does not explain.
    """

    preset: str
    what: Literal[
        "total",
        "trainable",
        "trainable / backbone",
        "encoder",
        "projector",
        "backbone",
        "fusion",
        "adapters",
        "output projector",
    ]
    stage: Literal["pt", "sft"] = "pt"
    value: float
    unit: float = 0.1 * BILLION
    source: str
    why: str = ""

    def rounded(self, value: float) -> float:
        """Return another value, rounded like this one."""
        digits = round(value / self.unit)
        return self.value if digits == round(self.value / self.unit) else digits * self.unit


FLAMINGO = "Alayrac et al. 2022, table 5"
BLIP_2 = "Li et al. 2023, table 2"
QWEN_VL = "Bai et al. 2023, table 1"
NEXT_GPT = "Wu et al. 2023, table 1"
COGVLM = "THUDM/CogVLM, README.md"
PALI_X = "Chen et al. 2023, §3.1"

PUBLISHED: tuple[Published, ...] = (
    Published(
        preset="flamingo_3b",
        what="total",
        value=3.2 * BILLION,
        source=FLAMINGO,
    ),
    Published(
        preset="flamingo_3b",
        what="encoder",
        value=435 * MILLION,
        unit=MILLION,
        source=FLAMINGO,
    ),
    Published(
        preset="flamingo_3b",
        what="projector",
        value=194 * MILLION,
        unit=MILLION,
        source=FLAMINGO,
    ),
    Published(
        preset="flamingo_3b",
        what="fusion",
        value=1.2 * BILLION,
        source=FLAMINGO,
    ),
    Published(
        preset="flamingo_3b",
        what="trainable",
        value=1.4 * BILLION,
        source="Alayrac et al. 2022, §B.1.1",
    ),
    Published(
        preset="flamingo_9b",
        what="fusion",
        value=1.6 * BILLION,
        source=FLAMINGO,
        why="the 10 layers of width 4096 in table 4 have 1.8 B",
    ),
    Published(
        preset="flamingo_9b",
        what="trainable",
        value=1.8 * BILLION,
        source="Alayrac et al. 2022, §B.1.1",
        why="by the row above",
    ),
    Published(
        preset="flamingo_9b",
        what="total",
        value=9.3 * BILLION,
        source=FLAMINGO,
        why="by the rows above",
    ),
    Published(
        preset="flamingo_80b",
        what="fusion",
        value=10 * BILLION,
        unit=BILLION,
        source=FLAMINGO,
        why="table 4's 12 layers have 8.4 B with media of width 1536, and 9.7 B with width 8192",
    ),
    Published(
        preset="flamingo_80b",
        what="total",
        value=80 * BILLION,
        unit=BILLION,
        source=FLAMINGO,
        why="by the row above",
    ),
    Published(
        preset="blip_2",
        what="total",
        value=7.8 * BILLION,
        source=BLIP_2,
    ),
    Published(
        preset="blip_2",
        what="trainable",
        value=108 * MILLION,
        unit=MILLION,
        source=BLIP_2,
    ),
    Published(
        preset="blip_2_flan_t5_xxl",
        what="total",
        value=12.1 * BILLION,
        source=BLIP_2,
        why="without T5's output matrix (132 M), which is not an embedding, ours has 12.1 B",
    ),
    Published(
        preset="blip_2_flan_t5_xxl",
        what="trainable",
        value=108 * MILLION,
        unit=MILLION,
        source=BLIP_2,
    ),
    Published(
        preset="mplug_owl",
        what="total",
        value=7 * BILLION,
        unit=BILLION,
        source="X-PLUG/mPLUG-Owl, README.md",
    ),
    Published(
        preset="instructblip",
        what="trainable",
        stage="sft",
        value=188 * MILLION,
        unit=MILLION,
        source="Dai et al. 2023, §3.4",
    ),
    Published(
        preset="pandagpt",
        what="trainable / backbone",
        stage="sft",
        value=0.004,
        unit=0.001,
        source="Su et al. 2023, §2",
    ),
    Published(
        preset="pali_x",
        what="encoder",
        value=22 * BILLION,
        unit=BILLION,
        source=PALI_X,
    ),
    Published(
        preset="pali_x",
        what="backbone",
        value=32 * BILLION,
        unit=BILLION,
        source=PALI_X,
    ),
    Published(
        preset="pali_x",
        what="total",
        value=55 * BILLION,
        unit=BILLION,
        source="Chen et al. 2023, abstract",
        why="the published components, 22 B and 32 B, also sum to 54 B",
    ),
    Published(
        preset="dlp",
        what="total",
        value=3.8 * BILLION,
        source=f"{BLIP_2}: the same model",
        why="OPT 2.7B has 2.65 B and the rest 1.09 B: 3.74 B",
    ),
    Published(
        preset="dlp",
        what="projector",
        value=107 * MILLION,
        unit=MILLION,
        source=f"{BLIP_2}: the same model",
    ),
    Published(
        preset="qwen_vl",
        what="encoder",
        value=1.9 * BILLION,
        source=QWEN_VL,
        why="1.84 B; with the adapter, which is part of the ViT in the published code, 1.94 B",
    ),
    Published(
        preset="qwen_vl",
        what="projector",
        value=0.08 * BILLION,
        unit=0.01 * BILLION,
        source=QWEN_VL,
        why="without its last matrix (17 M), which the published code has, 0.075 B",
    ),
    Published(
        preset="qwen_vl",
        what="backbone",
        value=7.7 * BILLION,
        source=QWEN_VL,
    ),
    Published(
        preset="qwen_vl",
        what="total",
        value=9.6 * BILLION,
        source=QWEN_VL,
    ),
    Published(
        preset="next_gpt",
        what="encoder",
        value=1.2 * BILLION,
        source=NEXT_GPT,
        why="all of ImageBind with its text encoder; ours has the trunks of images and audio",
    ),
    Published(
        preset="next_gpt",
        what="projector",
        value=4 * MILLION,
        unit=MILLION,
        source=f"{NEXT_GPT} of its first version",
    ),
    Published(
        preset="next_gpt",
        what="backbone",
        value=7 * BILLION,
        unit=BILLION,
        source=NEXT_GPT,
    ),
    Published(
        preset="next_gpt",
        what="adapters",
        stage="sft",
        value=33 * MILLION,
        unit=MILLION,
        source=NEXT_GPT,
        why="33.55 M, truncated to 33 instead of rounded",
    ),
    Published(
        preset="next_gpt",
        what="output projector",
        value=94 * MILLION,
        unit=MILLION,
        source=NEXT_GPT,
        why="31, 32 and 31 M, each truncated instead of rounded",
    ),
    Published(
        preset="cogvlm",
        what="trainable",
        value=6.5 * BILLION,
        source="Wang et al. 2023, §2.3",
        why="6.48 B are the visual expert; 0.14 B are the adapter, which is trained with it",
    ),
    Published(
        preset="cogvlm",
        what="fusion",
        value=6.5 * BILLION,
        source="Wang et al. 2023, §2.3",
    ),
    Published(
        preset="cogvlm",
        what="total",
        value=17 * BILLION,
        unit=BILLION,
        source=COGVLM,
        why="named for 10 B and 7 B: 4.3 B ViT, 0.1 B adapter, 6.5 B experts and 6.7 B are 17.6 B",
    ),
)
