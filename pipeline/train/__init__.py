"""Training under DeepSpeed: `train.py` is the whole run, `loop.py` the step loop."""
