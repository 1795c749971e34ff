"""What may flow from which query to which condition."""

import pytest
import torch
from torch import Tensor

from metaquery.connector import Connector, ConnectorConfig, ConnectorKind
from metaquery.queries import QueryTokens

QUERIES, WIDTH, OUT = 4, 16, 8


def build(kind: ConnectorKind) -> Connector:
    torch.manual_seed(0)
    return Connector(
        ConnectorConfig(kind=kind, in_dim=WIDTH, out_dim=OUT, num_queries=QUERIES, num_heads=2)
    )


def influence(connector: Connector) -> Tensor:
    """Return, as (output, input), whether a query's state reaches a query's condition."""
    states = torch.randn(1, QUERIES, WIDTH, generator=torch.Generator().manual_seed(0))
    before = connector(states)
    reached = []
    for query in range(QUERIES):
        changed = states.clone()
        changed[:, query] += 1
        reached.append((connector(changed) - before).abs().sum(-1)[0] > 1e-4)
    return torch.stack(reached, dim=1)


@pytest.mark.parametrize("kind", ["linear", "mlp2"])
def test_projections_keep_queries_apart(kind: ConnectorKind) -> None:
    assert torch.equal(influence(build(kind)), torch.eye(QUERIES, dtype=torch.bool))


def test_an_encoder_lets_queries_see_each_other_both_ways() -> None:
    assert influence(build("encoder6")).all()


def test_an_encoder_knows_the_order_of_its_queries() -> None:
    connector = build("encoder6")
    states = torch.randn(1, QUERIES, WIDTH, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(connector(states.flip(1)), connector(states).flip(1), atol=1e-3)


@pytest.mark.parametrize(("kind", "depth"), [("linear", 0), ("encoder6", 6), ("encoder24", 24)])
def test_presets_have_their_depth(kind: ConnectorKind, depth: int) -> None:
    connector = build(kind)
    assert (0 if connector.encoder is None else len(connector.encoder.blocks)) == depth
    assert connector(torch.zeros(2, QUERIES, WIDTH)).shape == (2, QUERIES, OUT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mlp3"}, "connector kind must be one of linear, mlp2, .* got 'mlp3'"),
        ({"out_dim": 0}, "must be at least 1, got 16, 0 and 4"),
        ({"kind": "encoder6", "num_heads": 3}, r"in_dim \(16\) over num_heads \(3\)"),
    ],
)
def test_impossible_connectors_are_refused(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"in_dim": WIDTH, "out_dim": OUT, "num_queries": QUERIES}
    with pytest.raises(ValueError, match=message):
        ConnectorConfig(**(fields | changes))  # type: ignore[arg-type]


def test_queries_follow_the_prompt_and_are_never_masked() -> None:
    queries = QueryTokens(QUERIES, WIDTH)
    prompt, mask = torch.zeros(2, 3, WIDTH), torch.tensor([[False, True, True], [True] * 3])
    embeds, full_mask = queries.append_to(prompt, mask)
    assert torch.equal(embeds[:, :3], prompt)
    assert torch.equal(embeds[1, 3:], queries.embeddings)
    assert torch.equal(full_mask[:, :3], mask)
    assert full_mask[:, 3:].all()
    torch.autograd.backward(embeds.sum())
    assert queries.embeddings.grad is not None
    assert torch.equal(queries.embeddings.grad, torch.full((QUERIES, WIDTH), 2.0))


def test_queries_start_as_long_as_a_normalised_state() -> None:
    torch.manual_seed(0)
    lengths = QueryTokens(64, 256).embeddings.norm(dim=-1)
    # A mean of 64 chi variables of 256 degrees of freedom: standard error 1 / 180.
    assert lengths.mean().item() == pytest.approx(1.0, abs=0.02)


def test_no_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 8"):
        QueryTokens(0, 8)
