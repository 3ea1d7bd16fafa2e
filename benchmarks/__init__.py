"""Measurements whose numbers stand in docs/; run from the checkout."""
