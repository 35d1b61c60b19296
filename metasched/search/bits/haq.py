"""HAQ: an agent walks over the layers and gives each its bits, and learns from the score of the whole network.

    b = floor(v + 1/2),    v = (b_max - b_min + 1) a + b_min - 1/2,    clamped to [b_min, b_max]

for the action a in [0, 1] of a layer. If an allocation exceeds the budget, layers give bits from the last one backwards
(``BitProblem.within``). The reward of each step is 0.1 (score - score at the most bits), of the whole network; the
actions are remembered as they were before layers gave bits. After each episode there is one update for each layer.
The first 20 episodes are uniform (a quarter of them, if there are fewer than 80); then the deviation of the noise in
episode e is 0.5 d^(e - 20), with d = ``allocate.exploration_decay``, 0.99 in the source.

Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed Precision", CVPR 2019, arXiv 1811.08886, and
its code, mit-han-lab/haq.
We differ: numpy's round, which the code uses, is to even, and takes a = 0 to b_min - 1 for odd b_min and a = 1 to
b_max + 1 for odd b_max. Weights only get bits. The state has features that exist for any network. The score is that
of the round-to-nearest network, or of a short training run, and not the training accuracy after an epoch.
"""

from __future__ import annotations

import math

import torch

from metasched.search.bits.ddpg import Agent, Transition
from metasched.search.bits.problem import BitProblem, Judge
from metasched.search.config import AllocateConfig

_REWARD = 0.1
_WARMUP = 20  # episodes
_SIGMA = 0.5
_REMEMBERED = 128  # episodes


def haq(problem: BitProblem, judge: Judge, settings: AllocateConfig, seed: int) -> None:
    """One allocation an episode; see the module's docstring.

    Args:
        problem, judge, settings, seed: see ``BitSearchSpec``.
    """
    states, num_layers = features(problem), len(problem.layers)
    agent = Agent(states.shape[1] + 1, _REMEMBERED * num_layers, seed)
    warmup = min(_WARMUP, settings.evaluations // 4)
    at_top = judge(problem.highest)
    for episode in range(settings.evaluations):
        sigma = _SIGMA * settings.exploration_decay ** (episode - warmup)
        seen, actions, before = list[torch.Tensor](), list[float](), 1.0
        for layer in range(num_layers):
            seen.append(torch.cat([states[layer], states.new_tensor([before])]))
            actions.append(agent.anything() if episode < warmup else agent.act(seen[-1], max(sigma, 1e-6)))
            before = index_of_action(actions[-1], len(problem.bits)) / (len(problem.bits) - 1 or 1)
        choice = tuple(index_of_action(a, len(problem.bits)) for a in actions)
        score = judge(problem.within(choice))
        reward = _REWARD * (score - at_top) if math.isfinite(score) and math.isfinite(at_top) else -1.0
        for layer in range(num_layers):
            last = layer == num_layers - 1
            following = seen[layer] if last else seen[layer + 1]
            agent.remember(Transition(seen[layer], actions[layer], reward, following, last))
        if episode >= warmup:
            for _ in range(num_layers):
                agent.learn()


def index_of_action(action: float, choices: int) -> int:
    """The index of the bits for an action in [0, 1], of ``choices`` ones: floor(choices a), clamped.

    For consecutive bits this is the formula of the module's docstring: b - b_min = floor((b_max - b_min + 1) a).

    >>> [index_of_action(a, 7) for a in (0.0, 0.5, 1.0)]
    [0, 3, 6]
    """
    return min(max(math.floor(choices * action), 0), choices - 1)


def features(problem: BitProblem) -> torch.Tensor:
    """What the agent sees of each layer besides its last action: float64 [L, 7], each scaled to [0, 1] over the layers.

    Convolution or not, fan-in, outputs, weights, multiply-accumulates for each weight (the size of the feature map),
    depth, cost at the most bits. A feature that is the same for all layers is as it is, at most 1.
    """
    rows = [
        (
            float(layer.kind == "conv"),
            layer.fan_in,
            layer.num_weights / layer.fan_in,
            layer.num_weights,
            macs / layer.num_weights,
            layer.depth,
            cost[-1],
        )
        for layer, macs, cost in zip(problem.layers, problem.macs, problem.cost, strict=True)
    ]
    found = torch.tensor(rows, dtype=torch.float64)
    low, high = found.amin(0), found.amax(0)
    return torch.where(high > low, (found - low) / (high - low).clamp_min(1e-30), found.clamp(0, 1))
