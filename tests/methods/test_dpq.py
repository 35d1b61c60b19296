"""DPQ: what is seen against written-out look-ups, its derivatives, its sizes, and which layers it takes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import words
from torch import nn

from metasched import convert, hand_coded, inspect, prepare
from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods import build_method
from metasched.methods.base import State
from metasched.methods.config import MethodConfig
from metasched.methods.dpq import DPQ, LOWEST
from metasched.network.config import Rule
from metasched.network.quantize import quantize
from metasched.network.recipe import Recipe
from metasched.quantizers.codebooks import packed
from metasched.schedules.base import progress_of_steps

DRAW = Draw(0, 0, 0)
BOTH = pytest.mark.parametrize("lookup", ["sx", "vq"])


def method_of(**parameters: Any) -> DPQ:
    method = build_method(MethodConfig(name="dpq", **{"groups": 2, "codes": 4, **parameters}))
    assert isinstance(method, DPQ)
    return method


def started(method: DPQ, rows: int = 10, columns: int = 6) -> tuple[torch.Tensor, State]:
    """A table and its codebooks, away from where they start."""
    w, trainable, state = method.initialize(torch.randn(rows, columns), {}, DRAW)
    return w, {**state, **{name: t + 0.3 * torch.randn_like(t) for name, t in trainable.items()}}


def at(temperature: float) -> dict[str, torch.Tensor]:
    return {"temperature": torch.tensor(temperature)}


def scores(method: DPQ, w: torch.Tensor, state: State) -> torch.Tensor:
    """[n, D, K], written out."""
    n, size = len(w), w.shape[1] // method.groups
    found = torch.empty(n, method.groups, method.codes)
    for j in range(method.groups):
        q = w[:, j * size : (j + 1) * size]
        for c in range(method.codes):
            key = state["keys"][j, c]
            found[:, j, c] = q @ key if method.lookup == "sx" else -((q - key) ** 2).sum(1)
    if method.lookup == "vq":
        return found
    norm = nn.BatchNorm1d(method.groups * method.codes, affine=False)
    return norm(found.flatten(1)).reshape(found.shape)


@BOTH
def test_each_group_is_the_entry_of_its_best_score(lookup: str) -> None:
    method = method_of(lookup=lookup)
    w, state = started(method)
    best = scores(method, w, state).argmax(-1)
    values = state["values" if lookup == "sx" else "keys"]
    rows = torch.stack([torch.cat([values[j, best[i, j]] for j in range(2)]) for i in range(10)])
    assert torch.equal(method.harden(w, state, 0.5), rows)
    assert torch.equal(method.weight(w, state, at(1.0), DRAW), rows)
    assert torch.equal(method.codes_of(w, state), best)
    levels = method.levels_of(state)
    assert levels.shape == (1, 6, 4) and bool((rows[..., None] == levels).any(-1).all())


@BOTH
def test_soft_selection_is_the_mean_under_the_softmax(lookup: str) -> None:
    method = method_of(lookup=lookup, selection="soft")
    w, state = started(method)
    shares = (scores(method, w, state) / 0.7).softmax(-1)
    values = state["values" if lookup == "sx" else "keys"]
    expected = torch.cat([shares[:, j] @ values[j] for j in range(2)], 1)
    torch.testing.assert_close(method.weight(w, state, at(0.7), DRAW), expected)


@BOTH
def test_soft_selection_ends_in_the_deployed_table(lookup: str) -> None:
    method = method_of(lookup=lookup, selection="soft")
    w, state = started(method)
    hard = method.harden(w, state, 0.5)
    assert torch.equal(method.weight(w, state, at(LOWEST), DRAW), hard)
    near = method.weight(w, state, at(0.02), DRAW)
    assert not torch.equal(near, hard) and (near - hard).abs().max() < 0.3


@BOTH
def test_soft_selection_has_true_derivatives(lookup: str) -> None:
    method = method_of(lookup=lookup, selection="soft")
    w, state = started(method, 5, 4)
    names = list(state)

    def seen(w: torch.Tensor, temperature: torch.Tensor, *own: torch.Tensor) -> torch.Tensor:
        return method.weight(w, dict(zip(names, own, strict=True)), {"temperature": temperature}, DRAW)

    leaves = [t.requires_grad_() for t in (w, torch.tensor(0.6), *state.values())]
    assert torch.autograd.gradcheck(seen, leaves)


def test_hard_sx_has_the_derivative_of_the_softmax_in_queries_keys_and_temperature() -> None:
    hard, soft = method_of(), method_of(selection="soft")
    w, state = started(hard)
    leaves = [t.requires_grad_() for t in (w, torch.tensor(0.6), state["keys"], state["values"])]
    outside = torch.randn_like(w)
    found, expected = (
        torch.autograd.grad((m.weight(w, state, {"temperature": leaves[1]}, DRAW) * outside).sum(), leaves)
        for m in (hard, soft)
    )
    for own, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(own, other)
    counts = torch.zeros(2, 4).index_put_(
        (torch.arange(2).expand(10, 2), hard.codes_of(w, state)), torch.tensor(1.0), accumulate=True
    )
    assert torch.equal(found[3].abs().sum(-1) > 0, counts > 0)  # an entry that no row has gets no gradient


def test_hard_vq_passes_the_gradient_straight_to_the_table_and_the_penalty_to_the_keys() -> None:
    method = method_of(lookup="vq", commitment=0.25)
    assert method.controls == ()
    w, state = started(method)
    for leaf in (w, state["keys"]):
        leaf.requires_grad_()
    outside = torch.randn_like(w)
    seen = (method.weight(w, state, {}, DRAW) * outside).sum()
    to_w, to_keys = torch.autograd.grad(seen, [w, state["keys"]], allow_unused=True)
    assert torch.equal(to_w, outside) and to_keys is None
    penalty = method.penalty(w, state, {})
    assert penalty is not None
    off = method.harden(w, state, 0.5) - w
    torch.testing.assert_close(penalty, 1.25 * off.square().mean())
    to_w, to_keys = torch.autograd.grad(penalty, [w, state["keys"]])
    torch.testing.assert_close(to_w, -0.25 * 2 * off / w.numel())
    codes = method.codes_of(w, state)
    pulled = torch.zeros(2, 4, 3)
    for j in range(2):
        pulled[j].index_add_(0, codes[:, j], 2 * off.detach()[:, 3 * j : 3 * j + 3] / w.numel())
    torch.testing.assert_close(to_keys, pulled)


@pytest.mark.parametrize(("shape", "groups", "codes"), [((10, 6), 2, 4), ((33, 8), 8, 8), ((300, 16), 4, 256)])
def test_the_size_is_that_of_what_is_stored(shape: tuple[int, int], groups: int, codes: int) -> None:
    method = method_of(groups=groups, codes=codes)
    w, state = started(method, *shape)
    stored = packed(method.codes_of(w, state), codes)
    assert method.stored_bytes(shape) == len(stored) + 4 * state["values"].numel()
    assert method.stored_bytes(shape) == -(-shape[0] * groups * (codes.bit_length() - 1) // 8) + 4 * codes * shape[1]
    assert method.bits_of(shape) * w.numel() == shape[0] * groups * (codes.bit_length() - 1)


# --- layers ---


def test_tables_are_quantized_and_the_other_layers_stay_in_float_and_say_why() -> None:
    tokens = words.task().train.x[:2]
    network = quantize(words.build(), Recipe("dpq", groups=2, codes=4), tokens)
    assert [(layer.name, layer.bits, layer.quantizes) for layer in network.layers] == [
        ("first", 1.0, "weight"),
        ("second", 1.0, "weight"),
    ]
    rows = {row.module: row for row in inspect(words.build(), Recipe("dpq", groups=2, codes=4), tokens).rows}
    assert rows["first"].quantized and (rows["first"].levels, rows["first"].bits) == (None, 1.0)
    assert rows["first"].coding == "codes" and rows["fc"].coding == ""
    assert rows["fc"].why == "is not a table of embeddings, and the method quantizes those only"
    one = quantize(words.build(), Recipe("dpq", groups=2, codes=4, exclude=["second"]), tokens)
    assert [layer.name for layer in one.layers] == ["first"]


def test_a_head_that_shares_the_table_sees_its_entries() -> None:
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7, bias=False))
    model[2].weight = model[0].weight
    network = quantize(model, Recipe("dpq", groups=2, codes=4), torch.arange(6))
    assert [layer.name for layer in network.layers] == ["0"]


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ({"groups": 3}, r"^model\.first: has 4 columns, which 3 groups do not divide; set method\.groups$"),
        ({"codes": 16}, r"^model\.first: has 12 rows, fewer than its 16 codes; set method\.codes$"),
        (
            {"codes": 4, "rules": [Rule("fc", quantize=True)]},
            r"^model\.fc: is not a table of embeddings, .* those only; leave it out of rule 'fc', or take another m",
        ),
        ({"codes": 4, "exclude": ["first", "second"]}, r"^quantize: the model has no table of embeddings left to qu"),
        ({"codes": 6}, r"^recipe: codes: .*is no power of two; set it to 4 or 8"),
        (
            {"codes": 4, "commitment": 1.0},
            r"^recipe: commitment: .*because method\.lookup is sx and method\.selection hard",
        ),
    ],
)
def test_what_it_cannot_take_is_one_line(recipe: dict[str, Any], line: str) -> None:
    with pytest.raises(MetaschedError, match=line) as caught:
        quantize(words.build(), Recipe("dpq", **{"groups": 2, **recipe}), words.task().train.x[:2])
    assert "\n" not in str(caught.value)


@BOTH
@pytest.mark.parametrize("selection", ["hard", "soft"])
def test_in_ones_own_loop_it_learns_and_what_is_converted_has_the_entries(lookup: str, selection: str) -> None:
    task, steps = words.task(), 40
    recipe = Recipe("dpq", groups=2, codes=4, lookup=lookup, selection=selection)
    schedule = None if (lookup, selection) == ("vq", "hard") else "dpq_exponential"
    module, player = prepare(words.build(), recipe, task.train.x[:2], schedule, total_steps=steps)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for step in range(steps):
        batch = task.batch(0, step)
        loss = task.loss(module, batch) + player.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        player.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    x = task.test.x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = convert(module)
    assert torch.equal(plain(x), module.eval()(x))
    assert isinstance(plain.first, nn.Embedding)
    assert all(len(plain.first.weight[:, 2 * j : 2 * j + 2].unique(dim=0)) <= 4 for j in (0, 1))


def test_the_schedules_end_where_the_softmax_selects() -> None:
    network = quantize(words.build(), Recipe("dpq", groups=2, codes=4), words.task().train.x[:2])
    values = {
        name: schedule(progress_of_steps(11), network.layers)["temperature"][:, 0]
        for name, schedule in hand_coded("dpq").items()
    }
    assert values["dpq_constant"].tolist() == [1.0] * 11
    torch.testing.assert_close(values["dpq_exponential"], 0.01 ** torch.linspace(0, 1, 11))
    torch.testing.assert_close(values["dpq_linear"], 1 - 0.99 * torch.linspace(0, 1, 11))
    assert values["dpq_linear"][-1] == values["dpq_exponential"][-1] == LOWEST
