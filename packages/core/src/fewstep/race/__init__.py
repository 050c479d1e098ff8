"""Training measured: recipes trained in turn from the same seeds, scored between the slices as users would use them."""
