"""Training: one loop for all methods. Objectives say what is minimised, recipes say what is run."""
