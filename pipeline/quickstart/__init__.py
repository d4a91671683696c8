"""The whole system on the digits toy world, and the training of its 3D encoder."""
