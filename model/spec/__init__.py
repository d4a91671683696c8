"""What a multimodal LLM is made of, as frozen dataclasses; no torch here.

Classes that may stand in the same slot carry a `kind`, by which a configuration file tells them
apart. docs/components.md says what a part of each slot must tell of itself.
"""

from model.spec.backbones import ChatTemplate, Llama
from model.spec.base import ProjectorShape, SpecError, choose
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
