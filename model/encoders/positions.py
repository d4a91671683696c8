"""A vision transformer for another picture size than its checkpoint's.

Shapes: n positions, d width.
"""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from model.positions import resize_positions


def resize_tower(
    tower: PreTrainedModel,
    config: PretrainedConfig,
    name: str,
    **options: bool,
) -> PreTrainedModel:
    """Return the tower for pictures of the size in `config`.

    Args:
        tower: a transformers model with a class token.
        config: the tower's, except for the picture size.
        name: of the position embedding in its state dict, (n, d) or (1, n, d).
        options: of the tower's constructor.
    """
    if tower.config.image_size == config.image_size:
        return tower
    state = tower.state_dict()
    positions = state[name]
    side = config.image_size // config.patch_size
    resized_nd = resize_positions(positions.flatten(0, -2), side, first=1)
    state[name] = resized_nd.reshape(*positions.shape[:-2], *resized_nd.shape)
    resized: PreTrainedModel = type(tower).from_pretrained(
        None, config=config, state_dict=state, dtype=tower.dtype, **options
    )
    return resized
