"""A task from outside the package, as somebody's own file: images of horizontal, vertical or no stripes."""

from __future__ import annotations

import torch

from metasched.core.randomness import generator
from metasched.tasks import TaskSpec, register_task
from metasched.tasks.classification import classification_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.tasks.table import IMAGES

SIDE, CLASSES, EXAMPLES = 6, 3, 192


def build(config: TaskConfig) -> SupervisedTask:
    """Noisy stripes: images uint8 [192, 1, 6, 6], labels int64 [192] in 0..2."""
    random = generator(config.data_seed, "stripes")
    y = torch.arange(EXAMPLES) % CLASSES
    line = 128 * (torch.arange(SIDE) % 2)
    clean = torch.stack([line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE), torch.full((SIDE, SIDE), 64)])
    noise = torch.randint(0, 100, (EXAMPLES, 1, SIDE, SIDE), generator=random)
    pixels = (clean[y][:, None] + noise).to(torch.uint8)
    return classification_task(config, Split(pixels, y), official_test=None, num_classes=CLASSES)


SPEC = register_task(TaskSpec("stripes", "horizontal, vertical or no stripes", build, IMAGES))
