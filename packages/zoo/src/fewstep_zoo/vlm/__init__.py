"""Questions about canvases of real digits: data, a small Qwen3-VL-MoE that answers them, and the task that asks."""
