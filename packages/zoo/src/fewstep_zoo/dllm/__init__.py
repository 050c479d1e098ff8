"""Masked diffusion language models in the LLaDA format: one trained, one wired for recall, one of random weights."""
