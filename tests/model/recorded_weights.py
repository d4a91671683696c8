"""Weights of the recorded references, drawn anew so that the files need hold only what came out.

A recorded file lists the names and shapes of the reference's tensors; both sides draw them here.
"""

import json
import math

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file


def draw(shapes):
    """Tensors by name: matrices keep the size of what goes through them, norms stay near one."""
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
