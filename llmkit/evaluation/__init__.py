"""Evaluation of a model by tasks: scores of answers, and EleutherAI's lm-eval on top of them."""
