"""The configuration of a whole experiment: the sections, each of which the part that reads it defines."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, NamedTuple

from pydantic import Field, SerializeAsAny, WrapValidator
from pydantic.dataclasses import dataclass

from metasched.arena.config import ArenaConfig
from metasched.core import imports
from metasched.core.field_types import STRICT, Int
from metasched.core.shown import short
from metasched.evaluation.config import CompareConfig
from metasched.families.config import TasksConfig
from metasched.meta.config import MetaConfig, OnlineConfig
from metasched.methods.config import MethodConfig, of_its_method
from metasched.network.config import QuantizeConfig
from metasched.runs.config import RunConfig
from metasched.schedules.config import ScheduleConfig
from metasched.search.config import AllocateConfig, TuneConfig
from metasched.tasks.config import TaskConfig
from metasched.tracking.config import TrackingConfig
from metasched.training.optimizers.config import OptimizerConfig


@dataclass(frozen=True, kw_only=True, repr=False, config=STRICT)
class Experiment:
    """A whole experiment: one YAML file."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")] = "experiment"
    """names the run folder and the wandb group"""
    seed: Annotated[Int, Field(ge=0)] = 0
    """every random number of the experiment follows from it"""
    task: TaskConfig = field(default_factory=TaskConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    method: Annotated[SerializeAsAny[MethodConfig], WrapValidator(of_its_method)] = field(default_factory=MethodConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    allocate: AllocateConfig = field(default_factory=AllocateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    arena: ArenaConfig = field(default_factory=ArenaConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __repr__(self) -> str:
        return short(self)

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
