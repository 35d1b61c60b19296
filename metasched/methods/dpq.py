"""DPQ: a table of embeddings as codes into small codebooks, which are trained with it by a softmax that is cooled.

A row q of the table [n, d] has D groups q_j of d / D numbers, and each group K keys k_jc. With scores r_jc and the
temperature tau,

    p_jc = softmax_c(r_jc / tau),    c_j = argmax_c r_jc

    sx, softmax        r_jc = normalized <q_j, k_jc>      row seen: values v_jc of their own
    vq, nearest key    r_jc = -|q_j - k_jc|^2             row seen: the keys themselves, v_jc = k_jc

``method.selection`` says what the forward pass sees of group j:

    hard    v_jc at c = c_j. sx: the derivative is that of sum_c p_jc v_jc. vq: that of q_j, straight through, and
            tau has no part in it
    soft    sum_c p_jc v_jc with its true derivative; at the lowest tau, 0.01, as hard, so that training ends where
            deployment begins

Scores of sx are normalized to mean 0 and variance 1 over the n rows, for each j and c. Hard vq has the penalty
mean |v - sg(q)|^2 + beta mean |sg(v) - q|^2 with v = v_jc at c = c_j, the stopped gradient sg, and the
commitment beta; with soft selection keys have true derivatives, and need none. Stored are n D log2(K) bits of
codes and K d values, those of all groups.

Keys, and values of sx, start at K rows of the table. The deployed row is a row of codebook entries, exactly.

Source: Chen, Li, Sun: Differentiable Product Quantization for End-to-End Embedding Compression. ICML 2020, arXiv
1908.09756; chentingpc/dpq_embedding_compression, core/kd_quantizer.py, whose tau is the constant 1. We differ: the
whole table is looked up at once, so that normalization and penalty are over its rows, each of which counts once, where
theirs are over the words of a batch; normalization is for each group, and needs no running mean; soft selection; no
shared codebooks, no Gumbel noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import Coding, Control, Method, State, Values
from metasched.methods.parameters import DPQConfig
from metasched.quantizers.codebooks import code_width, stored_bytes

LOWEST = 0.01
_TEMPERATURE = "temperature"
_EPSILON = 1e-5  # added to the variance of scores
HARD = Control(
    _TEMPERATURE,
    LOWEST,
    10.0,
    "score of a code",
    "nonincreasing",
    end=None,
    gradient="surrogate",
    scale="log",
    none_value=1.0,
)
SOFT = replace(HARD, end=LOWEST, gradient="path")


@dataclass(frozen=True)
class DPQ(Method):
    """Differentiable product quantization; see the module's docstring.

    Attributes:
        groups: D, which divides the number of columns.
        codes: K, a power of two, at most the number of rows.
        lookup: ``sx`` or ``vq``.
        selection: ``hard`` or ``soft``.
        commitment: beta >= 0 of hard vq.
    """

    tables: ClassVar[bool] = True
    groups: int = 8
    codes: int = 16
    lookup: Literal["sx", "vq"] = "sx"
    selection: Literal["hard", "soft"] = "hard"
    commitment: float = 0.0

    @property
    def controls(self) -> tuple[Control, ...]:
        if self.selection == "soft":
            return (SOFT,)
        return (HARD,) if self.lookup == "sx" else ()

    @property
    def quantizes(self) -> Quantizes:
        return "weight"

    @property
    def bits(self) -> float:
        return float(code_width(self.codes))

    @property
    def coding(self) -> Coding:
        return "codes"

    def bits_of(self, shape: Sequence[int]) -> float:
        """Bits of codes for each number of a table [n, d]: D log2(K) / d, without the codebooks."""
        return self.groups * code_width(self.codes) / _columns(shape)

    def stored_bytes(self, shape: Sequence[int], value_bits: int = 32) -> int:
        """Bytes of a table [n, d] as codes and codebooks, exactly: n D log2(K) bits, and K d values."""
        return stored_bytes(shape[0] * self.groups, self.codes, self.codes * _columns(shape), value_bits)

    def refusal(self, shape: Sequence[int]) -> str:
        if _columns(shape) % self.groups:
            return f"has {_columns(shape)} columns, which {self.groups} groups do not divide; set method.groups"
        if self.codes > shape[0]:
            return f"has {shape[0]} rows, fewer than its {self.codes} codes; set method.codes"
        return ""

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        rows = draw.permutation("codes", len(w))[: self.codes].to(w.device)
        keys = self._split(w)[rows].transpose(0, 1).clone()  # [D, K, d / D]
        return w, {"keys": keys, "values": keys.clone()} if self.lookup == "sx" else {"keys": keys}, {}

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self._looked_up(w, state, controls.get(_TEMPERATURE))

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return x

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        if self.lookup == "sx" or self.selection == "soft":
            return None
        queries = self._split(w)
        chosen = _entries(_one_hot(self._scores(w, state)), state["keys"])
        found = (chosen - queries.detach()).square().mean()
        return found + self.commitment * (chosen.detach() - queries).square().mean() if self.commitment else found

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The deployed table; the derivative is that of hard selection at the temperature ``surrogate``."""
        return self._hard(w, state, w.new_tensor(surrogate))

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return x

    def levels_of(self, state: State) -> torch.Tensor:
        """The values that the numbers of each column may take, [1, d, K], increasing."""
        values = state["values" if self.lookup == "sx" else "keys"]
        return values.transpose(1, 2).flatten(0, 1).sort(-1).values[None]

    def storage(self, w: torch.Tensor, state: State) -> dict[str, tuple[int, int]]:
        values = state["values" if self.lookup == "sx" else "keys"]
        return {"codes": (len(w) * self.groups, code_width(self.codes)), "codebooks": (values.numel(), 32)}

    def codes_of(self, w: torch.Tensor, state: State) -> torch.Tensor:
        """The codes that are stored of a table w [n, d]: int64 [n, D]."""
        return self._scores(w, state).argmax(-1)

    def _looked_up(self, w: torch.Tensor, state: State, temperature: torch.Tensor | None) -> torch.Tensor:
        if self.selection == "hard":
            return self._hard(w, state, temperature)
        assert temperature is not None
        temperature = temperature.to(w.dtype)
        probabilities = (self._scores(w, state) / temperature).softmax(-1)
        soft = _entries(probabilities, state["values" if self.lookup == "sx" else "keys"]).reshape(w.shape)
        coldest = temperature < LOWEST * 1.001  # an end on a log scale may be rounded
        return torch.where(coldest, self._hard(w, state, temperature), soft)

    def _hard(self, w: torch.Tensor, state: State, temperature: torch.Tensor | None) -> torch.Tensor:
        scores = self._scores(w, state)
        chosen = _one_hot(scores)
        if self.lookup == "vq" and self.selection == "hard":
            queries = self._split(w)  # the difference is 0, so that the entries are seen exactly
            return (_entries(chosen, state["keys"].detach()) + (queries - queries.detach())).reshape(w.shape)
        assert temperature is not None
        probabilities = (scores / temperature.to(w.dtype)).softmax(-1)
        values = state["values" if self.lookup == "sx" else "keys"]
        return _entries(chosen + (probabilities - probabilities.detach()), values).reshape(w.shape)

    def _scores(self, w: torch.Tensor, state: State) -> torch.Tensor:
        """r, [n, D, K]."""
        queries, keys = self._split(w), state["keys"]
        products = torch.einsum("njs,jks->njk", queries, keys)
        if self.lookup == "vq":
            return 2 * products - queries.square().sum(-1, keepdim=True) - keys.square().sum(-1)
        centred = products - products.mean(0)
        return centred / (centred.square().mean(0) + _EPSILON).sqrt()

    def _split(self, w: torch.Tensor) -> torch.Tensor:
        """[n, D, d / D] of a table [n, d]."""
        return w.flatten(1).unflatten(1, (self.groups, -1))


def _one_hot(scores: torch.Tensor) -> torch.Tensor:
    """1 at the largest of K scores [..., K], at ties the first one, else 0."""
    codes = torch.arange(scores.shape[-1], device=scores.device)
    return (scores.argmax(-1, keepdim=True) == codes).to(scores.dtype)


def _entries(shares: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """sum_c p_jc v_jc for shares [n, D, K] and values [D, K, d / D]: [n, D, d / D]; entries exactly, where one is 1."""
    return torch.einsum("njk,jks->njs", shares, values)


def _columns(shape: Sequence[int]) -> int:
    columns = 1
    for n in shape[1:]:
        columns *= n
    return columns


def build(config: DPQConfig) -> DPQ:
    """The method of a configuration."""
    return DPQ(config.groups, config.codes, config.lookup, config.selection, config.commitment)
