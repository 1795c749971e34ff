"""Measure the models: is it right, is it good, what does it cost."""
