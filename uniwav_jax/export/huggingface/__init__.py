"""What an exported directory carries: needs torch and transformers alone, never JAX."""
