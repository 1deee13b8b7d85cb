import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import call, slow

from jaxddpg import check
from jaxddpg.check import estimated, exact
from jaxddpg.envs import goddard, silver2014
from jaxddpg.parts import equations, networks, noise, products
from jaxddpg.types import Transition

GROUPS = [*check.ESTIMATED, *check.EXACT]
LEARNERS = {group for group in check.ESTIMATED if group is not estimated.exploration}


def outcome(group):
    """Which of its cases hold."""
    with jax.default_matmul_precision("highest"):
        return {case.name: case.holds for case in map(check.compare, group())}


@pytest.mark.parametrize("group", [slow(group) if group in LEARNERS else group for group in GROUPS])
def test_every_group_holds(group):
    assert all(outcome(group).values())


@pytest.mark.parametrize("group", [slow(group) if group is exact.parallel else group for group in check.EXACT])
def test_exact_groups_hold_to_the_precision_of_float64(group):
    with jax.enable_x64(True):
        cases = list(map(check.compare, group()))
    assert {case.dtype for case in cases} == {"float64"}
    assert all(case.holds and case.bound < 1e-8 for case in cases)


def swapped(environment):
    """An environment that mixes up its neighbors when there are several."""

    @jax.custom_batching.custom_vmap
    def confuse(observation):
        return observation

    @confuse.def_vmap
    def _(size, batched, observation):
        return observation[::-1], True

    def step(key, state, action):
        state, time_step = environment.step(key, state, action)
        return state, time_step.replace(observation=confuse(time_step.observation))

    return environment._replace(step=step)


def bfloat16(x):
    return x.astype(jnp.bfloat16).astype(x.dtype)


def unmoved(probabilities, reward, discount, v_min, v_max):
    return probabilities


ornstein_uhlenbeck, copdac = noise.ornstein_uhlenbeck, exact.copdac
BROKEN = {
    "the noise forgets faster": (
        (noise, "ornstein_uhlenbeck", lambda smoothing, scale: ornstein_uhlenbeck(0.97 * smoothing, scale)),
        (estimated.exploration, {"OU noise: autocorrelation", "OU noise: deviation"}),
    ),
    "the noise drifts": (
        (noise, "ornstein_uhlenbeck", lambda smoothing, scale: drifting(ornstein_uhlenbeck(smoothing, scale))),
        (estimated.exploration, {"OU noise: mean", "OU noise: autocorrelation"}),
    ),
    "the targets follow too fast": (
        (equations, "soft_update", lambda target, online, tau: (1 - 2 * tau) * target + 2 * tau * online),
        (exact.target_networks, {"soft update: response"}),
    ),
    "the variance is a difference of means": (
        (networks, "_TWO_PASSES", networks._TWO_PASSES | {"use_fast_variance": True}),
        (exact.offset_observations, {"batch norm: variance"}),
    ),
    "products are not rounded": (
        (products, "dot_general", lambda precision: lambda x, kernel, dimensions: x @ kernel),
        (exact.rounded_products, {"bfloat16: product", "bfloat16: slope of x", "bfloat16: slope of kernel"}),
    ),
    "sums are rounded": (
        (products, "_dot", lambda *args, dot=products._dot, **kwargs: bfloat16(dot(*args, **kwargs))),
        (exact.rounded_products, {"bfloat16: product", "bfloat16: slope of x", "bfloat16: slope of kernel"}),
    ),
    "a time limit cuts the bootstrap": (
        (equations, "transition", lambda rows, gamma: with_discount(rows, lambda rows: gamma * (1.0 - rows.last))),
        (exact.endings, {"time limit: value"}),
    ),
    "a termination does not": (
        (equations, "transition", lambda rows, gamma: with_discount(rows, lambda rows: gamma + 0.0 * rows.reward)),
        (exact.endings, {"termination: value"}),
    ),
    "the critic is not compatible": (
        (
            equations,
            "compatible_advantage",
            lambda offset, slope: jnp.sum(offset * slope, -1) / 2,
        ),
        (exact.compatible_critic, {"COPDAC-Q: step of w", "COPDAC-Q: step of v"}),
    ),
    "the actor climbs down": (
        (equations, "actor_loss", jnp.mean),
        (exact.policy_gradient, {"policy gradient: slopes"}),
    ),
    "the distribution is not moved": (
        (equations, "categorical_target", unmoved),
        (exact.projection, {"D4PG: projection"}),
    ),
    **{
        f"the target of {name} looks no further than the reward": (
            (equations, "td_target", lambda reward, discount, next_q: reward),
            (group, {f"{name}: gain", f"{name}: value"}),
        )
        for name, group in (("COPDAC-Q", estimated.copdac_regulator), ("TD3", estimated.td3_regulator))
    },
    **{
        f"the distribution of {name} is not moved": (
            (equations, "categorical_target", unmoved),
            (group, {f"{name}: gain", f"{name}: value"}),
        )
        for name, group in (("D4PG", estimated.d4pg_regulator), ("FastTD3", estimated.fasttd3_regulator))
    },
    "the actor of a network climbs down": (
        (equations, "actor_loss", jnp.mean),
        (estimated.ddpg_regulator, {"DDPG: gain", "DDPG: value"}),
    ),
    "the actor steps along w": (
        (exact, "copdac", lambda *args: copdac(*args[:2], dataclasses.replace(args[2], gradient="natural"))),
        (exact.compatible_critic, {"COPDAC-Q: step of theta"}),
    ),
    "the critic learns from other actions than those executed": (
        (exact, "copdac", lambda *args: learning_from_other_actions(copdac(*args))),
        (exact.compatible_critic, {"COPDAC-Q: step of w", "COPDAC-Q: step of v", "COPDAC-Q: on policy"}),
    ),
    **{
        f"{name}s side by side are mixed up": (
            (module, factory, lambda make=getattr(module, factory): swapped(make())),
            (exact.parallel, {f"parallel: {name}"}),
        )
        for name, module, factory in (
            ("mountain car", silver2014, "mountain_car"),
            ("pendulum", silver2014, "pendulum"),
            ("puddle world", silver2014, "puddle_world"),
            ("rocket", goddard, "rocket"),
        )
    },
}


