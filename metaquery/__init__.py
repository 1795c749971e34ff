"""Hidden states in, latents out: queries, connector, diffusion transformer, flow, samplers."""

from metaquery.connector import Connector, ConnectorConfig
from metaquery.dit import DiT, DiTConfig
from metaquery.flow import FlowSample, dimension_shift, flow_matching_loss, shift_time
from metaquery.generator import GeneratorConfig, LatentGenerator
from metaquery.guidance import autoguidance, classifier_free
from metaquery.queries import QueryTokens
from metaquery.sampler import EvaluationCounter, Step, integrate, steps, time_grid

__all__ = [
    "Connector",
    "ConnectorConfig",
    "DiT",
    "DiTConfig",
    "EvaluationCounter",
    "FlowSample",
    "GeneratorConfig",
    "LatentGenerator",
    "QueryTokens",
    "Step",
    "autoguidance",
    "classifier_free",
    "dimension_shift",
    "flow_matching_loss",
    "integrate",
    "shift_time",
    "steps",
    "time_grid",
]
