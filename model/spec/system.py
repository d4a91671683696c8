"""Published systems: a model's spec, and how each stage trains it.

Survey: Zhang et al. 2024, *MM-LLMs: Recent Advances in MultiModal Large Language Models*, §2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self

from model.spec.base import FieldError, SpecError, check_at_least, check_fraction, choose
from model.spec.init import ImageTextInit, SentenceInit
from model.spec.input_branches import ModelSpec
from model.spec.output_branches import Generation, OutputBranchSpec
from model.spec.peft import Lora, Peft, QLora
from model.spec.pformer import Reference
from model.spec.rlhf import Dpo, Dress, Grpo, Objective

TRAINABLE_OUTPUTS = ("outputs.*.signals.*", "outputs.*.head.*", "outputs.*.projector.*")
"""Trainable patterns of the output branches in a stage with generation; generators stay frozen."""


Schedule = Literal["cosine", "linear", "constant", "wsd"]


def decay_start(steps: int, decay: float) -> int:
    """Return the step of a run at which `wsd` begins to decay.

    Args:
        steps: of the whole run.
        decay: share of them.
    """
    return steps - round(decay * steps)


def check_betas(spec: ParameterGroup | Stage) -> None:
    """Raise FieldError for decay rates out of their range."""
    if spec.betas is not None and not all(0 <= beta < 1 for beta in spec.betas):
        raise FieldError("betas", f"{list(spec.betas)}, want two numbers from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Optimizer settings for a part of the trainable parameters; None stands for the stage's.

    CogVLM trains its encoder at a tenth of the rate, Qwen-VL with a rate that decays from layer to
    layer (Bai et al. 2023, table 8); ms-swift calls such rates `vit_lr` and `aligner_lr`.

    Args:
        pattern: of parameter names, as in `Stage.trainable`; the first group that matches applies.
        learning_rate: the peak.
        weight_decay: of matrices; vectors never decay.
        betas, schedule, warmup, decay: see `Stage`.
        layer_decay: each layer's rate is this fraction of the next layer's (BEiT, Bao et al. 2021,
            appendix); the last layer has `learning_rate`. A layer is the first number in a name.
    """

    pattern: str
    learning_rate: float | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    schedule: Schedule | None = None
    warmup: float | None = None
    decay: float | None = None
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 0, "learning_rate", "weight_decay")
        check_fraction(self, "warmup", "decay", "layer_decay")
        check_betas(self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage trains: trainable parameters, prompts and hyper-parameters.

    Args:
        trainable: patterns (as of `fnmatch`) over parameter names; all others stay frozen.
        peft: adapters that are added to the backbone.
        reference: DLP's frozen P-Former, towards whose prompts the projected tokens are trained.
        generation: loss weights of generated media; None leaves the output branches out.
        prompt: `plain` uses placeholders and the assistant's text without a template (captions in
            MM-PT), and the user's text if it asks for a medium to be generated; `chat` uses the
            backbone's chat template; `sentences` uses the assistant's text alone, after the
            positions of a medium that is not encoded.
        learning_rate: the peak.
        weight_decay: of matrices; vectors (biases, norms) do not decay.
        betas: AdamW's decay rates of the gradient's mean and of its square.
        warmup: share of the steps in which the rate rises linearly.
        schedule: after that, `cosine` or `linear` decay to zero, `constant`, or `wsd`: constant,
            then decay to zero in the last steps (warmup-stable-decay, MiniCPM, Hu et al. 2024,
            §4.2), as 1 - √ of the decay's progress (Hägele et al. 2024, *Scaling laws beyond fixed
            training durations*).
        decay: share of the steps in which `wsd` decays; MiniCPM finds a tenth enough.
        groups: other rates, decays and schedules for some of the parameters.
        gradient_clipping: the gradient's largest norm over all parameters; 0 does not clip.
        global_batch: samples per optimizer step over all ranks.
        micro_batch: samples per rank and forward pass.
        max_tokens: longer samples are truncated, but never inside a medium.
        precision: of the forward and backward pass; for bf16, ZeRO keeps float32 master weights.
        ds_config: a file of `ds_configs/` without its suffix, or a path.
        recompute: whether activations of the backbone, and of the generators' UNets in eq. 5, are
            recomputed in the backward pass (activation checkpointing).
        packing: `auto` packs samples end to end where the model supports it, into micro-batches of
            at most micro_batch · max_tokens tokens and micro_batch · pack_media media: without
            padding, and with no more memory than `micro_batch` samples of full length.
        pack_media: media per sample that packing allows for on average; `plan` assumes it, too.
        z_loss: weight of the z-loss on the text logits (PaLM: 1e-4), in PT and SFT; 0 for none.
    """

    trainable: tuple[str, ...]
    peft: Peft | None = None
    reference: Reference | None = None
    generation: Generation | None = None
    prompt: Literal["plain", "chat", "sentences"]
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.03
    schedule: Schedule = "cosine"
    decay: float = 0.1
    groups: tuple[ParameterGroup, ...] = ()
    gradient_clipping: float = 1.0
    epochs: int = 1
    global_batch: int
    micro_batch: int
    max_tokens: int = 2048
    precision: Literal["fp32", "bf16"] = "bf16"
    ds_config: str = "zero3"
    recompute: bool = False
    packing: Literal["auto", "off"] = "auto"
    pack_media: int = 4
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range."""
        check_at_least(self, 1, "epochs", "global_batch", "micro_batch", "max_tokens", "pack_media")
        check_at_least(self, 0, "learning_rate", "weight_decay", "gradient_clipping", "z_loss")
        check_fraction(self, "warmup", "decay")
        check_betas(self)

    def tiny(self) -> Self:
        """Return the same stage for a tiny model: same parameters and losses, small sizes."""
        return replace(
            self,
            learning_rate=3e-3,
            global_batch=8,
            micro_batch=4,
            max_tokens=512,
            precision="fp32",
            reference=self.reference.tiny() if self.reference else None,
        )

    @property
    def samples_answers(self) -> bool:
        """Whether the stage learns from answers of its own, which may hold generated media."""
        return False

    def output_branches(self, model: ModelSpec) -> tuple[OutputBranchSpec, ...]:
        """Return the model's output branches that this stage uses."""
        return model.outputs if self.generation or self.samples_answers else ()

    def denoising_branches(self, model: ModelSpec) -> tuple[OutputBranchSpec, ...]:
        """Return those output branches that this stage trains with eq. 5."""
        if self.generation is None:
            return ()
        weights = {branch: self.generation.of(branch.modality) for branch in model.outputs}
        return tuple(branch for branch, own in weights.items() if own.denoise > 0)

    @property
    def answer_feedback(self) -> str:
        """What a prompt begins with, as the model has learnt it; "" but for DRESS."""
        return ""

    def kinds(self, model: ModelSpec) -> tuple[str, ...]:
        """Return the kinds of media in this stage: input modalities, then outputs (`to_…`)."""
        return (*model.modalities, *(branch.kind for branch in self.output_branches(model)))