SLOW = {
    *(f"the target of {name} looks no further than the reward" for name in ("COPDAC-Q", "TD3")),
    *(f"the distribution of {name} is not moved" for name in ("D4PG", "FastTD3")),
    "the actor of a network climbs down",
    "a termination does not",
    *(f"{name}s side by side are mixed up" for name in ("pendulum", "puddle world", "rocket")),
}
"""Those whose group takes long, and of which another breaks the same group or the same piece."""


def drifting(process):
    def sample(key, clock, state):
        state, disturbance = process.sample(key, clock, state)
        return state + 0.01, disturbance + 0.01

    return process._replace(sample=sample)


def learning_from_other_actions(agent):
    def update(key, clock, state, batch):
        return agent.update(key, clock, state, batch.replace(action=batch.action + 0.01))

    return agent._replace(update=update)


def with_discount(windows, discount_of):
    rows = jax.tree.map(lambda x: x[:, 0], windows)
    discount = discount_of(rows)
    return Transition(rows.observation, rows.action, rows.reward, rows.next_observation, discount)


@pytest.mark.parametrize("defect", [slow(defect) if defect in SLOW else defect for defect in BROKEN])
def test_a_broken_piece_breaks_its_group(defect, monkeypatch):
    (module, name, broken), (group, failing) = BROKEN[defect]
    monkeypatch.setattr(module, name, broken)
    assert {case for case, holds in outcome(group).items() if not holds} == failing


def test_a_value_that_is_not_a_number_does_not_hold():
    assert not check.compare(check.Case("nothing", jnp.array([0.0, jnp.nan]), 0.0, 1.0)).holds


@pytest.mark.parametrize(
    ("error", "code", "words"), [(0.5, 0, "all 1 checks passed"), (2.0, 1, "1 of 1 checks failed: a check")]
)
def test_the_command_prints_the_checks_and_fails_with_them(error, code, words, monkeypatch):
    monkeypatch.setattr(check, "self_test", lambda: iter([check.Check("a check", "float32", error, 0.0, error, 1.0)]))
    returned, shown, _ = call("check")
    assert returned == code
    assert "a check" in shown
    assert words in shown
