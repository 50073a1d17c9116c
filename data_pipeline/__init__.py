"""Raw text in, batches of token ids out. No jax, no flax, no lm; tensorflow is imported when it is used."""
