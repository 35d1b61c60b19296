"""The configuration of a whole experiment: frozen, validated, with nothing left to the places that read it."""

from __future__ import annotations

import json
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, SerializeAsAny, WrapValidator
from pydantic.dataclasses import dataclass

from metasched.core import imports
from metasched.core.field_types import (
    STRICT,
    Boolean,
    Bytes,
    Float,
    Int,
    NonNegative,
    PathText,
    Positive,
    Repeats,
    Units,
    Word,
)
from metasched.methods.config import MethodConfig as MethodConfig
from metasched.methods.config import of_its_method


class Arguments(dict[str, Any]):
    """Plain YAML values by name; hashable, because configurations are keys of caches. Not to be changed."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(json.dumps(self, sort_keys=True, default=str))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    """Data, model and length of an inner run."""

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=300)] | None = None
    """function of a task of one's own, as package.module:function; needs `--import package`, see docs/own_task.md"""
    args: Annotated[dict[Word, Any], Field(max_length=256), AfterValidator(Arguments)] = Arguments()
    """with factory: its keyword arguments"""
    name: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar10_npz", "imagenet", "quadratic"] = "digits"
    """data set; digits comes with scikit-learn, the others are read under `root`"""
    root: PathText | None = None
    """folder of the data set, as torchvision lays it out (cifar10_npz: the folder of the npz file; imagenet: that of
    the folders train and val, with a folder for each class)"""
    download: Boolean = False
    """let torchvision fetch the data set into `root`"""
    train: Positive | None = None
    """training examples (default: all that the split leaves)"""
    validation: Positive | None = None
    """meta-validation examples, taken from the training part (default: a fifth of it; imagenet: 512, in memory)"""
    test: Positive | None = None
    """test examples (default: all)"""
    image_size: Annotated[Int, Field(ge=1, le=2048)] = 224
    """imagenet only: pixels a side, after resizing and a crop of the centre"""
    data_seed: Annotated[Int, Field(ge=0)] = 0
    """seed of the split"""
    model: Literal["mlp", "convnet", "lenet", "cutie", "vgg7", "vgg8", "resnet20"] = "convnet"
    """the float network"""
    width: Units = 8
    """channels of the first block (units of the hidden layers for the MLP)"""
    depth: Annotated[Int, Field(ge=1, le=1024)] | None = None
    """convolutions of the convnet, hidden layers of the MLP (default: 3); the other models have their own"""
    steps: Annotated[Int, Field(ge=1, le=10**7)] = 100
    """T, the training steps of an inner run"""
    batch: Positive = 64
    """examples of a step"""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.factory or self.name


