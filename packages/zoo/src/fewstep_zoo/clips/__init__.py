"""A video VAE in Wan's format, trained on real clips."""
