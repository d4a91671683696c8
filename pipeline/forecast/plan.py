"""Plan a stage of a preset without its weights: parameters, tokens, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from etl.cli import UserError
from model.build import build_on_meta
from model.features import is_trainable
from model.freeze import set_trainable
from model.multimodal_lm import MultimodalLM
from model.output_branch import OutputBranch
from model.spec import ModelSpec, Stage, System
from model.spec.system import RlhfStage
from model.text import TextIds
from pipeline.config.deepspeed import ds_config
from pipeline.config.parameter_groups import OptimizerGroup, parameter_groups
from pipeline.config.run_config import StageName, accumulation, packs
from pipeline.forecast import memory

_GIB = 2**30
FUSED = frozenset({"gated", "expert", "expert_mlp"})
"""Names of modules that fusion adds to a backbone's layers."""
_OUTPUT_COMPONENTS = {"projector": "output projector", "generator": "generator"}
"""Module of an output branch → component; all its other parameters belong to its signal tokens."""
_INSTRUCTION = 32
"""Assumed length of the instruction, in tokens, for projectors that read one."""


@dataclass(frozen=True, kw_only=True)
class PartOptimizer:
    """How a part of the trainable parameters learns.

    Args:
        parameters: their number.
        learning_rate, lowest_learning_rate: peaks of its last layer and, where rates decay by
            layer, of its first.
        weight_decay: of its matrices.
        betas, schedule, warmup, decay: see `model.spec.system.Stage`.
    """

    parameters: int
    learning_rate: float
    lowest_learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    schedule: str
    warmup: float
    decay: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters, tokens and memory of a stage.

    Args:
        preset, stage: of the plan.
        gpus: number of ranks, one per GPU.
        ds_config, zero_stage: the DeepSpeed configuration.
        global_batch, micro_batch, accumulation: samples per step, samples per rank and micro-step,
            and micro-steps per step.
        components: parameters by component.
        trainable: trainable parameters.
        optimizer: settings of each part of them, by label.
        tokens: of one sample: those of a medium of each kind, the rest for `text`, and the `total`
            for which the memory is computed.
        gpu_bytes: by part, per GPU; an upper estimate, see `pipeline.forecast.memory`.
        host_bytes: offloaded to host memory, per GPU.
        start_bytes: of all weights, which each GPU holds before ZeRO partitions them.
        on_cpu: whether the ranks run on CPUs, with everything in the host's memory.
    """

    preset: str
    stage: str
    gpus: int
    ds_config: str
    zero_stage: int
    global_batch: int
    micro_batch: int
    accumulation: int
    components: Mapping[str, int]
    trainable: int
    optimizer: Mapping[str, PartOptimizer]
    tokens: Mapping[str, int]
    gpu_bytes: Mapping[str, int]
    host_bytes: Mapping[str, int]
    start_bytes: int
    on_cpu: bool = False

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return sum(self.components.values())

    @property
    def total_gpu_bytes(self) -> int:
        """The sum of all parts, or what is needed at the start, if that is more."""
        return max(sum(self.gpu_bytes.values()), self.start_bytes)

    def to_json(self) -> dict[str, object]:
        """Return the object that `--json` prints: numbers of parameters and tokens, and bytes."""
        return {
            "preset": self.preset,
            "stage": self.stage,
            "gpus": self.gpus,
            "ds_config": self.ds_config,
            "zero_stage": self.zero_stage,
            "global_batch": self.global_batch,
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "parameters": {
                "total": self.total,
                "trainable": self.trainable,
                "components": dict(self.components),
            },
            "optimizer": {label: asdict(part) for label, part in self.optimizer.items()},
            "tokens_per_sample": dict(self.tokens),
            "bytes_per_gpu": {
                **self.gpu_bytes,
                "at the start": self.start_bytes,
                "total": self.total_gpu_bytes,
            },
            "bytes_on_host_per_gpu": {**self.host_bytes, "total": sum(self.host_bytes.values())},
        }


def sample_length(system: System, stage: Stage, positions: float) -> int:
    """Return the sample length at which a full micro-batch has so many positions."""
    least = 1 + sum(slot.tokens for slot in system.model.inputs)
    least += sum(slot.signals for slot in stage.output_branches(system.model))
    sequences = stage.micro_batch * _sequences(stage)
    return min(max(round(positions / sequences), least), stage.max_tokens)


def _sequences(stage: Stage) -> int:
    """Return how many sequences a sample has, each with its media: several in RLHF."""
    return stage.sequences if isinstance(stage, RlhfStage) else 1


def plan(
    system: System,
    stage_name: StageName,
    gpus: int,
    *,
    tokens: int | None = None,
    targets: float | None = None,
    on_cpu: bool = False,
    with_features: bool = False,
) -> Plan:
    """Build a system on the meta device and compute what a stage needs.

    Args:
        system: the preset, overrides included.
        stage_name: the stage.
        gpus: the number of ranks.
        tokens: the length of a sample, one medium of each modality included; by default the
            stage's `max_tokens`.
        targets: of these, positions whose next token is a target; by default all of the text.
        on_cpu: whether the ranks run on CPUs, with everything in the host's memory.
        with_features: whether features, embeddings and latents come from the feature cache.

    Raises:
        UserError: batch sizes that do not divide, or a length that leaves no room for text.
    """
    if gpus < 1:
        raise UserError(f"--gpus: {gpus}, want 1 or more")
    stage = system.stage(stage_name)
    config = ds_config(stage, gpus)
    model = build_on_meta(system.model, stage, latents_given=with_features)
    set_trainable(model, stage.trainable)
    sizes = [
        memory.Weight(elements=weight.numel(), trainable=weight.requires_grad)
        for weight in model.parameters()
    ]
    tokens_of = _tokens_per_sample(system.model, stage, tokens)
    sequences = _sequences(stage)
    sample = memory.SampleProfile(
        tokens=tokens_of["total"] * sequences,
        targets=(tokens_of["text"] if targets is None else round(targets)) * sequences,
        media=_media_per_sample(system.model, stage, tokens_of["total"]),
        projectors={kind: _saved_by_projector(model, kind) for kind in system.model.modalities},
        generation=_saved_by_generation(model, recompute=stage.recompute),
        features=_given_features(model) if with_features else (),
        trains_backbone=any(
            weight.requires_grad and _component(name, stage) == "backbone"
            for name, weight in model.backbone.named_parameters()
        ),
    )
    zero = memory.Zero.read(config, memory.PRECISION[stage.precision])
    gpu, host = _memory(system.model, stage, zero, sample, sizes, gpus)
    if on_cpu:
        gpu, host = {name: size + host.get(name, 0) for name, size in gpu.items()}, {}
        precision = memory.PRECISION[stage.precision]
        gpu["gathered weights"] += memory.gloo_copy(sizes, zero, gpus, precision)
    return Plan(
        preset=system.name,
        stage=stage_name,
        gpus=gpus,
        ds_config=stage.ds_config,
        zero_stage=zero.stage,
        global_batch=stage.global_batch,
        micro_batch=stage.micro_batch,
        accumulation=accumulation(stage, gpus),
        components=components(model, stage),
        trainable=sum(size.elements for size in sizes if size.trainable),
        optimizer=_optimizer(model, stage),
        tokens=tokens_of,
        gpu_bytes=gpu,
        host_bytes=host,
        start_bytes=memory.whole(sizes, memory.PRECISION[stage.precision]),
        on_cpu=on_cpu,
    )


def _optimizer(model: MultimodalLM, stage: Stage) -> dict[str, PartOptimizer]:
    """Return the optimizer's settings of each part of the trainable parameters."""
    parts: dict[str, list[OptimizerGroup]] = {}
    for group in parameter_groups(model, stage):
        parts.setdefault(group.label, []).append(group)
    return {
        label: PartOptimizer(
            parameters=sum(each.numel() for group in groups for each in group.parameters),
            learning_rate=max(group.learning_rate for group in groups),
            lowest_learning_rate=min(group.learning_rate for group in groups),
            weight_decay=max(group.weight_decay for group in groups),
            betas=groups[0].betas,
            schedule=groups[0].schedule,
            warmup=groups[0].warmup,
            decay=groups[0].decay,
        )
        for label, groups in parts.items()
    }


