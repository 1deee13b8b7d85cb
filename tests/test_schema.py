"""The JSON Schema that editors check experiments with."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from jaxddpg import config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    schema = config.schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_is_accepted_and_names_the_schema_in_its_first_line(path, validator):
    assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == []
    name, _, target = path.read_text().splitlines()[0].partition("=")
    assert name == "# yaml-language-server: $schema"
    assert (path.parent / target).resolve() == ROOT / "configs" / "schema.json"


def test_the_stored_schema_is_that_of_the_settings():
    assert json.loads((ROOT / "configs" / "schema.json").read_text()) == config.schema()


@pytest.mark.parametrize(
    "content",
    [
        "agnt: {}",
        "agent: {gama: 0.9}",
        "agent: {gamma: 1.1}",
        "agent: {tau: 0}",
        "agent: {algorithm: sac}",
        "agent: {algorithm: copdac, tau: 0.1}",
        "agent: {batch_size: 1.5}",
        "agent: {actor: {hidden_sizes: 64}}",
        "agent: {actor: {normalization: bach}}",
        "training: {num_envs: 0}",
        "training: {updates_per_step: 2/3}",
        "replay: 5",
        "reporting: {wandb: 1}",
        "population: {selection: {method: pbt, reduction: 2}}",
        "noise: {scale: many}",
    ],
)
def test_a_typical_error_is_refused_as_by_the_reader(content, validator):
    assert not validator.is_valid(yaml.safe_load(content))
    with pytest.raises(config.ConfigError):
        config.parse(yaml.safe_load(content))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "agent:",
        "agent: {learning_rate_decay_steps: inf}",
        "agent: {learning_rate_decay_steps: 100_000, actor_learning_rate: 1e-3}",
        "training: {updates_per_step: 1/5, warmup_steps: 1e3, steps_per_epoch: 1000}",
        "agent: {algorithm: copdac, critic: gq, features: {encoding: fourier, order: 2}, actor: {hidden_sizes: []}}",
        "population: {sweep: {noise.scale: {linspace: [0, 1, 3]}}, num_seeds: 3}",
        "environment: {name: 'tasks:cart', parameters: {push: 2.0, easy: true}}",
    ],
)
def test_what_the_reader_accepts_is_accepted(content, validator):
    found = yaml.safe_load(content) or {}
    assert [error.message for error in validator.iter_errors(found)] == []
    config.parse(found)
