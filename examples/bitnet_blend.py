r"""Fine-tuning a small transformer to ternary weights, with the blend of float and ternary driven by a schedule.

    python examples/bitnet_blend.py --schedule inq_linear inq_input_first schedule.json

Fine-tuning to 1.58 bits goes wrong when all weights become ternary at once. So they are blended, with a lambda that
rises from 0 to 1 and is swept by hand elsewhere:

    w_seen = w + lambda (Q(w) - w),    Q(w) = gamma round(clip(w / gamma, -1, 1)),    gamma = mean |w|

with a straight-through derivative. Here lambda is a control of a schedule, ``freeze_fraction``, with a value of its own
for each layer: attention, and both linear layers of each block. The task is to reverse a sequence; the network is
trained in float first, then fine-tuned once for each schedule from the same weights and batches. ``at once`` is
lambda = 1 throughout.

Sources: Q is that of BitNet b1.58 (Ma et al., 2024, arXiv 2402.17764); lambda is that of "Fine-tuning LLMs to 1.58bit"
(huggingface/blog, 2024). Ours to differ: weights only, activations stay in float.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from metasched.core.errors import unknown_name
from metasched.core.layer import Layer
from metasched.exchange.integrations import LayerValues
from metasched.exchange.integrations.parts import parts_of
from metasched.exchange.player import SchedulePlayer
from metasched.schedules.curves import HandCoded
from metasched.schedules.table import hand_coded

TOKENS, LENGTH, WIDTH, BLOCKS, BATCH = 8, 8, 32, 2, 64
CONTROL = "freeze_fraction"


class Blend(nn.Module):
    """What the forward pass sees of a weight."""

    blend = 0.0

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """The weight that is seen: at blend 1 exactly ternary, with the derivative of the identity."""
        seen = torch.lerp(w.detach(), ternary(w.detach()), self.blend)
        return w - w.detach() + seen


class Reverser(nn.Module):
    """A transformer encoder that gives, at each position, the logits of the token at the mirrored one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, BLOCKS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, position, token] logits."""
        return self.head(self.encoder(self.tokens(x) + self.positions))


def ternary(w: torch.Tensor) -> torch.Tensor:
    """The nearest of -gamma, 0, gamma.

    >>> ternary(torch.tensor([0.9, -1.2, 0.3, 0.0]))
    tensor([ 0.6000, -0.6000,  0.0000,  0.0000])
    """
    gamma = w.abs().mean()
    return gamma * (w / gamma).clamp(-1, 1).round() + 0.0


def blend_weights(model: nn.Module) -> list[Layer]:
    """Puts a Blend on each weight of the blocks; gives the layers, for the player."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.Linear) and ".linear" in name)
    ]
    layers = []
    for i, (name, module) in enumerate(found):
        linear = isinstance(module, nn.Linear)
        weights = [(module, "weight")] if linear else [(module, "in_proj_weight"), (module.out_proj, "weight")]
        size = sum(getattr(owner, weight).numel() for owner, weight in weights)
        fan_in = module.in_features if linear else module.embed_dim
        layers.append(Layer(name, i / (len(found) - 1), "linear", "weight", fan_in, size, math.log2(3)))
        for owner, weight in weights:
            parametrize.register_parametrization(owner, weight, Blend())
    return layers


def set_blend(model: nn.Module, values: LayerValues) -> None:
    """Gives each layer the lambda of the step."""
    for name, controls in values.items():
        for blend in parts_of(model, name, Blend):
            blend.blend = controls[CONTROL]


def batch(step: int, seed: int) -> torch.Tensor:
    """The sequences of a step."""
    return torch.randint(TOKENS, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1_000_003 * seed + step))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    seed: int,
    values: Callable[[int], LayerValues] | None = None,
) -> None:
    """The steps of a run; ``values`` gives the controls of a step, as ``SchedulePlayer.at`` does."""
    for step in steps:
        if values is not None:
            set_blend(model, values(step))
        x = batch(step, seed)
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.flip(1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, seed: int = 999) -> float:
    """Share of the tokens of 16 new batches that are right."""
    x = torch.cat([batch(step, seed) for step in range(16)])
    return (model(x).argmax(2) == x.flip(1)).double().mean().item()


def pretrained(steps: int, seed: int) -> Reverser:
    """The float network."""
    torch.manual_seed(seed)
    model = Reverser()
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), range(steps), seed)
    return model


def fine_tune(model: Reverser, schedule: str | None, steps: int, seed: int) -> float:
    """Accuracy of the ternary network after fine-tuning a copy; without a schedule all is ternary at once."""
    model = copy.deepcopy(model)
    layers = blend_weights(model)
    ones = {layer.name: {CONTROL: 1.0} for layer in layers}
    player = SchedulePlayer(_known(schedule), steps, layers) if schedule is not None else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, range(steps), seed + 1, player.at if player is not None else lambda step: ones)
    set_blend(model, ones)
    return accuracy(model)


def main(argv: Sequence[str] | None = None) -> Mapping[str, list[float]]:
    """Prints, and gives, the accuracies of each schedule: one for each seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schedule", nargs="+", default=["inq_linear", "inq_cosine", "inq_input_first"])
    parser.add_argument("--pretrain", type=int, default=200, metavar="STEPS")
    parser.add_argument("--steps", type=int, default=30, metavar="STEPS")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    arguments = parser.parse_args(argv)
    results: dict[str, list[float]] = {name: [] for name in ("float", "at once", *arguments.schedule)}
    for seed in range(arguments.seeds):
        model = pretrained(arguments.pretrain, seed)
        results["float"].append(accuracy(model))
        results["at once"].append(fine_tune(model, None, arguments.steps, seed))
        for name in arguments.schedule:
            results[name].append(fine_tune(model, name, arguments.steps, seed))
    for name, scores in results.items():
        print(f"{name:24} {' '.join(f'{score:.4f}' for score in scores)}  mean {sum(scores) / len(scores):.4f}")
    return results


def _known(schedule: str) -> str | HandCoded:
    """A hand-coded schedule by its name, or a path."""
    if schedule.endswith(".json"):
        return schedule
    known = hand_coded("inq")
    if schedule not in known:
        raise unknown_name("--schedule", schedule, known)
    return known[schedule]


if __name__ == "__main__":
    main()