@dataclass(frozen=True, kw_only=True)
class InitStage(Stage):
    """A stage before MM-PT that pre-trains one component of the model (survey §2.2).

    Args:
        objective: which component, and with which losses.
    """

    objective: ImageTextInit | SentenceInit

    def tiny(self) -> Self:
        """Return the same stage for a tiny model."""
        return replace(super().tiny(), objective=self.objective.tiny())


ADAPTERS = "backbone.*lora_*.default.*"
"""Trainable pattern of RLHF: the policy's adapters, and not those of the reference."""


@dataclass(frozen=True, kw_only=True)
class RlhfStage(Stage):
    """RLHF, the second part of MM-IT: training on preferences and written feedback (survey §3.2).

    It trains low-rank adapters alone. The policy goes on from those of SFT, and the reference is
    the same model with a frozen copy of them, so that there is no second model.

    Args:
        objective: what is learnt from a preference.
    """

    objective: Objective = field(default_factory=Dpo)

    @property
    def answer_feedback(self) -> str:
        """The feedback about good answers, on which DRESS has conditioned them."""
        return self.objective.good if isinstance(self.objective, Dress) else ""

    @property
    def samples_answers(self) -> bool:
        """Whether answers are the policy's own; they hold media where it generates some."""
        return isinstance(self.objective, Grpo)

    @property
    def corrupts(self) -> bool:
        """Whether samples have corrupted images, too."""
        return isinstance(self.objective, Dpo) and self.objective.media_weight > 0

    @property
    def sequences(self) -> int:
        """The greatest number of sequences of a sample, each of at most `max_tokens`."""
        if isinstance(self.objective, Grpo):
            return self.objective.group
        refines = isinstance(self.objective, Dress) and self.objective.refinement
        return 3 if self.corrupts or refines else 2

    def __post_init__(self) -> None:
        """Raise SpecError for a value out of its range, or a stage that trains other parameters."""
        super().__post_init__()
        if not isinstance(self.peft, Lora | QLora):
            raise SpecError("rlhf: peft: want lora or qlora, whose copy is the reference")
        if self.trainable != (ADAPTERS,):
            raise SpecError(f"rlhf: trainable: want [{ADAPTERS!r}], the adapters alone")
        if self.generation is not None or self.reference is not None or self.z_loss:
            raise SpecError("rlhf: has no generation, no reference P-Former and no z-loss")
        if isinstance(self.objective, Grpo) and self.prompt != "chat":
            raise SpecError("rlhf: prompt: want chat, the questions that are to be answered")
        if self.packing == "off":
            raise SpecError("rlhf: packing: want auto, the answers of a sample share its media")

    def tiny(self) -> Self:
        """Return the same stage for a tiny model."""
        return replace(super().tiny(), learning_rate=1e-3)


