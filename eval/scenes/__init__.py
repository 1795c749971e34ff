"""Exact quality of a model of the miniature world: reconstruction, reading, drawing."""
