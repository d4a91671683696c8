"""Published systems: a model's slots, and how the stages train them.

Survey: Zhang et al. 2024, *MM-LLMs: Recent Advances in MultiModal Large Language Models*, §2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from model.spec.base import SpecError, choose
from model.spec.init import ImageTextInit, SentenceInit
from model.spec.input_branches import ModelSpec
from model.spec.output_branches import Generation, OutputBranchSpec
from model.spec.peft import Peft
from model.spec.pformer import Reference

TRAINABLE_OUTPUTS = ("outputs.*.signals.*", "outputs.*.head.*", "outputs.*.projector.*")
"""What of the ways out a stage that draws trains; the generators stay frozen."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage trains: what moves, on which prompts, with which hyper-parameters.

    Args:
        trains: patterns (as of `fnmatch`) over parameter names; whatever none matches stays frozen.
        reference: DLP's frozen P-Former, which the projected tokens are drawn to.
        generation: what is learnt of drawing media; None leaves the ways out unbuilt.
        prompt: `plain` hands the placeholders and the assistant's text on without a template
            (captions in MM-PT), and what asks for a medium to be drawn; `chat` uses the backbone's
            template; `sentences` lays out the assistant's text alone behind the places of a medium
            that is not read.
        learning_rate: the peak; cosine decay to zero after a linear warm-up.
        warmup: share of the steps.
        global_batch: samples per optimizer step over all ranks.
        micro_batch: samples per rank and forward pass.
        max_tokens: longer samples are cut, but never through a medium.
        precision: of the forward and backward pass; ZeRO keeps float32 masters beside bf16.
        ds_config: a file of `ds_configs/` without its ending, or a path.
        recompute: whether the backbone's activations are recomputed in the backward pass.
        packing: `auto` lays samples end to end where the model allows it, in passes of at most
            micro_batch · max_tokens tokens and micro_batch · pack_media media: no more memory
            than `micro_batch` of the longest samples need, and no padding.
        pack_media: see there; also what `plan` reckons with.
        z_loss: weight of the z-loss on the text's logits (PaLM: 1e-4), in PT and SFT; 0 for none.
    """

    trainable: tuple[str, ...]
    peft: Peft | None = None
    reference: Reference | None = None
    generation: Generation | None = None
    prompt: Literal["plain", "chat", "sentences"]
    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.03
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

    def tiny(self) -> Self:
        """Return the same stage for a tiny model: what trains and how is kept, sizes are not."""
        return replace(
            self,
            learning_rate=3e-3,
            global_batch=8,
            micro_batch=4,
            max_tokens=512,
            precision="fp32",
            reference=self.reference.tiny() if self.reference else None,
        )

    def output_branches(self, model: ModelSpec) -> tuple[OutputBranchSpec, ...]:
        """Return the ways out that this stage of a model uses."""
        return model.outputs if self.generation else ()

    def kinds(self, model: ModelSpec) -> tuple[str, ...]:
        """Return the kinds of media of this stage: the modalities that go in, then `to_…`."""
        return (*model.modalities, *(slot.kind for slot in self.output_branches(model)))


@dataclass(frozen=True, kw_only=True)
class InitStage(Stage):
    """A stage before MM-PT: a pre-training that one part of the model needs (survey §2.2).

    Args:
        objective: which part, and by which losses.
    """

    objective: ImageTextInit | SentenceInit

    def tiny(self) -> Self:
        """Return the same stage for a tiny model."""
        return replace(super().tiny(), objective=self.objective.tiny())


@dataclass(frozen=True, kw_only=True)
class System:
    """A published system: its name, its paper, its model and its stages.

    `init` holds the stages before MM-PT, in the order in which they are trained, one for each part.
    """

    name: str
    paper: str
    model: ModelSpec
    init: tuple[InitStage, ...] = ()
    pt: Stage
    sft: Stage

    def __post_init__(self) -> None:
        """Raise SpecError for adapters that do not go with the backbone."""
        for stage in (self.pt, self.sft):
            if stage.peft is not None:
                stage.peft.check(self.model.backbone)
            if stage.generation is not None:
                self._check_generation(stage)

    def _check_generation(self, stage: Stage) -> None:
        if not self.model.outputs:
            raise SpecError(f"{self.name}: generation wants a model with outputs")
        if stage.reference is not None:
            raise SpecError(f"{self.name}: a stage has a reference or generation, not both")
        if not any(pattern.startswith(("outputs.", "*")) for pattern in stage.trainable):
            wanted = ", ".join(TRAINABLE_OUTPUTS)
            raise SpecError(f"{self.name}: generation trains no outputs; add {wanted} to trains")

    def tiny(self) -> System:
        """Return the same classes and wiring with small sizes, for any machine."""
        return replace(
            self,
            model=self.model.tiny(),
            init=tuple(stage.tiny() for stage in self.init),
            pt=self.pt.tiny(),
            sft=self.sft.tiny(),
        )

    def stage(self, name: str, part: str | None = None) -> Stage:
        """Return the settings of the stage `init`, `pt` or `sft`.

        Args:
            name: the stage's.
            part: which part `init` trains; may be left out where there is one.

        Raises:
            SpecError: no such stage or part.
        """
        choose(name, ("init", "pt", "sft"), "stage")
        if name == "init":
            return self._init(part)
        return self.pt if name == "pt" else self.sft

    def _init(self, part: str | None) -> InitStage:
        parts: list[str] = [stage.objective.kind for stage in self.init]
        if not parts:
            raise SpecError(f"{self.name}: has no part that is pre-trained before MM-PT")
        if part is None and len(parts) > 1:
            raise SpecError(f"{self.name}: pre-trains {', then '.join(parts)}; name one as --part")
        part = choose(part or parts[0], parts, f"part of {self.name} that is pre-trained")
        return self.init[parts.index(part)]
