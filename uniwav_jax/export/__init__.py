"""Out of JAX: a run as a Hugging Face directory, and back."""
