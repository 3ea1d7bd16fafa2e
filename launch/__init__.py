"""Launching: from the checkout, never installed."""
