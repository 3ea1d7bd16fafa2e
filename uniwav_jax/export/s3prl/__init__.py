"""What makes an exported directory an upstream of s3prl: torch and transformers, never JAX."""