def _saved_by_projector(model: MultimodalLM, kind: str) -> int:
    """Return the bytes that autograd saves in projecting one medium, on the meta device."""
    slot, projector = model.spec.input_branch(kind), model.projector(kind)
    parts, tokens = slot.pooled_shape
    dtype = next(projector.parameters()).dtype
    ids_bl = torch.ones(1, _INSTRUCTION, dtype=torch.long, device="meta")

    def project() -> None:
        features_bfnd = torch.zeros(1, parts, tokens, slot.encoder.width, dtype=dtype)
        projector(features_bfnd, TextIds(ids_bl=ids_bl, mask_bl=ids_bl))

    return _saved_bytes(projector, project)


def _given_features(model: MultimodalLM) -> list[str]:
    """Return the modalities whose features a cache gives: those of frozen encoders."""
    return [kind for kind in model.spec.modalities if not is_trainable(model.encoder(kind))]


def _saved_by_generation(model: MultimodalLM, *, recompute: bool) -> dict[str, int]:
    """Return the bytes that autograd saves in generating one medium of each kind."""
    branches = model.output_branches()
    return {kind: saved_by_branch(branch, recompute=recompute) for kind, branch in branches.items()}


def saved_by_branch(branch: OutputBranch, *, recompute: bool) -> int:
    """Return the bytes that autograd saves in generating one medium, on the meta device.

    With recomputation, these are the inputs of the recomputed layers, and while the backward pass
    is in one of them, all that this layer saves.
    """
    # Text encoder and autoencoder save nothing, so their outputs are given.
    given = {"embeds_given": True, "latents_given": True}
    width = branch.signals.embedding_dim

    def generate() -> None:
        signal_hidden_gnd = torch.zeros(1, branch.spec.signals, width)
        targets = branch.dummy_targets(signal_hidden_gnd.device, **given)
        branch.generation_output(targets, signal_hidden_gnd, **given)

    generator = branch.generator
    generator.set_recompute(False)
    saved = _saved_bytes(branch, generate, generator.recomputed_layers() if recompute else ())
    generator.set_recompute(recompute)
    return saved


