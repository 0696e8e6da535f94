"""Recipes and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlstm import InputError
from fastlstm.config import config_from_dict, config_to_dict, load_config, recipe_names
from fastlstm.training.config import OptimizerConfig, TrainConfig, learning_rate


def test_overrides_beat_the_recipe_and_the_recipe_beats_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text("[model]\nhidden_size = 64\n[data]\nwindow = 32\n")
    config = load_config(TrainConfig, recipe, ["model.hidden_size=16", "data.reset=document", "optimizer.clip=1"])
    assert (config.model.hidden_size, config.data.window, config.data.batch_size) == (16, 32, 128)
    assert (config.data.reset, config.optimizer.clip) == ("document", 1.0)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package_load_and_round_trip(name: str) -> None:
    config = load_config(TrainConfig, name)
    assert config_from_dict(TrainConfig, config_to_dict(config)) == config


def test_the_default_is_the_seeds_recipe() -> None:
    assert load_config(TrainConfig, "carvalho2018") == TrainConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden=16", r"model\.hidden: unknown key; known here: forget_bias, hidden_size"),
        ("model.hidden_size=big", "model.hidden_size: expected int, got 'big'"),
        ("model.hidden_size=true", "model.hidden_size: expected int, got True"),
        ("data.reset=never", "data.reset: expected one of shard, document, got 'never'"),
        ("data.batch_size=0", "data.batch_size: expected a positive number, got 0"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: expected a positive number, got nan"),
        ("model.seed=-1", "model.seed: expected 0 to"),
        ("optimizer=3", "optimizer: expected a group of keys, got 3"),
        ("optimizer.steps=1.5", "optimizer.steps: expected int or none, got 1.5"),
        ("hidden_size", "override 'hidden_size': expected key=value"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(TrainConfig, None, [override])


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"recipe 'carvalho': expected a \.toml file or one of carvalho2018, demo"):
        load_config(TrainConfig, "carvalho")


def test_none_takes_back_a_recipe_s_value() -> None:
    assert load_config(TrainConfig, "demo", ["optimizer.steps=none"]).optimizer.steps is None


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    seed = OptimizerConfig(learning_rate=1.0)
    assert [learning_rate(seed, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    warm = OptimizerConfig(learning_rate=1.0, warmup_steps=1)
    assert learning_rate(warm, 0, 4) == 0.5
    assert learning_rate(warm, 1, 4) == 0.75
