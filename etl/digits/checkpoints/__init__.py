"""The digits world's toy checkpoints: frozen models trained from that world alone.

`python -m etl.digits.checkpoints` trains them again; each is a plain transformers checkpoint and is
loaded through the same `from_pretrained` path as a published one.
"""
