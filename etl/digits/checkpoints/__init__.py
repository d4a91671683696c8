"""The digits world's frozen parents: trained here from that world alone, kept as safetensors.

`python -m etl.digits.checkpoints` makes both folders anew; each is a plain transformers checkpoint
and is loaded through the same `from_pretrained` path as a published one.
"""
