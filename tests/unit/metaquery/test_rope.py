"""Positions: what rotary tables and sin-cos embeddings promise."""

import torch

from metaquery.rope import grid_rope, rotate, sequence_rope, sincos_embedding

DIM = 16
GRID = 25  # 5 x 5


def scores(tables: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return q k of one query and key vector placed at every pair of positions."""
    tokens = tables.shape[1]
    placed = [rotate(x.expand(1, tokens, 1, DIM), tables)[0, :, 0].double() for x in (query, key)]
    return placed[0] @ placed[1].T


def random_pair() -> tuple[torch.Tensor, torch.Tensor]:
    query, key = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
    return query, key


def test_rotation_keeps_lengths() -> None:
    x = torch.randn(2, GRID, 3, DIM, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, grid_rope(GRID, DIM))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_scores_depend_on_the_offset_of_rows_and_columns_alone() -> None:
    table = scores(grid_rope(GRID, DIM), *random_pair()).view(5, 5, 5, 5)
    torch.testing.assert_close(table[0, 1, 2, 3], table[2, 2, 4, 4], rtol=1e-5, atol=1e-5)
    assert abs(table[0, 1, 2, 3] - table[0, 1, 3, 2]) > 0.1  # rows and columns are told apart


def test_scores_in_a_sequence_depend_on_the_distance() -> None:
    table = scores(sequence_rope(GRID, DIM), *random_pair())
    torch.testing.assert_close(table[0, 3], table[20, 23], rtol=1e-5, atol=1e-5)
    assert abs(table[0, 3] - table[3, 0]) > 0.1


def test_the_first_half_of_a_head_turns_with_the_row() -> None:
    cosine, _ = grid_rope(GRID, DIM)
    by_place = cosine.view(5, 5, DIM)
    assert torch.equal(by_place[:, 0, : DIM // 2], by_place[:, 4, : DIM // 2])
    assert torch.equal(by_place[0, :, DIM // 2 :], by_place[4, :, DIM // 2 :])


def test_pairs_turn_as_complex_numbers() -> None:
    x = torch.randn(1, GRID, 1, DIM, generator=torch.Generator().manual_seed(0))
    frequencies = 10_000.0 ** (-torch.arange(0, DIM, 2) / DIM)
    phase = torch.polar(torch.ones(GRID, DIM // 2), torch.arange(GRID)[:, None] * frequencies[None])
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * phase[:, None])
    torch.testing.assert_close(rotate(x, sequence_rope(GRID, DIM)), expected.flatten(-2))


def test_rotation_stays_in_the_dtype_of_its_input() -> None:
    x = torch.ones(1, GRID, 1, DIM, dtype=torch.bfloat16)
    assert rotate(x, grid_rope(GRID, DIM)).dtype == torch.bfloat16


def test_fixed_positions_encode_the_column_first() -> None:
    embedding = sincos_embedding(GRID, DIM).view(5, 5, DIM)
    assert torch.equal(embedding[0, :, : DIM // 2], embedding[3, :, : DIM // 2])
    assert torch.equal(embedding[:, 0, DIM // 2 :], embedding[:, 3, DIM // 2 :])
    torch.testing.assert_close(embedding[0, 2, 0], torch.tensor(2.0).sin())
    torch.testing.assert_close(embedding[0, 2, DIM // 4], torch.tensor(2.0).cos())
    assert len(embedding.flatten(0, 1).unique(dim=0)) == GRID
