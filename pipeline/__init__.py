"""The pipeline package: configuration, training under DeepSpeed, evaluation."""
