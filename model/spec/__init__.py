"""Specifications of multimodal LLMs as frozen dataclasses; imports no torch.

Classes that can fill the same field carry a `kind`, by which a configuration file distinguishes
them. docs/components.md says what the spec of each component must define.
"""

from model.spec.backbones import Llama
from model.spec.base import ProjectorShape, SpecError, choose
from model.spec.chat_template import ChatTemplate
from model.spec.fusion import Splice
from model.spec.image import ClipVision
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.peft import Lora
from model.spec.projectors import Mlp
from model.spec.system import Stage, System

__all__ = [
    "ChatTemplate",
    "ClipVision",
    "InputBranchSpec",
    "Llama",
    "Lora",
    "Mlp",
    "ModelSpec",
    "ProjectorShape",
    "SpecError",
    "Splice",
    "Stage",
    "System",
    "choose",
]