def _saved_bytes(
    module: nn.Module, run: Callable[[], None], recomputed: Sequence[nn.Module] = ()
) -> int:
    """Return the bytes that autograd saves while `run` runs, without the module's own weights.

    Of layers that are recomputed, these are the inputs, and of the largest of them, in which the
    backward pass is, all else.
    """
    # A storage is one Python object for as long as it is referred to.
    weights = {id(storage): storage for storage in map(_storage, module.parameters())}
    kept: dict[int, torch.UntypedStorage] = {}
    layers: list[dict[int, torch.UntypedStorage]] = []
    saved = [kept]

    def save(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if id(storage) not in weights:
            saved[-1][id(storage)] = storage
        return tensor

    def enter(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                save(value)
        layers.append({})
        saved.append(layers[-1])

    def leave(*_: object) -> None:
        saved.pop()

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in recomputed]
    hooks += [layer.register_forward_hook(leave) for layer in recomputed]
    with (
        torch.device("meta"),
        _FusedAttention(),
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        run()
    for hook in hooks:
        hook.remove()
    return _bytes(kept) + max(map(_bytes, layers), default=0)


class _FusedAttention(TorchFunctionMode):
    """Lets attention save what a fused kernel does; the meta device has none, and saves scores."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 -- of any function of PyTorch
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
        return _SavesNoScores.apply(named["query"], named["key"], named["value"])


class _SavesNoScores(torch.autograd.Function):
    """Attention without a result, which saves its inputs, its output and one number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_sum = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, log_sum)
        return output


def _bytes(storages: Mapping[int, torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages.values())


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def components(model: nn.Module, stage: Stage) -> dict[str, int]:
    """Count the parameters of each component; adapters count separately from the backbone."""
    counts = {"encoder": 0, "projector": 0, "backbone": 0, "adapters": 0}
    for name, weight in model.named_parameters():
        component = _component(name, stage)
        counts[component] = counts.get(component, 0) + weight.numel()
    return counts


def _component(name: str, stage: Stage) -> str:
    """Return the component that a parameter belongs to."""
    first, *rest = name.split(".")
    if first == "inputs":
        return rest[1]
    if first == "outputs":
        return _OUTPUT_COMPONENTS.get(rest[1], "signals")
    if first == "backbone":
        if stage.peft is not None and stage.peft.parameter_marker in name:
            return "adapters"
        return "fusion" if FUSED.intersection(rest) else "backbone"
    return first


def _media_per_sample(model: ModelSpec, stage: Stage, tokens: int) -> int:
    """Return the media that a micro-batch may hold per sample."""
    if not packs(model, stage):
        return 1
    signals = [slot.signals for slot in stage.output_branches(model)]
    smallest = min([slot.tokens for slot in model.inputs] + signals)
    return max(1, min(stage.pack_media, tokens // smallest))


def _tokens_per_sample(model: ModelSpec, stage: Stage, tokens: int | None) -> dict[str, int]:
    """Return the tokens of one medium of each kind, those left for text, and the total."""
    media: dict[str, int] = {slot.modality: slot.tokens for slot in model.inputs}
    media |= {slot.kind: slot.signals for slot in stage.output_branches(model)}
    total = stage.max_tokens if tokens is None else tokens
    if not sum(media.values()) < total <= stage.max_tokens:
        raise UserError(
            f"tokens {total}: want more than the media's {sum(media.values())} and at most "
            f"the stage's max_tokens {stage.max_tokens}"
        )
    return {**media, "text": total - sum(media.values()), "total": total}


def _memory(
    model: ModelSpec,
    stage: Stage,
    zero: memory.Zero,
    sample: memory.SampleProfile,
    sizes: list[memory.Weight],
    ranks: int,
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes by part on a GPU and on the host."""
    precision = memory.PRECISION[stage.precision]
    trainable = sum(size.elements for size in sizes if size.trainable)
    weights = memory.weights(sizes, zero, ranks, precision)
    gradients = memory.gradients(trainable, zero, ranks)
    optimizer = memory.optimizer(trainable, zero, ranks)
    persistent = memory.persistent(sizes, zero, precision)
    gpu = {
        "weights": persistent if zero.weights_on_host else weights,
        "gathered weights": memory.gathered(sizes, zero, ranks, precision),
        "gradients": 0 if zero.optimizer_on_host else gradients,
        "optimizer states": 0 if zero.optimizer_on_host else optimizer,
        "communication buckets": memory.buckets(trainable, zero, precision),
        "activations": memory.activations(model, stage, zero, sample),
        "logits": memory.logits(model.backbone, stage, sample),
    }
    host = {
        "weights": weights - persistent if zero.weights_on_host else 0,
        "gradients": gradients if zero.optimizer_on_host else 0,
        "optimizer states": optimizer if zero.optimizer_on_host else 0,
    }
    return gpu, host


def plan_table(plan: Plan) -> Group:
    """Return the plan as tables for a terminal."""
    parameters = Table("component", "parameters", title=f"{plan.preset}, stage {plan.stage}")
    for name, count in plan.components.items():
        if count:
            parameters.add_row(name, f"{count:,}")
    parameters.add_section()
    parameters.add_row("total", f"{plan.total:,}")
    parameters.add_row("trainable", f"{plan.trainable:,} ({plan.trainable / plan.total:.2%})")
    tokens = Table("one sample", "tokens")
    for name, count in plan.tokens.items():
        tokens.add_row(name, f"{count:,}")
    device = "ranks on CPUs" if plan.on_cpu else "GPUs"
    title = f"each of {plan.gpus} {device}, {plan.ds_config} (ZeRO-{plan.zero_stage})"
    memory_table = Table("memory", "GiB", title=title)
    for name, size in plan.gpu_bytes.items():
        memory_table.add_row(name, f"{size / _GIB:.2f}")
    memory_table.add_section()
    memory_table.add_row("all weights, at the start", f"{plan.start_bytes / _GIB:.2f}")
    memory_table.add_row("total", f"{plan.total_gpu_bytes / _GIB:.2f}")
    if any(plan.host_bytes.values()):
        memory_table.add_row("on the host", f"{sum(plan.host_bytes.values()) / _GIB:.2f}")
    optimizer = _optimizer_table(plan)
    for table in (parameters, tokens, memory_table):
        table.columns[-1].justify = "right"
    batch = (
        f"global batch {plan.global_batch} = {plan.gpus} {device} × micro-batch {plan.micro_batch} "
        f"× {plan.accumulation} micro-steps"
    )
    return Group(parameters, optimizer, tokens, memory_table, batch)


def _optimizer_table(plan: Plan) -> Table:
    columns = ("learns as", "parameters", "learning rate", "weight decay", "betas", "schedule")
    table = Table(*columns)
    for label, part in plan.optimizer.items():
        rate = f"{part.learning_rate:g}"
        if part.lowest_learning_rate < part.learning_rate:
            rate = f"{part.lowest_learning_rate:.2g} to {rate}"
        schedule = f"{part.schedule}, warm-up {part.warmup:.1%}"
        if part.schedule == "wsd":
            schedule += f", decay {part.decay:.0%}"
        betas = ", ".join(f"{beta:g}" for beta in part.betas)
        cells = (f"{part.parameters:,}", rate, f"{part.weight_decay:g}", betas, schedule)
        table.add_row(label, *cells)
    return table
