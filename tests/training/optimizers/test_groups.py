"""Clipping and parameter groups against torch.optim over whole short trainings, and the rules that make groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metasched.core.errors import MetaschedError
from metasched.training.optimizers.adam import Adam
from metasched.training.optimizers.base import update_stacked
from metasched.training.optimizers.clipping import Clipped, clip_norm, clip_value
from metasched.training.optimizers.config import GroupConfig, OptimizerConfig
from metasched.training.optimizers.groups import Group, Grouped, resolve
from metasched.training.optimizers.recipe import learning_rates, recipe
from metasched.training.optimizers.sgd import SGD

STEPS = 30
TORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
BY_KIND = ({"match": "norm", "weight_decay": 0.0}, {"match": "bias", "weight_decay": 0.0, "lr_factor": 2.0})
BY_NAME = ({"match": "2.*", "lr_factor": 0.1}, {"match": "Linear", "weight_decay": 0.2})

# pairwise: each rule with each clipping, each decay and each kind of groups
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sgd", dict(groups=BY_KIND, clip_norm=0.5, decay="cosine", warmup=0.2, weight_decay=0.05)),
    ("sgd", dict(groups=BY_NAME, clip_value=0.05, decay="step", weight_decay=0.05, nesterov=True)),
    ("sgd", dict(nesterov=True, weight_decay=0.1, decay="linear", clip_norm=1e3)),
    ("adam", dict(groups=BY_NAME, clip_norm=0.5, decay="one_cycle", weight_decay=0.05)),
    ("adam", dict(groups=BY_KIND, decay="linear", warmup=0.1, weight_decay=0.0)),
    ("adam", dict(clip_value=0.05, decay="cosine")),
    ("adamw", dict(groups=BY_KIND, clip_norm=0.3, decay="step", warmup=0.3, weight_decay=0.1)),
    ("adamw", dict(groups=BY_NAME, clip_value=0.05, decay="cosine", weight_decay=0.1)),
]


def build() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(4)
    return torch.randn(STEPS, 16, 6, generator=draws), torch.randn(STEPS, 16, 3, generator=draws)


def members(model: nn.Sequential, groups: tuple[dict[str, Any], ...]) -> list[list[str]]:
    """Written out by hand for this model: the parameters of each rule, and of none."""
    names = [name for name, _ in model.named_parameters()]
    if groups is BY_KIND:
        chosen = [["1.weight", "1.bias"], ["0.bias", "2.bias", "4.bias"]]
    elif groups is BY_NAME:
        chosen = [["2.weight", "2.bias"], ["0.weight", "0.bias", "4.weight", "4.bias"]]
    else:
        chosen = []
    return [*chosen, [name for name in names if not any(name in part for part in chosen)]]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_a_whole_training_is_that_of_torch(name: str, settings: dict[str, Any]) -> None:
    groups = settings.get("groups", ())
    config = OptimizerConfig(
        **{"name": name, "lr": 0.05, **settings, "groups": tuple(GroupConfig(**g) for g in groups)}
    )
    model, (x, y) = build(), data()
    rule, hyper = recipe(config, model)
    rates = learning_rates(config, STEPS)
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    state = rule.init(params)
    for t in range(STEPS):
        params = {k: p.requires_grad_() for k, p in params.items()}
        loss = nn.functional.mse_loss(functional_call(model, params, (x[t],)), y[t])
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        with torch.no_grad():
            params, state = rule.update(params, grads, state, {**hyper, "lr": rates[t]})

    own = dict(model.named_parameters())
    default = {"weight_decay": config.weight_decay}
    options = {"momentum": config.momentum, "nesterov": config.nesterov} if name == "sgd" else {}
    torch_groups = [
        {"params": [own[n] for n in part], "lr": config.lr * g.get("lr_factor", 1.0)} | default | weight_decay_of(g)
        for part, g in zip(members(model, groups), [*groups, {}], strict=True)
    ]
    starts = [group["lr"] for group in torch_groups]
    optimizer = TORCH[name](torch_groups, lr=config.lr, foreach=False, **options)
    for t in range(STEPS):
        for group, start in zip(optimizer.param_groups, starts, strict=True):
            group["lr"] = start * rates[t] / config.lr  # the curves have tests of their own
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[t]), y[t]).backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if config.clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), config.clip_value)
        optimizer.step()
    for key, p in own.items():
        torch.testing.assert_close(params[key], p.detach(), rtol=1e-12, atol=1e-12)


def weight_decay_of(group: dict[str, Any]) -> dict[str, float]:
    return {"weight_decay": group["weight_decay"]} if "weight_decay" in group else {}


@pytest.mark.parametrize("rule", [SGD(nesterov=True), Adam()])
def test_one_group_of_all_has_the_bits_of_no_group(rule: Any) -> None:
    params = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    hyper = dict(lr=0.1, momentum=0.9, weight_decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8)
    grouped = Grouped(rule, (Group(frozenset("b")), Group(frozenset("a"))))
    expected, plain = (params, rule.init(params)), rule
    found = (params, grouped.init(params))
    for _ in range(3):
        grads = {name: torch.randn_like(p) for name, p in params.items()}
        expected = plain.update(expected[0], grads, expected[1], hyper)
        found = grouped.update(found[0], grads, found[1], hyper)
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_clipping_equals_torch_and_leaves_small_gradients_their_bits() -> None:
    for scale in (1e-3, 1.0, 1e3):
        grads: dict[str, torch.Tensor | None] = {"a": scale * torch.randn(4, 3), "b": scale * torch.randn(5), "c": None}
        leaves = {name: nn.Parameter(torch.zeros_like(g)) for name, g in grads.items() if g is not None}
        for clip, torchs in ((clip_norm, nn.utils.clip_grad_norm_), (clip_value, nn.utils.clip_grad_value_)):
            for name, leaf in leaves.items():
                leaf.grad = grads[name].clone()  # pyright: ignore[reportOptionalMemberAccess]
            torchs(leaves.values(), 0.7)
            for threshold in (0.7, torch.tensor(0.7)):
                found = clip(grads, threshold)
                assert found["c"] is None
                for name, leaf in leaves.items():
                    torch.testing.assert_close(found[name], leaf.grad, rtol=1e-12, atol=1e-15)
                    assert scale > 1e-3 or torch.equal(found[name], grads[name])  # pyright: ignore
    assert clip_norm({"a": None}, 1.0) == {"a": None}


def test_clipping_is_differentiable_also_at_zero() -> None:
    a, b = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    for clip in (clip_norm, clip_value):
        for c in (0.4, 50.0):

            def values(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, clip: Any = clip) -> tuple:
                return tuple(clip({"a": a, "b": b}, c).values())

            inputs = (a, b, torch.tensor(c, requires_grad=True))
            assert torch.autograd.gradcheck(values, inputs) and torch.autograd.gradgradcheck(values, inputs)
    zero = torch.zeros(3, requires_grad=True)
    (clipped,) = clip_norm({"a": zero}, torch.tensor(1.0)).values()
    (slope,) = torch.autograd.grad(clipped.sum(), zero, create_graph=True)  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(slope, torch.ones(3))


@pytest.mark.parametrize("rule", [SGD(), Adam()])
def test_stacked_runs_are_clipped_one_by_one(rule: Any) -> None:
    runs, hyper = 3, dict(lr=0.1, momentum=0.9, weight_decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8, clip_norm=1.0)
    optimizer = Clipped(Grouped(rule, (Group(frozenset("b"), 0.5, 0.0),)), "clip_norm")
    params = {"a": torch.randn(runs, 4), "b": torch.randn(runs)}  # 0-d in each run
    sizes = torch.tensor([0.01, 1.0, 100.0])  # only some of them are clipped
    together = (params, optimizer.init(params))
    alone = [(own, optimizer.init(own)) for own in ({n: p[i] for n, p in params.items()} for i in range(runs))]
    for _ in range(3):
        grads = {"a": sizes[:, None] * torch.randn(runs, 4), "b": sizes * torch.randn(runs)}
        together = update_stacked(optimizer, together[0], grads, together[1], hyper)
        alone = [optimizer.update(p, {n: g[i] for n, g in grads.items()}, s, hyper) for i, (p, s) in enumerate(alone)]
    for part, whole in enumerate(together):
        for key, t in whole.items():
            expected = alone[0][part][key] if key == "step" else torch.stack([one[part][key] for one in alone])
            torch.testing.assert_close(t, expected, rtol=1e-14, atol=1e-15)


def test_the_first_rule_that_matches_decides_and_the_methods_tensors_have_names() -> None:
    model = build()
    names = [*(name for name, _ in model.named_parameters()), "0/scale", "4/scale"]
    rules = [GroupConfig(match=m) for m in ("4/*", "scale", "norm", "*.bias", "Linear")]
    found = [sorted(group.names) for group in resolve(rules, names, model)]
    assert found == [
        ["4/scale"],
        ["0/scale"],
        ["1.bias", "1.weight"],
        ["0.bias", "2.bias", "4.bias"],
        ["0.weight", "2.weight", "4.weight"],
    ]


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        (["0.bais"], "optimizer.groups[0].match: '0.bais' matches no parameter; use one of norm, bias, scale, or"),
        (["bias", "scale"], "optimizer.groups[1].match: 'scale' matches no parameter"),
        (["1.*", "norm"], "optimizer.groups[1].match: 'norm' only matches parameters that earlier rules match; move"),
    ],
)
def test_a_rule_without_a_member_is_refused(rules: list[str], line: str) -> None:
    config = OptimizerConfig(groups=tuple(GroupConfig(match=m) for m in rules))
    with pytest.raises(MetaschedError) as caught:
        recipe(config, build())
    assert line in str(caught.value) and "\n" not in str(caught.value)