def rlhf_of(sft: Stage) -> RlhfStage:
    """Return RLHF for a system that names none: DPO from its SFT's settings and adapters.

    A tenth of SFT's learning rate, as in Zephyr (Tunstall et al. 2023, §4: 2e-5, then 5e-7 without
    adapters) one goes down by more; one epoch. A system without adapters in SFT gets LoRA.
    """
    own = sft.peft if isinstance(sft.peft, Lora | QLora) else Lora(rank=16, alpha=32)
    rate = own.learning_rate or sft.learning_rate
    shared = {item.name: getattr(sft, item.name) for item in fields(Stage)}
    return RlhfStage(
        **shared
        | {
            "trainable": (ADAPTERS,),
            "peft": replace(own, learning_rate=None, dropout=0.0),
            "learning_rate": rate / 10,
            "generation": None,
            "reference": None,
            "z_loss": 0.0,
            "packing": "auto",
            "groups": (),
            "epochs": 1,
        }
    )


@dataclass(frozen=True, kw_only=True)
class System:
    """A system: its name, its model and its stages, of which any may be left out.

    Args:
        name: of the preset.
        paper: where it was published; "" for a system of one's own.
        model: the branches and the backbone.
        init: the stages before MM-PT, one per component, in the order in which they are run.
        pt: MM-PT.
        sft: SFT, the first part of MM-IT.
        rlhf: RLHF, its second part; where it is left out, `rlhf_of` SFT.
    """

    name: str
    paper: str = ""
    model: ModelSpec
    init: tuple[InitStage, ...] = ()
    pt: Stage | None = None
    sft: Stage | None = None
    rlhf: RlhfStage | None = None

    def __post_init__(self) -> None:
        """Raise SpecError for stages that the model does not support."""
        for stage in filter(None, (self.pt, self.sft, self.rlhf)):
            if stage.peft is not None:
                stage.peft.check(self.model.backbone)
            if stage.generation is not None:
                self._check_generation(stage)
        if self.rlhf is not None and not self.model.supports_packing:
            raise SpecError(
                f"{self.name}: rlhf: the answers of a sample are packed into one sequence, which "
                f"{self.model.backbone.kind!r} with {self.model.fusion.kind!r} does not support"
            )

    def _check_generation(self, stage: Stage) -> None:
        if not self.model.outputs:
            raise SpecError(f"{self.name}: generation requires a model with outputs")
        if not any(pattern.startswith(("outputs.", "*")) for pattern in stage.trainable):
            missing = ", ".join(TRAINABLE_OUTPUTS)
            raise SpecError(
                f"{self.name}: generation trains no outputs; add {missing} to trainable"
            )

    def tiny(self) -> System:
        """Return the same classes and wiring with small sizes, for any machine."""
        return replace(
            self,
            model=self.model.tiny(),
            init=tuple(stage.tiny() for stage in self.init),
            pt=self.pt.tiny() if self.pt else None,
            sft=self.sft.tiny() if self.sft else None,
            rlhf=self.rlhf.tiny() if self.rlhf else None,
        )

    def stage(self, name: str, part: str | None = None) -> Stage:
        """Return the settings of the stage `init`, `pt`, `sft` or `rlhf`.

        Args:
            name: the stage's.
            part: which component `init` trains; optional if there is only one.

        Raises:
            SpecError: no such stage or component.
        """
        choose(name, ("init", "pt", "sft", "rlhf"), "stage")
        if name == "init":
            return self._init(part)
        system = self.with_rlhf() if name == "rlhf" else self
        stage = {"pt": self.pt, "sft": self.sft, "rlhf": system.rlhf}[name]
        if stage is None:
            raise SpecError(f"{self.name} has no stage {name!r}; add one to its file")
        return stage

    def with_rlhf(self) -> System:
        """Return the system with RLHF's settings, where it has SFT's."""
        if self.rlhf is not None or self.sft is None:
            return self
        return replace(self, rlhf=rlhf_of(self.sft))

    def _init(self, part: str | None) -> InitStage:
        kinds: list[str] = [stage.objective.kind for stage in self.init]
        if not kinds:
            raise SpecError(f"{self.name} has no stage before MM-PT")
        if part is None and len(kinds) > 1:
            raise SpecError(
                f"{self.name} pre-trains {', then '.join(kinds)}; choose one with --part"
            )
        part = choose(part or kinds[0], kinds, f"--part of {self.name}")
        return self.init[kinds.index(part)]