class Values(dict[str, float]):
    """Numbers by name; hashable, because configurations are keys of caches. Not to be changed."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(frozenset(self.items()))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GroupConfig:
    """A rule for some of the trained parameters; the first rule that matches a parameter decides."""

    match: Word
    """norm, bias, scale (learned by the method); the class of the module, as Linear; or a glob, as conv1.*"""
    lr_factor: NonNegative = 1.0
    """factor on the learning rate"""
    weight_decay: NonNegative | None = None
    """in place of optimizer.weight_decay (default: that)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """The inner optimizer, as torch.optim defines it."""

    name: Word = "adam"
    """update rule: sgd, adam, adamw, or another of training.optimizers.OPTIMIZERS"""
    lr: Annotated[Float, Field(gt=0)] = 1e-2
    """step size at the start, after the warm-up; for one_cycle the largest"""
    warmup: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """share of the steps in which the learning rate rises linearly to lr; the decay runs over the others"""
    decay: Literal["constant", "cosine", "linear", "step", "one_cycle"] = "constant"
    """factor on lr over progress: 1, (1 + cos(pi u)) / 2, 1 - u, or torch's StepLR or OneCycleLR"""
    step_every: Annotated[Float, Field(gt=0, le=1)] = 1 / 3
    """decay step only: after each such share of the steps, rounded to whole steps, comes the next factor"""
    step_gamma: Annotated[Float, Field(gt=0, le=1)] = 0.1
    """decay step only: the factor"""
    pct_start: Annotated[Float, Field(gt=0, lt=1)] = 0.3
    """decay one_cycle only: share of the steps in which the learning rate rises"""
    div_factor: Annotated[Float, Field(ge=1)] = 25.0
    """decay one_cycle only: lr over the first learning rate"""
    final_div_factor: Annotated[Float, Field(ge=1)] = 1e4
    """decay one_cycle only: the first learning rate over the last"""
    clip_norm: Annotated[Float, Field(gt=0)] | None = None
    """largest norm of all gradients together, as clip_grad_norm_ (default: no clipping)"""
    clip_value: Annotated[Float, Field(gt=0)] | None = None
    """largest size of an element of the gradients, as clip_grad_value_ (default: no clipping)"""
    groups: Annotated[tuple[GroupConfig, ...], Field(max_length=256)] = ()
    """rules with an own learning rate or weight decay for some parameters; first match wins"""
    nesterov: Boolean = False
    """SGD only: Nesterov's momentum"""
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """SGD only"""
    betas: tuple[Annotated[Float, Field(ge=0, lt=1)], Annotated[Float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Adam and AdamW only"""
    eps: NonNegative = 1e-8
    """Adam and AdamW only"""
    weight_decay: NonNegative = 0.0
    """added to the gradient; for AdamW the share of the weights, times lr, that a step takes away"""
    parameters: Annotated[dict[Word, Float], Field(max_length=64), AfterValidator(Values)] = Values()
    """what an optimizer from outside this package reads besides, by name"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantizeConfig:
    """Which layers are quantized."""

    first: Boolean = True
    """quantize the first convolution or linear layer"""
    last: Boolean = False
    """quantize the last one"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScheduleConfig:
    """What is learned and where it starts."""

    kind: Literal["network", "family"] = "network"
    """a network, or a family of hand-coded schedules: a window with a decay, of five to seven parameters a control"""
    start: PathText = "best"
    """name of a hand-coded schedule, path of a schedule file, or `best`: the best hand-coded one on meta-validation"""
    learn: tuple[Word, ...] | None = None
    """controls that are learned (default: all differentiable ones of the method); the others stay as they start"""
    knots: Annotated[Int, Field(ge=2, le=512)] = 25
    """points in progress that the schedule is linear between"""
    hidden: Units = 32
    """network only: units of each of the two hidden layers"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MetaConfig:
    """The outer loop."""

    steps: Annotated[Int, Field(ge=0, le=10**9)] = 40
    """outer updates"""
    runs: Repeats = 4
    """inner runs averaged in an outer step; antithetic pairs of them for evolution strategies"""
    lr: Annotated[Float, Field(gt=0)] = 0.1
    """Adam step size of the schedule network: about the change of a log-correction in an outer step"""
    estimator: Literal["sweep", "higher", "unroll", "forward", "es", "pes", "nres", "mixed", "auto"] = "sweep"
    """how hypergradients are computed: exactly by `sweep` (least memory), `higher` or `unroll` (same numbers), or
    `forward` (a run for each parameter of a `family`); or by evolution strategies for chaotic inner runs: `es` from
    whole runs, `pes` and `nres` from windows of them; `mixed` weighs `sweep` and `es` by their variances, and `auto`
    chooses among the three as it goes"""
    memory: Bytes | None = None
    """sweep, mixed, auto: bytes, or a text such as 2 GiB, that an inner run may take (default: little; more: faster)"""
    sigma: Annotated[Float, Field(gt=0)] = 0.5
    """es, pes, nres, mixed, auto: standard deviation of the perturbations, about that of a log-correction"""
    window: Positive | None = None
    """pes, nres: steps of a window (default: a tenth of the run)"""
    relaxation: NonNegative = 0.3
    """width of the relaxed freeze mask while learning (share of the weights); 0 is the exact partition"""
    objective: Literal["hardened", "relaxed", "trajectory"] = "hardened"
    """validation loss of the hardened network, of the network as trained, or the hardened mean over the last fifth"""
    surrogate: Annotated[Float, Field(gt=0)] = 0.5
    """half-width of the surrogate derivative of the hardened network, in quanta"""
    clip: Annotated[Float, Field(gt=0)] = 1.0
    """largest norm of one inner run's hypergradient"""
    noise_floor: NonNegative | None = None
    """lowest noise while learning, in quanta (default: as the method's control declares, 0.35); 0 switches it off"""
    select_runs: Repeats = 4
    """paired inner runs for each hand-coded schedule when `schedule.start` is best"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareConfig:
    """The comparison at the end of training and of `metasched compare`."""

    seeds: Annotated[Int, Field(ge=2, le=10_000)] = 16
    """fresh paired seeds"""
    baselines: tuple[Word, ...] | None = None
    """names of hand-coded schedules, of any method (default: all of this method); `ste`, no schedule at all, and
    `float`, the network without quantization, are always compared"""
    horizons: Annotated[tuple[Repeats, ...], Field(max_length=64)] = (1,)
    """multiples of task.steps at which the schedules are played"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TuneConfig:
    """A hand-coded family tuned by search: `metasched tune`."""

    search: Literal["tpe", "cmaes", "random", "pbt"] = "tpe"
    """tree-structured Parzen estimator, CMA-ES, random search, or population based training"""
    inner_steps: Positive = 20_000
    """training steps in all, the finalists' included: as many as learning took, for a fair comparison"""
    runs: Repeats = 2
    """fresh inner runs that a candidate is scored by"""
    finalists: Repeats = 5
    """best candidates that are judged again; from 2 on, the start is one of them"""
    final_runs: Repeats = 8
    """fresh inner runs, the same for all finalists, that decide between them"""
    population: Annotated[Int, Field(ge=5, le=10_000)] = 20
    """pbt only: members of a population"""
    interval: Positive = 5
    """pbt only: steps between two exchanges"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OnlineConfig:
    """Learning while training once: `metasched online`."""

    every: Positive = 10
    """steps that are played from one look-ahead to the next"""
    window: Positive = 5
    """steps that a look-ahead trains ahead and differentiates"""
    lr: Annotated[Float, Field(gt=0)] = 0.1
    """Adam step size of the schedule network"""
    held_out: Positive | None = None
    """examples of the meta-validation part that judge a look-ahead (default: as many as task.batch)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingConfig:
    """Where metrics go besides the JSON lines of the run folder."""

    wandb: Literal["disabled", "offline", "online"] = "offline"
    """offline keeps the wandb run in the run folder; `wandb sync` uploads it later"""
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")] = "metasched"
    """wandb project"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Where and with what the experiment runs."""

    folder: PathText = "runs"
    """run folders are made in here"""
    workers: Annotated[Int, Field(ge=0, le=1024)] = 0
    """worker processes; 0: one for each core"""
    device: Word = "cpu"
    """torch device that the inner runs train on"""
    dtype: Literal["float32", "float64"] = "float32"
    """of weights, data and schedule"""
    autocast: Boolean = False
    """run the network in bfloat16 while training, where torch.autocast does; all else stays in float32"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Experiment:
    """A whole experiment: one YAML file."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")] = "experiment"
    """names the run folder and the wandb group"""
    seed: Annotated[Int, Field(ge=0)] = 0
    """every random number of the experiment follows from it"""
    task: TaskConfig = field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    method: Annotated[SerializeAsAny[MethodConfig], WrapValidator(of_its_method)] = field(default_factory=MethodConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def problem(self) -> ProblemConfig:
        """What its inner problem depends on."""
        run = self.run
        return ProblemConfig(
            self.task,
            self.optimizer,
            self.method,
            self.quantize,
            run.device,
            run.dtype,
            run.autocast,
            imports.allowed(),
        )


class ProblemConfig(NamedTuple):
    """All that an inner problem depends on; goes to workers with their work, and is a key of caches.

    Attributes:
        task, optimizer, method, quantize: sections of the experiment.
        device, dtype, autocast: of its section ``run``.
        imports: packages that may be imported for its task (see core/imports.py).
    """

    task: TaskConfig
    optimizer: OptimizerConfig
    method: MethodConfig
    quantize: QuantizeConfig
    device: str = "cpu"
    dtype: str = "float32"
    autocast: bool = False
    imports: tuple[str, ...] = ()
