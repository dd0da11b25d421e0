"""The parts of `benchmarks/gpu.py`: what one GPU can do, and what llmkit and its peers make of it."""
