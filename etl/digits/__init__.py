"""The digits world: the embedded toy corpus, a small multimodal world of real handwriting."""
