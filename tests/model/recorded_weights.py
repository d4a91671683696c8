"""Weights of the recorded references, regenerated at random: files only store the outputs.

A recorded file lists the names and shapes of the reference's tensors; both sides draw them here.
"""

import json
import math

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file


def draw(shapes):
    """Return tensors by name: matrices preserve the variance, norms are close to one."""
    generator = np.random.RandomState(0)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        normal = torch.from_numpy(generator.standard_normal(shape)).float()
        if len(shape) > 1:
            tensors[name] = normal / math.sqrt(normal[0].numel())
        elif name.endswith(("weight", "running_var")):
            tensors[name] = 1 + 0.2 * normal.abs()
        else:
            tensors[name] = 0.2 * normal
    return tensors


def recorded(file):
    """Return the reference's weights and the recorded tensors."""
    with safe_open(file, "pt") as opened:
        shapes = json.loads(opened.metadata()["shapes"])
    return draw(shapes), load_file(file)
