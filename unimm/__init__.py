"""A model that draws in the latent space it sees in, reads what it drew, and chooses."""

__version__ = "0.1.0"
