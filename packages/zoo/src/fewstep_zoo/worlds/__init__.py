"""Panning worlds: a window that moves over a texture, with coloured digits in front; a clip is known from its start."""
