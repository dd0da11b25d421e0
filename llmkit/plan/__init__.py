"""The plan of a run: every number that follows from settings, launch, tokenizer and device."""

from llmkit.plan.facts import DeviceFacts
from llmkit.plan.plan import Kernels, Known, Plan
from llmkit.plan.resolve import plan_for_shape, resolve_plan

__all__ = ["DeviceFacts", "Kernels", "Known", "Plan", "plan_for_shape", "resolve_plan"]
