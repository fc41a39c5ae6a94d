"""Config: which rule decides about a layer, what is refused, and the form in JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest

pytest.importorskip("torch")

from diba import SolveOptions
from diba.layers.config import OVERRIDES, Config, Settings


def k_of(config: Config, name: str) -> int | None:
    settings = config.settings(name)
    return None if settings is None else settings.k


def test_defaults_become_the_settings_of_a_layer() -> None:
    config = Config(
        bits_per_weight=2, alphabet="sign", method="dbf", effort="best", objective="plain", seed=7
    )
    assert config.settings("any") == Settings(
        bits_per_weight=2, alphabet="sign", method="dbf", effort="best", objective="plain", seed=7
    )
    assert config.rule("any") is None


def test_how_matrices_are_factored_is_declared_by_solve_options() -> None:
    names = {f.name for f in dataclasses.fields(SolveOptions)}
    assert names <= {f.name for f in dataclasses.fields(Config)}
    assert set(OVERRIDES) == names - {"threads"} | {
        "bits_per_weight",
        "k",
        "snr_db",
        "objective",
        "bias",
        "codes",
        "group",
    }
    for f in dataclasses.fields(Config):
        if f.name in names:
            assert (f.name, getattr(Config(k=1), f.name)) == (
                f.name,
                "sign" if f.name == "alphabet" else getattr(SolveOptions(), f.name),
            )
    options = Config(k=1, max_iter=3, time_limit=2, tol=0.5, threads=2).settings("any").solve_options()  # type: ignore[union-attr]
    assert (options["max_iter"], options["time_limit"], options["tol"]) == (3, 2, 0.5)
    assert "threads" not in options


def test_exact_names_come_first_then_patterns_in_order() -> None:
    config = Config(
        k=1,
        skip=["re:.*norm.*", "head"],
        layers={
            "re:block.0.*": {"k": 2},
            "re:block.*": {"k": 3},
            "block.0.norm": {"k": 4},
            "block.0.out": None,
            "re:block.9.*": {"k": 5},
        },
    )
    assert k_of(config, "block.0.norm") == 4  # exact, before skip's pattern
    assert config.settings("block.0.out") is None
    assert k_of(config, "block.0.q") == 2
    assert k_of(config, "block.1.q") == 3
    assert k_of(config, "block.9.q") == 3  # the first that matches, not the closest
    assert config.settings("block.1.norm") is None  # skip's patterns before those of layers
    assert config.settings("head") is None
    assert k_of(config, "head.0") == 1  # an exact name is no prefix
    assert k_of(config, "a.block.0.q") == 1  # a pattern matches the whole name
    assert config.rule("block.1.norm") == "re:.*norm.*"
    assert config.unmatched(["block.0.norm", "block.0.out", "block.9.q"]) == ["head"]


def test_an_override_replaces_the_size_whatever_its_name() -> None:
    config = Config(bits_per_weight=2, layers={"a": {"snr_db": 12.5}, "b": {"alphabet": "binary"}})
    assert config.settings("a") == Settings(snr_db=12.5)
    assert config.settings("b") == Settings(bits_per_weight=2, alphabet="binary")
    options = config.settings("a").solve_options()  # type: ignore[union-attr]
    assert options["snr_db"] == 12.5
    assert options["bits_per_weight"] is None
    assert "objective" not in options


def test_json_round_trip() -> None:
    config = Config(
        snr_db=9.5,
        skip=("head", "re:x.*"),
        layers={"re:.*a": {"k": 3, "objective": "plain"}, "b": None},
        tied=True,
        embeddings=True,
        convolutions=False,
        threads=3,
    )
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert list(config.to_dict()["layers"]) == ["re:.*a", "b"]


def test_it_keeps_nothing_of_the_callers() -> None:
    layers: dict[str, Any] = {"a": {"k": 3}}
    config = Config(k=2, layers=layers)
    layers["a"]["k"] = 9
    layers["b"] = None
    config.to_dict()["layers"]["a"]["k"] = 10
    assert config.layers == {"a": {"k": 3}}
    with pytest.raises(AttributeError):
        config.k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 2}, r"unknown key 'bits'.*known: .*bits_per_weight, k, snr_db"),
        ({"bits_per_wieght": 2}, "did you mean 'bits_per_weight'"),
        ({"k": 2, "layers": {"a": {"bit_per_weight": 1}}}, r"layers\['a'\].*did you mean 'bits_per_weight'"),
        ({"k": 2, "layers": {"a": {"threads": 1}}}, r"layers\['a'\] has the unknown key 'threads'"),
    ],
)
def test_unknown_keys_are_refused_with_the_known_ones(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.from_dict(values)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({}, ValueError, "no size is given; give exactly one of bits_per_weight, k, snr_db"),
        ({"k": 2, "bits_per_weight": 1}, ValueError, "bits_per_weight=1 and k=2 are given"),
        ({"k": 2.5}, TypeError, "k is 2.5"),
        ({"k": 0}, ValueError, "k is 0"),
        ({"bits_per_weight": 0}, ValueError, "bits_per_weight is 0"),
        ({"snr_db": "10"}, TypeError, "snr_db is '10'"),
        ({"k": 2, "alphabet": "ternary"}, ValueError, "alphabet is 'ternary'"),
        ({"k": 2, "method": "best"}, ValueError, "method is 'best'"),
        ({"k": 2, "method": "dbf", "alphabet": "binary"}, ValueError, "must be 'sign' for method='dbf'"),
        ({"k": 2, "effort": "high"}, ValueError, "effort is 'high'"),
        ({"k": 2, "objective": "fisher"}, ValueError, "objective is 'fisher'"),
        ({"k": 2, "seed": -1}, ValueError, "seed is -1"),
        ({"k": 2, "threads": 0}, ValueError, "threads is 0"),
        ({"k": 2, "tied": 1}, TypeError, "tied is 1"),
        ({"k": 2, "skip": "head"}, TypeError, "skip is 'head'"),
        ({"k": 2, "skip": [3]}, TypeError, "an entry of skip is 3"),
        ({"k": 2, "skip": ["re:("]}, ValueError, "not a regular expression"),
        ({"k": 2, "layers": ["a"]}, TypeError, "layers is"),
        ({"k": 2, "layers": {"a": 3}}, TypeError, r"layers\['a'\] is 3"),
        ({"k": 2, "layers": {"re:[": None}}, ValueError, "not a regular expression"),
        ({"k": 2, "layers": {"a": {"k": 2, "snr_db": 3}}}, ValueError, r"layers\['a'\]: k=2 and snr_db=3"),
        ({"k": 2, "layers": {"a": {"k": "2"}}}, TypeError, r"layers\['a'\]: k is '2'"),
        (
            {"k": 2, "layers": {"a": {"seed": 1}}, "skip": ["a"]},
            ValueError,
            "'a' is in skip and has overrides",
        ),
        ([("k", 2)], TypeError, "values is"),
    ],
)
def test_bad_values(values: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Config.from_dict(values)
