"""UniWav in JAX: joint pre-training of a speech encoder and a generative decoder."""
