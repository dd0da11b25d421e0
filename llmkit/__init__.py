"""llmkit: pretraining of GPT-style models, from a laptop's CPU to a cluster, from one YAML file."""

__version__ = "0.1.0"
