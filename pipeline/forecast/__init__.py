"""Forecast of a stage without running it: parameters, memory, FLOPs and step time."""
