"""One spec of every component class in `model.build`, found without a list to keep up to date."""

from dataclasses import MISSING, fields

from model.build import ENCODERS
from model.presets import PRESETS, system
from model.presets.blocks import monkey
from model.spec.high_resolution import Monkey


def default_spec(cls):
    """Return a spec with its defaults; required texts, such as `weights`, are empty.

    A class with other required fields must be used in a preset, or in the test's own systems.
    """
    required = [field for field in fields(cls) if field.default is field.default_factory is MISSING]
    others = [field.name for field in required if field.type not in ("str", str)]
    assert not others, f"{cls.__name__}: give {', '.join(others)} a default, or use it in a preset"
    return cls(**{field.name: "" for field in required})


def encoder_specs():
    """Return a spec of every encoder class: a preset's where there is one, else the defaults."""
    found = {Monkey: monkey()}
    for name in PRESETS:
        for branch in system(name).model.inputs:
            found.setdefault(type(branch.encoder), branch.encoder)
    return {cls: found[cls] if cls in found else default_spec(cls) for cls in ENCODERS}
