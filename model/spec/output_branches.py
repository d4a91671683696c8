"""Output branches: signal tokens, output projector, frozen generator (survey §2.4, §2.5).

S_X → H_X = Θ_out(S_X) → LDM(H_X). Published settings are those of NExT-GPT (Wu et al. 2023,
arXiv:2309.05519), MiniGPT-5 (Zheng et al. 2023, arXiv:2310.02239) and CoDi-2 (Tang et al. 2023,
arXiv:2311.18775).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from model.spec.base import SpecError, check_fraction
from model.spec.generators import GeneratorSpec, StableDiffusion

States = Literal["at", "before"]
"""Which hidden states stand for the signal tokens: `at` them, plus their input embeddings (GILL,
NExT-GPT), or those `before`, which predict them (MiniGPT-5, CoDi-2)."""


@dataclass(frozen=True, kw_only=True)
class OutputTransformer:
    """A small encoder-decoder from signal tokens to the generator's conditions.

    The defaults are NExT-GPT's (§3); MiniGPT-5's (Zheng et al. 2023, §3.2) has `width=1024,
    heads=8, entry="mlp", projects=False, states="before"`.

    Args:
        width: of the transformer.
        layers: of the encoder, and of the decoder.
        heads: of attention; the feed-forward layers are four times as wide.
        entry: from the backbone's width to the transformer's: one linear layer, or two with a GELU.
        projects: whether a linear layer maps to the condition's width; else they are the same.
        states: which hidden states of the backbone it reads, see `States`.
    """

    kind: Literal["output_transformer"] = "output_transformer"
    width: int = 512
    layers: int = 4
    heads: int = 4
    entry: Literal["linear", "mlp"] = "linear"
    projects: bool = True
    states: States = "at"

    def tiny(self) -> OutputTransformer:
        """Return the same wiring with small sizes."""
        return replace(self, width=32, layers=1, heads=2)


@dataclass(frozen=True, kw_only=True)
class OutputMlp:
    """Linear, GELU, LayerNorm, linear: each signal token to a token of the condition (CoDi-2).

    Tang et al. 2023, §3. A generator with several streams has an MLP for each, and signal tokens of
    its own for each.
    """

    kind: Literal["output_mlp"] = "output_mlp"

    states: ClassVar[States] = "before"

    def tiny(self) -> OutputMlp:
        """Return the same: its widths are those of its neighbours."""
        return self


@dataclass(frozen=True, kw_only=True)
class OutputBranchSpec:
    """One modality's output branch: signal tokens of the backbone condition a generator.

    Args:
        modality: of the generated media.
        signals: number of signal tokens per medium; their input embeddings and output rows are new
            weights, those of the vocabulary stay unchanged.
        projector: from the backbone's hidden states at the signal tokens to the generator's
            conditions.
        generator: with its own text encoder, both frozen.
        condition_dropout: share of the media that are trained without a condition, for
            classifier-free guidance: the projector's input is zeros and the target of eq. 4 is
            τ(""), as in MiniGPT-5 (0.1). Which ones depends on their seeds.
    """

    modality: Literal["image", "video", "audio"] = "image"
    signals: int = 4
    projector: OutputTransformer | OutputMlp = OutputTransformer()
    generator: GeneratorSpec = field(default_factory=StableDiffusion)
    condition_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raise SpecError where the components do not fit each other."""
        where = f"output branch {self.modality!r}"
        if self.modality not in self.generator.media:
            raise SpecError(
                f"{where}: the generator {self.generator.kind!r} generates "
                f"{', '.join(self.generator.media)}, not {self.modality}"
            )
        if self.signals < 1:
            raise SpecError(f"{where}: signals {self.signals}, must be at least 1")
        check_fraction(self, "condition_dropout")
        tokens = sum(count for count, _ in self.generator.streams)
        if isinstance(self.projector, OutputMlp) and self.signals != tokens:
            raise SpecError(
                f"{where}: signals {self.signals}, but the condition has {tokens} tokens and "
                f"{self.projector.kind!r} makes one of each signal token"
            )
        if isinstance(self.projector, OutputTransformer) and not self.projector.projects:
            for _, width in self.generator.streams:
                if width != self.projector.width:
                    raise SpecError(
                        f"{where}: the condition is {width} wide, but the projector, which has no "
                        f"last linear layer, {self.projector.width}"
                    )

    @property
    def kind(self) -> str:
        """Kind of the generated media, as distinct from input media: `to_image`."""
        return f"to_{self.modality}"

    @property
    def latents_kind(self) -> str:
        """Name of the media's latents in the feature cache: `to_image.latents`."""
        return f"{self.kind}.latents"

    def tiny(self) -> OutputBranchSpec:
        """Return the same wiring with small components."""
        generator, projector = self.generator.tiny(), self.projector.tiny()
        signals = self.signals
        if isinstance(projector, OutputMlp):
            signals = sum(count for count, _ in generator.streams)
        return replace(self, signals=signals, projector=projector, generator=generator)


@dataclass(frozen=True, kw_only=True)
class BranchWeights:
    """Loss weights of one modality's output branch; None stands for the stage's.

    Args:
        modality: of the generated media.
        align, denoise: see `Generation`.
    """

    modality: Literal["image", "video", "audio"]
    align: float | None = None
    denoise: float | None = None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Loss weights of a stage with generated media.

    Args:
        text: weight of eq. 2, the text loss, whose targets contain the signal tokens.
        align: weight of eq. 4, ‖H_X − τ_X(t)‖²; needs captions only.
        denoise: weight of eq. 5, E‖ε − ε_X(z_t, t, H_X)‖²; needs the media, and a forward and
            backward pass of the generator. At 0 only the generator's text encoder is loaded.
        branches: other weights of some modalities.
    """

    text: float = 1.0
    align: float = 1.0
    denoise: float = 1.0
    branches: tuple[BranchWeights, ...] = ()

    def __post_init__(self) -> None:
        """Raise SpecError unless all weights are non-negative, and one of eqs. 4 and 5 positive."""
        if not self.text > 0:
            raise SpecError(f"generation: text {self.text}, must be positive")
        if min(self.align, self.denoise) < 0 or not self.align + self.denoise:
            raise SpecError(
                f"generation: align {self.align}, denoise {self.denoise}; "
                "both must be at least 0 and one of them positive"
            )
        modalities = [branch.modality for branch in self.branches]
        if len(set(modalities)) < len(modalities):
            raise SpecError(f"generation: branches {modalities}, want each modality once")
        for modality in modalities:
            self.of(modality)

    def of(self, modality: str) -> Generation:
        """Return the weights of one modality's branch.

        Raises:
            SpecError: they are not valid.
        """
        for own in self.branches:
            if own.modality == modality:
                align = self.align if own.align is None else own.align
                denoise = self.denoise if own.denoise is None else own.denoise
                return replace(self, align=align, denoise=denoise, branches=())
        return replace(self, branches=())
