"""UniWav in JAX: joint pre-training of a speech encoder and a generative decoder."""

import time

# When this process began, as `time.monotonic` shows it; imports take seconds.
BEGAN = time.monotonic()
