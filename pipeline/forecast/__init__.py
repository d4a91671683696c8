"""What a stage will need: parameters, memory, FLOPs and step time; nothing is run."""
