"""Training: state, step, loop, checkpoints, telemetry."""
