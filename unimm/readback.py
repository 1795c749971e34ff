"""Read-back: latents as input embeddings of the language model.

Pictures from the encoder and latents from the generator go through the same projector, so the
model can look at what it drew before a pixel exists.

Shape legend:
    I pictures      N latent tokens      D latent channels      H language-model width
"""

from jaxtyping import Float
from torch import Tensor, nn


class Projector(nn.Module):
    """Two linear layers around an exact GELU, as in LLaVA-1.5 (arXiv:2310.03744)."""

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(latent_dim, hidden_dim)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, latents: Float[Tensor, "I N D"]) -> Float[Tensor, "I N H"]:
        return self.fc2(self.activation(self.fc1(latents)))  # type: ignore[no-any-return]
