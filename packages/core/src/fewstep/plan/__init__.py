"""Predict what methods give for a model on a machine, from its configuration alone, and compare with measured rows."""
