"""Deep deterministic policy gradients (DDPG) for one action in [0, 1], as HAQ uses them."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn

from metasched.core.randomness import derive_seed, generator

_HIDDEN = 64  # units of both hidden layers
_ACTOR_LR, _CRITIC_LR = 1e-4, 1e-3
_SOFT = 0.01  # share of the target networks that each update takes from the trained ones
_BATCH = 64
_BASELINE = 0.5  # weight of a new mean reward in their moving average
_TYPE = torch.float32


class Transition(NamedTuple):
    """A step: state [F], action in [0, 1], reward, next state [F], and whether there is none."""

    state: torch.Tensor
    action: float
    reward: float
    following: torch.Tensor
    last: bool


class Agent:
    """Actor and critic, each with a slowly following target network, and a memory of transitions.

        critic:  least (Q(s, a) - (r - m) - Q'(s', mu'(s')))^2, without Q' at the last step of an episode
        actor:   highest Q(s, mu(s))

    The moving average m of the mean rewards of batches takes half of each new one; the discount is 1. Both networks
    have two hidden layers of 64 units and ReLU; the actor ends in a sigmoid. All draws follow from the seed.

    Source: Lillicrap et al., "Continuous control with deep reinforcement learning", ICLR 2016, arXiv 1509.02971, with
    the constants and the baseline of HAQ's code (mit-han-lab/haq, ``lib/rl/ddpg.py``). We differ: that has 300 units.

    Args:
        features: F, length of a state.
        memory: transitions that are remembered; older ones are forgotten.
        seed: of initial weights, exploration and batches.
    """

    def __init__(self, features: int, memory: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "ddpg"))
            self.actor = _network(features, nn.Sigmoid())
            self.critic = _network(features + 1, nn.Identity())
        self._slow_actor, self._slow_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._actor_step = torch.optim.Adam(self.actor.parameters(), lr=_ACTOR_LR, foreach=True)
        self._critic_step = torch.optim.Adam(self.critic.parameters(), lr=_CRITIC_LR, foreach=True)
        self._memory = torch.zeros(memory, 2 * features + 3, dtype=_TYPE)  # a transition a row, as in ``remember``
        self._features, self._remembered = features, 0
        self._draws = generator(seed, "exploration")
        self._baseline: float | None = None

    def anything(self) -> float:
        """A uniform action."""
        return float(torch.rand((), generator=self._draws, dtype=torch.float64))

    @torch.no_grad()
    def act(self, state: torch.Tensor, sigma: float) -> float:
        """The actor's action for a state [F], with normal noise of this deviation that keeps it in [0, 1]."""
        mean = self.actor(state.to(_TYPE)).to(torch.float64).reshape(())
        return float(truncated_normal(mean, sigma, torch.rand((), generator=self._draws, dtype=torch.float64)))

    def remember(self, transition: Transition) -> None:
        """Adds a step to the memory, in place of the oldest one where it is full."""
        t = transition
        numbers = t.state.new_tensor([t.action, t.reward, float(not t.last)])
        self._memory[self._remembered % len(self._memory)] = torch.cat([t.state, t.following, numbers]).to(_TYPE)
        self._remembered += 1

    def learn(self) -> None:
        """One update of critic and actor, from a batch of remembered steps, drawn with replacement."""
        known, n = min(self._remembered, len(self._memory)), self._features
        batch = self._memory[torch.randint(known, (_BATCH,), generator=self._draws)]
        state, following, action, reward, goes_on = batch.split([n, n, 1, 1, 1], 1)
        mean = float(reward.mean())
        self._baseline = mean if self._baseline is None else self._baseline + _BASELINE * (mean - self._baseline)
        with torch.no_grad():
            later = self._slow_critic(torch.cat([following, self._slow_actor(following)], 1))
            target = reward - self._baseline + goes_on * later
        self._critic_step.zero_grad()
        (self.critic(torch.cat([state, action], 1)) - target).square().mean().backward()
        self._critic_step.step()
        self._actor_step.zero_grad()
        (-self.critic(torch.cat([state, self.actor(state)], 1)).mean()).backward()
        self._actor_step.step()
        for slow, trained in ((self._slow_actor, self.actor), (self._slow_critic, self.critic)):
            for p, q in zip(slow.parameters(), trained.parameters(), strict=True):
                p.data.lerp_(q.data, _SOFT)


def truncated_normal(mean: torch.Tensor, sigma: float, uniform: torch.Tensor) -> torch.Tensor:
    """A normal number that is kept to [0, 1], from a uniform one: the inverse of its distribution function.

    Args:
        mean: of the normal before it is cut, [...], in [0, 1], float64.
        sigma: its standard deviation, above 0.
        uniform: in [0, 1), [...], float64.

    >>> mean, half = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    >>> float(truncated_normal(mean, 0.3, half))
    0.5
    """
    low, high = (torch.special.ndtr((edge - mean) / sigma) for edge in (0.0, 1.0))
    found = mean + sigma * torch.special.ndtri(low + uniform * (high - low))
    return found.clamp(0, 1)


def _network(inputs: int, end: nn.Module) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1), end
    )
    return layers.to(_TYPE)
