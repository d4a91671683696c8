"""Answers that hold media: prompts to text, and to the media that a trained run generates."""

from pipeline.generate.assistant import GeneratingAssistant
from pipeline.generate.replies import GeneratedMedium, GenerationSettings, Reply

__all__ = ["GeneratedMedium", "GeneratingAssistant", "GenerationSettings", "Reply"]
