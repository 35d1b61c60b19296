"""The player of a prepared network: it sets the controls, applies the method's update, and moves on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.randomness import Draw
from metasched.network.closed_loop import LAST, Controlling, loss_of, measured_of
from metasched.network.flat import Tensors
from metasched.network.hosting import hosted
from metasched.network.identity import fingerprint
from metasched.network.quantized import QuantizedNetwork
from metasched.network.sharding import put, whole
from metasched.network.starts import fitting_state, zeros
from metasched.network.thawing import NAME as FRACTION
from metasched.network.thawing import frozen_share, held
from metasched.network.watching import Watch


class Values(Protocol):
    """A schedule over a run of ``total_steps``."""

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        ...

    def at(self, step: int) -> dict[str, dict[str, float]]:
        """Layer -> control -> value at a step, which may lie beyond the last one."""
        ...


class Player:
    """Plays a schedule on a prepared module: call ``step()`` after each ``optimizer.step()``.

    A closed-loop schedule (``closed_loop``) needs the loss of the step: ``step(loss)``. All that happens
    between two calls of ``step`` is one step: several passes, accumulated gradients, closures of LBFGS. A step is
    counted where ``step`` is called, whether or not the optimizer has moved.

    Attributes:
        layers: the quantized layers, in the order of the data flow.
        total_steps: length of the run; after it the values do not change.
    """

    def __init__(
        self,
        module: nn.Module,
        network: QuantizedNetwork,
        values: Values,
        seed: int,
        *,
        moves: bool,
        controller: Controlling | None = None,
    ) -> None:
        self._network, self._values, self._seed, self._controller = network, values, seed, controller
        self.layers, self.total_steps = network.layers, values.total_steps
        found = {f"{name}.{key}" if name else key: (m, key, q) for name, m, key, q in hosted(module)}
        self._hosts = [found[layer.weight_key] for layer in network.layers]
        self._position, self._said_fall = 0, False
        self._last: list[float] = []  # fractions that were frozen in the step before
        self._measured: Tensors = {}
        self._zeros: dict[int, torch.Tensor] = {}  # layer -> where its scale fits zeros only, in the shape of the scale
        for i, (owner, key, quantizer) in enumerate(self._hosts):
            scale, w = {**quantizer.state(), **quantizer.trainable()}.get("scale"), owner._parameters[key]
            if scale is not None and w is not None and w.requires_grad:
                if (empty := zeros(quantizer.method, w.detach(), scale.detach())) is not None:
                    self._zeros[i] = empty
        trainable = [(m, key) for m, key, _ in self._hosts if _parameter(m, key).requires_grad]
        self._sample = (trainable or [self._hosts[0][:2]])[0]
        trains = any(q._parameters for _, _, q in self._hosts)
        self._watch = Watch(self.total_steps, moves=moves, needed=moves or trains or self._reads_weights)
        for _, _, quantizer in self._hosts:
            quantizer.watch = self._watch
        self._begin()

    def __repr__(self) -> str:
        return f"Player(step {self.position} of {self.total_steps}, {len(self.layers)} layers)"

    @property
    def zero_layers(self) -> list[str]:
        """Names of the layers that start at zero."""
        return [self.layers[i].name for i, empty in self._zeros.items() if bool(empty.all())]

    @property
    def closed_loop(self) -> bool:
        """Whether the schedule is closed-loop, so that ``step`` needs the loss."""
        return self._controller is not None

    @property
    def position(self) -> int:
        """Number of steps taken."""
        return self._position

    def value(self, control: str, layer: str) -> float:
        """Value of one control of one layer at this step."""
        names = [known.name for known in self.layers]
        if layer not in names:
            raise unknown_name("layer", layer, names)
        controls = self._hosts[names.index(layer)][2].controls
        if control not in controls:
            raise unknown_name("control", control, controls)
        return float(controls[control])

    def penalty(self) -> torch.Tensor:
        """The method's penalty for the weights as they are, 0-d; 0 if the method has none. Add it to the loss."""
        terms = [q.penalty(_parameter(owner, key)) for owner, key, q in self._hosts]
        found = [term for term in terms if term is not None]
        return torch.stack(found).sum() if found else _parameter(*self._hosts[0][:2]).new_zeros(())

    @torch.no_grad()
    def step(self, loss: torch.Tensor | float | None = None) -> None:
        """Ends a step: applies the method's update (INQ restores the frozen weights), and sets the next controls.

        Call it after ``optimizer.step()``.

        Args:
            loss: of the step, a number or one element, as ``backward`` was called on it; only a closed-loop schedule
                reads it.

        Raises:
            MetaschedError: the schedule is closed-loop, and there is no loss, or one of several elements.
        """
        given_loss = loss_of(loss) if self._controller is not None else None
        self._watch.step(trained=_parameter(*self._sample).grad is not None)
        if any(q.loaded for _, _, q in self._hosts):
            self._look_again()
        if self._updates:
            self._update()
        else:
            self._update_trainable()
        for i in list(self._zeros):
            self._follow(i)
        if given_loss is not None:
            self._measure(given_loss)
        for _, _, quantizer in self._hosts:
            vars(quantizer)["started"] = True
        self._position += 1
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """``{"step": n, "layers": identity}``: n steps taken, and a hash of the layers and their levels.

        Of a closed-loop schedule also ``"measured"``, what it has measured of the run and the controls of this step:
        numbers, and lists of them.
        """
        state = {"step": self._position, "layers": self._fingerprint()}
        if self._controller is not None:
            now = {LAST + name: row for name, row in self._row.items()} if self._measured else {}
            state["measured"] = {name: t.tolist() for name, t in {**self._measured, **now}.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to the position of a ``state_dict``; the module's own state is in the state dict of the module.

        Raises:
            MetaschedError: it is no such state, or one of other layers or levels.
        """
        step = state.get("step")
        wanted = {"step", "layers", "measured"} if self.closed_loop else {"step", "layers"}
        if set(state) ^ wanted == {"measured"}:
            problem = f"is of {'an open-loop' if self.closed_loop else 'a closed-loop'} schedule"
            raise MetaschedError("state_dict", problem, "prepare the model with the schedule that it had")
        if set(state) != wanted or type(step) is not int or step < 0:
            problem = 'must be {"step": n, "layers": ...} with n at least 0'
            raise MetaschedError("state_dict", problem, "pass the result of state_dict()")
        if state["layers"] != self._fingerprint():
            names = ", ".join(layer.name for layer in self.layers)
            problem = f"is of other layers or levels than those of this network, which quantizes {names}"
            raise MetaschedError("state_dict", problem, "prepare the model as it was when the state was saved")
        if self.closed_loop:
            found = measured_of(state["measured"], step, self._network.method.controls, len(self.layers))
            self._measured = {name: self._tensor(numbers) for name, numbers in found.items()}
        self._position = step
        self._watch.loaded(step)
        self._look_again()
        self._set(say=False)  # the module may get its state after this

    def _look_again(self) -> None:
        """A state was loaded: what is frozen in it stays frozen."""
        frozen = [q._buffers.get("frozen") for _, _, q in self._hosts]
        self._last = [] if None in frozen else [frozen_share(mask) for mask in frozen if mask is not None]
        if self._last and (asked := self._measured.get(LAST + FRACTION)) is not None:
            # a share is that of whole weights, and what was asked for is exact
            near = zip(self._last, asked.tolist(), self.layers, strict=True)
            self._last = [exact if abs(share - exact) * x.num_weights <= 1 else share for share, exact, x in near]
        for _, _, quantizer in self._hosts:
            quantizer.loaded = False
            quantizer.started |= self._position > 0

    def _set(self, *, say: bool) -> None:
        """Sets the controls of this step."""
        given = self._values.at(self._position)
        values = {c.name: [given[layer.name][c.name] for layer in self.layers] for c in self._network.method.controls}
        if self._controller is not None:
            values = self._corrected(self._controller, given, values)
        if FRACTION in values:
            values, fell = held(values, self._last, self.layers, say=say and not self._said_fall)
            self._said_fall |= say and fell
            self._last = values[FRACTION]
        self._row = {name: self._tensor(row) for name, row in values.items()}
        columns = {name: row.unbind() for name, row in self._row.items()}
        for i, (_, _, quantizer) in enumerate(self._hosts):
            # past nn.Module's own look for parameters, which takes longer than all else here
            vars(quantizer)["controls"] = {name: column[i] for name, column in columns.items()}
            vars(quantizer)["draw"] = Draw(self._seed, self._position, i)

    def _corrected(
        self, controller: Controlling, given: Mapping[str, Mapping[str, float]], values: Mapping[str, list[float]]
    ) -> dict[str, list[float]]:
        """The controls of this step as the run asks for them; after the run those of its last step."""
        if self._position >= self.total_steps and self._measured:
            return {name: self._measured[LAST + name].tolist() for name in values}
        gains = [name for name in given[self.layers[0].name] if name not in values]
        row = {name: self._tensor([given[layer.name][name] for layer in self.layers]) for name in gains}
        row |= {name: self._tensor(column) for name, column in values.items()}
        return {name: v.tolist() for name, v in controller.row(row, self._measured).items()}

    def _tensor(self, numbers: float | list[float]) -> torch.Tensor:
        """Numbers as the controls have them, 0-d or [L]."""
        first = _parameter(*self._hosts[0][:2])
        return torch.tensor(numbers, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)

    def _measure(self, loss: torch.Tensor) -> None:
        """Measures the step that ends, with its loss, 0-d."""
        assert self._controller is not None
        weights = self._weights()
        starts = {layer.weight_key: q.before for layer, (_, _, q) in zip(self.layers, self._hosts, strict=True)}
        before = {name: weights[name] if w is None else w for name, w in starts.items()}
        params = {**weights, **self._trainable()}
        self._measured = self._controller.after(self._measured, self._row, loss, before, params, self._state())

    @torch.no_grad()
    def _begin(self) -> None:
        """Begins a step at the weights as they are."""
        self._set(say=True)
        if not self._reads_weights:
            return
        weights, state = self._weights(), self._state()
        if self._updates and self._position < self.total_steps:  # after the run nothing more is frozen
            params = {**weights, **self._trainable()}
            self._keep(self._network.prepare(params, state, self._row, self._seed, self._position))
        for layer, (owner, key, quantizer) in zip(self.layers, self._hosts, strict=True):
            w = weights[layer.weight_key]
            quantizer.before = w.clone() if w is owner._parameters[key] else w

    def _update(self) -> None:
        weights, trainable, state = self._weights(), self._trainable(), self._state()
        befores = {layer.weight_key: q.before for layer, (_, _, q) in zip(self.layers, self._hosts, strict=True)}
        before = {name: weights[name] if w is None else w for name, w in befores.items()}
        settled, state = self._network.update(
            {**before, **trainable}, {**weights, **trainable}, state, self._row, self._seed, self._position
        )
        for layer, (owner, key, quantizer) in zip(self.layers, self._hosts, strict=True):
            own = {name: (quantizer._parameters[name], f"{layer.name}/{name}") for name in quantizer._parameters}
            for p, name in ((owner._parameters[key], layer.weight_key), *own.values()):
                if p is not None and p.requires_grad and settled[name] is not p:
                    put(p, settled[name])
        self._keep(state)

    def _update_trainable(self) -> None:
        """The update of a method that changes no weight."""
        for _, _, q in self._hosts:
            if q._parameters:
                proposed = {name: whole(p) for name, p in q._parameters.items() if p is not None}
                settled = q.method.update_trainable({**q.state(), **proposed}, proposed, q.controls)
                for name, p in q._parameters.items():
                    if p is not None and p.requires_grad and settled[name] is not proposed[name]:
                        put(p, settled[name])

    def _follow(self, i: int) -> None:
        """Fits a scale that had zeros only, until a weight of the layer is frozen."""
        owner, key, quantizer = self._hosts[i]
        frozen = quantizer._buffers.get("frozen")
        if frozen is not None and bool((frozen > 0).any()):
            del self._zeros[i]
            return
        w = whole(_parameter(owner, key))
        fitted = fitting_state(quantizer.method, w, self._seed, i)["scale"]
        scale = quantizer._parameters.get("scale", quantizer._buffers.get("scale"))
        assert scale is not None
        put(scale, torch.where(self._zeros[i].to(w.device), fitted, whole(scale)))

    @property
    def _updates(self) -> bool:
        return any(q.method.updates for _, _, q in self._hosts)

    @property
    def _reads_weights(self) -> bool:
        return self._updates or self.closed_loop

    def _fingerprint(self) -> str:
        return fingerprint(q.identity for _, _, q in self._hosts)

    def _weights(self) -> Tensors:
        hosts = zip(self.layers, self._hosts, strict=True)
        if not self._reads_weights:  # sharded ones stay where they are
            return {layer.weight_key: _parameter(owner, key) for layer, (owner, key, _) in hosts}
        return {layer.weight_key: whole(_parameter(owner, key)) for layer, (owner, key, _) in hosts}

    def _trainable(self) -> Tensors:
        hosts = zip(self.layers, self._hosts, strict=True)
        return {f"{layer.name}/{k}": p for layer, (_, _, q) in hosts for k, p in q.trainable(whole).items()}

    def _state(self) -> Tensors:
        hosts = zip(self.layers, self._hosts, strict=True)
        return {f"{layer.name}/{k}": b for layer, (_, _, q) in hosts for k, b in q.state().items()}

    def _keep(self, state: Tensors) -> None:
        for name, own in self._state().items():
            if (new := state.get(name)) is not None and new is not own:
                own.copy_(new)


def _parameter(owner: nn.Module, key: str) -> torch.Tensor:
    p = owner._parameters[key]
    assert p is not None
    return p
