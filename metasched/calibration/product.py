"""Product quantization of a trained network, "And the Bit Goes Down": codebooks for its layers, and their fine-tuning.

Layers are quantized one after the other, each from the inputs that it has in the network as it is by then; between
them, and after the last one, the centroids of all quantized layers are trained on unlabelled batches,

    loss = mean KL(softmax(teacher) || softmax(student)),    gradient of a centroid = mean of those of its blocks

by SGD with momentum. Teacher is the float network; teacher and student are in eval mode, so that batch normalization
stands still. An onset in [0, 1] for each layer is the share of the steps after which it is quantized, and so orders
the layers:

    in order    i / (2 L) for layer i of L, the paper's order; the last half of the steps is for all of them
    at once     0 for all

The first layer stays in float unless ``first`` says otherwise, as in the paper.

Source: Stock et al., ICLR 2020, arXiv 1907.05686, sections 3 and 4 (see codebook.py). We differ: after a layer is
quantized, all codebooks so far are trained, theirs is that layer's alone; the last fine-tuning leaves batch
normalization as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metasched.calibration.codebook import FEWEST, Codebook, clamped, fit, metric_of
from metasched.core.errors import MetaschedError

_FLOAT_BYTES = 4
Onsets = Mapping[str, float] | Literal["in_order", "at_once"]


@dataclass(frozen=True)
class ProductOptions:
    """How a network is product-quantized.

    Attributes:
        codes: K at most, a power of two; small layers have fewer.
        conv_block, pointwise_block, linear_block: d of convolutions, of those with 1x1 kernels, of linear layers.
        iterations: of EM for each layer.
        onsets: see the module's docstring; a mapping has one in [0, 1] for each layer.
        steps: of fine-tuning, in all.
        lr, momentum: of SGD.
        first: whether the first layer is quantized.
        exclude: names of layers that stay in float.
        seed: of the start of codebooks.
    """

    codes: int = 256
    conv_block: int = 9
    pointwise_block: int = 4
    linear_block: int = 4
    iterations: int = 100
    onsets: Onsets = "in_order"
    steps: int = 1000
    lr: float = 0.05
    momentum: float = 0.9
    first: bool = False
    exclude: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.codes < 2 or self.codes & (self.codes - 1):
            raise MetaschedError("product: codes", f"is {self.codes}, no power of two", "set it to 16 or 256")
        for name, least in (("iterations", 1), ("steps", 0), ("conv_block", 1), ("linear_block", 1)):
            if getattr(self, name) < least:
                raise MetaschedError(f"product: {name}", f"is {getattr(self, name)}", f"set it to {least} or more")

    def block(self, layer: nn.Conv2d | nn.Linear) -> int:
        """D of a layer."""
        if isinstance(layer, nn.Linear):
            return self.linear_block
        return self.pointwise_block if max(layer.kernel_size) == 1 else self.conv_block


@dataclass(frozen=True)
class ProductQuantized:
    """A network whose layers are codes.

    Attributes:
        module: in eval mode, its weights rows of centroids, as float16 stores them.
        codebooks: name of each quantized layer -> its codebook, in the order in which they were made.
        losses: of the steps of fine-tuning.
    """

    module: nn.Module
    codebooks: Mapping[str, Codebook]
    losses: tuple[float, ...]

    @property
    def bytes(self) -> int:
        """Size of all parameters: codebooks as stored, and 4 bytes for each other number."""
        codes = {f"{name}.weight" for name in self.codebooks}
        rest = sum(p.numel() for name, p in self.module.named_parameters() if name not in codes)
        return sum(book.bytes for book in self.codebooks.values()) + _FLOAT_BYTES * rest

    @property
    def float_bytes(self) -> int:
        """Size of all parameters in float32."""
        return _FLOAT_BYTES * sum(p.numel() for p in self.module.parameters())


def quantize_product(
    module: nn.Module,
    batches: Iterable[torch.Tensor],
    options: ProductOptions = ProductOptions(),
    tick: Callable[[float], None] = lambda share: None,
) -> ProductQuantized:
    """The network as codes, fine-tuned; see the module's docstring.

    Args:
        module: a trained float network that puts out scores [N, C, ...]; it stays as it is.
        batches: inputs [N, ...] without labels, used for the codebooks and, in turn, for fine-tuning.
        options: how.
        tick: is called in each step with the share of the steps that are done.

    Raises:
        MetaschedError: no or bad batches, a layer whose rows the block does not divide or with fewer than 8
            blocks, a name of no layer, bad onsets.
    """
    inputs = _checked(batches)
    teacher = copy.deepcopy(module).eval()
    student = copy.deepcopy(teacher)
    layers = chosen(student, inputs[0], options)
    when = _onsets(options, list(layers))
    waiting = sorted(layers, key=lambda name: when[name])  # stable: ties in the order of the pass
    books: dict[str, Codebook] = {}
    speeds: dict[str, torch.Tensor] = {}
    losses: list[float] = []
    for step in range(options.steps + 1):
        tick(step / max(options.steps, 1))
        while waiting and when[waiting[0]] * options.steps <= step:
            name = waiting.pop(0)
            metric = metric_of(layers[name], _seen(student, name, inputs), options.block(layers[name]))
            books[name] = fit(layers[name].weight, metric, options.codes, options.iterations, options.seed)
            speeds[name] = torch.zeros_like(books[name].centroids)
            _write(layers, books)
        if step < options.steps and books:
            x = inputs[step % len(inputs)]
            losses.append(_train(student, teacher, layers, books, speeds, x, options))
    for name, book in books.items():
        books[name] = replace(book, centroids=book.centroids.half().to(book.centroids))
    _write(layers, books)
    return ProductQuantized(student, books, tuple(losses))


def chosen(module: nn.Module, example: torch.Tensor, options: ProductOptions) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that are quantized, by name, in the order in which a pass of the example runs them.

    Raises:
        MetaschedError: as ``quantize_product``.
    """
    known = {name: m for name, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for name in options.exclude:
        if name not in known:
            raise MetaschedError("product: exclude", f"names {name!r}, no convolution or linear layer", "correct it")
    ran: dict[str, nn.Conv2d | nn.Linear] = {}
    names_of = {m: name for name, m in known.items()}

    def note(m: nn.Module, args: object) -> None:
        if isinstance(m, nn.Conv2d | nn.Linear):
            ran.setdefault(names_of[m], m)

    hooks = [m.register_forward_pre_hook(note) for m in known.values()]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name in list(ran)[0 if options.first else 1 :] if name not in options.exclude]
    for name in names:
        size, row = options.block(ran[name]), ran[name].weight[0].numel()
        if row % size:
            problem = f"has rows of {row} numbers, which blocks of {size} do not divide"
            raise MetaschedError(f"model.{name}", problem, "set another block, or leave the layer in float")
        if clamped(options.codes, blocks := ran[name].weight.numel() // size) < 2:
            problem = f"has {blocks} blocks of {size} numbers, and two centroids take {FEWEST}"
            raise MetaschedError(f"model.{name}", problem, "set a smaller block, or leave the layer in float")
    if not names:
        raise MetaschedError("product", "the model has no layer to quantize", "set first, or exclude fewer")
    return {name: ran[name] for name in names}


def _onsets(options: ProductOptions, names: Sequence[str]) -> dict[str, float]:
    if not isinstance(options.onsets, Mapping):
        spread = 0.0 if options.onsets == "at_once" else 1 / (2 * len(names))
        return {name: i * spread for i, name in enumerate(names)}
    for name in names:
        if not 0 <= options.onsets.get(name, -1) <= 1:
            has = f"is {options.onsets[name]}, outside of [0, 1]" if name in options.onsets else "is missing"
            raise MetaschedError(f"product: onset of {name}", has, "give a number in [0, 1], or exclude the layer")
    return {name: float(options.onsets[name]) for name in names}


def _checked(batches: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    if isinstance(batches, torch.Tensor):
        raise MetaschedError("product: batches", "is a Tensor, not batches of inputs", "give [x] for a single batch")
    found = list(batches)
    for i, x in enumerate(found):
        if not isinstance(x, torch.Tensor):
            raise MetaschedError(f"product: batch {i}", f"is a {type(x).__name__}", "give inputs without labels")
        if not bool(x.isfinite().all()):
            raise MetaschedError(f"product: batch {i}", "has numbers that are not finite", "leave them out")
        if x.shape[1:] != found[0].shape[1:]:
            raise MetaschedError(f"product: batch {i}", f"has the shape {tuple(x.shape)}", "give all the first one's")
    if not found:
        raise MetaschedError("product: batches", "has no batches", "give inputs of the training data")
    return found


@torch.no_grad()
def _seen(module: nn.Module, name: str, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What a layer gets in a pass of each batch."""
    found: list[torch.Tensor] = []
    with module.get_submodule(name).register_forward_pre_hook(lambda _, args: found.append(args[0])):
        for x in inputs:
            module(x)
    return found


@torch.no_grad()
def _write(layers: Mapping[str, nn.Conv2d | nn.Linear], books: Mapping[str, Codebook]) -> None:
    for name, book in books.items():
        layers[name].weight.copy_(book.weight)


def _train(
    student: nn.Module,
    teacher: nn.Module,
    layers: Mapping[str, nn.Conv2d | nn.Linear],
    books: dict[str, Codebook],
    speeds: dict[str, torch.Tensor],
    x: torch.Tensor,
    options: ProductOptions,
) -> float:
    """One step of SGD on the centroids; returns the loss before it."""
    with torch.no_grad():
        target = teacher(x).log_softmax(1)
    leaves = {name: book.centroids.detach().requires_grad_() for name, book in books.items()}
    weights = {f"{name}.weight": replace(books[name], centroids=leaf).weight for name, leaf in leaves.items()}
    scores = functional_call(student, weights, (x,)).log_softmax(1)
    loss = F.kl_div(scores, target, reduction="batchmean", log_target=True)
    found = torch.autograd.grad(loss, list(leaves.values()))
    with torch.no_grad():
        for (name, leaf), g in zip(leaves.items(), found, strict=True):
            blocks = torch.bincount(books[name].codes, minlength=len(leaf)).clamp_min(1)
            speeds[name] = options.momentum * speeds[name] + g / blocks[:, None]
            books[name] = replace(books[name], centroids=leaf.detach() - options.lr * speeds[name])
        _write(layers, books)
    return float(loss.detach())
