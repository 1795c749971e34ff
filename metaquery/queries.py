"""Learnable queries: the seam between a language model and a generator.

Shape legend:
    B batch      L prompt tokens      Q queries      H language-model width
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class QueryTokens(nn.Module):
    """Append learnable query embeddings to a prompt (Pan et al. 2025, arXiv:2504.06256).

    The language model attends from the queries to the prompt; its hidden
    states at the query positions are what the connector turns into the
    generator's condition. The queries are the only new input parameters, so
    the language model itself can stay frozen.
    """

    def __init__(self, num_queries: int, hidden_dim: int) -> None:
        super().__init__()
        if num_queries < 1 or hidden_dim < 1:
            raise ValueError(
                f"num_queries and hidden_dim must be at least 1, got {num_queries} and {hidden_dim}"
            )
        # 1 / sqrt(H), as Scale-RAE: queries start about as long as a normalised state.
        self.embeddings = nn.Parameter(torch.randn(num_queries, hidden_dim) * hidden_dim**-0.5)

    @property
    def num_queries(self) -> int:
        return self.embeddings.shape[0]

    def append_to(
        self,
        prompt: Float[Tensor, "B L H"],
        prompt_mask: Bool[Tensor, "B L"],
    ) -> tuple[Float[Tensor, "B L+{self.num_queries} H"], Bool[Tensor, "B L+{self.num_queries}"]]:
        """Return the prompt followed by the queries, and the mask of both.

        Args:
            prompt: Input embeddings of the prompt, left-padded.
            prompt_mask: True where a position holds a real token.

        Returns:
            Embeddings and mask of length L + Q; query positions are never masked.
        """
        batch = prompt.shape[0]
        queries = self.embeddings.to(prompt.dtype).expand(batch, -1, -1)  # (B, Q, H)
        query_mask = prompt_mask.new_ones(batch, self.num_queries)
        return torch.cat([prompt, queries], dim=1), torch.cat([prompt_mask, query_mask], dim=1)
