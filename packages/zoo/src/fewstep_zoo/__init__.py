"""Small, really trained models in the real formats."""
