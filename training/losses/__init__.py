"""Losses of pixels: what a reconstruction looks like, and what a critic makes of it."""
