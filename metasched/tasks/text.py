"""The next character of a text: a small transformer on the documentation that comes with Python, or on a file."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module

import numpy as np
import torch
from torch.nn import functional as F

from metasched.core.errors import MetaschedError
from metasched.core.randomness import generator
from metasched.io.reading import read_regular
from metasched.models.transformer import HEAD_WIDTH, Transformer
from metasched.tasks.classification import accuracy
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask

CONTEXT = 32  # characters that the network sees at most
DEPTH = 2  # blocks
MOST_CHARACTERS = 256  # of the vocabulary
_LARGEST_FILE = 64 * 2**20  # bytes
_FIX = "set task.root to a text file in UTF-8, or leave it out for Python's documentation"


def text_task(config: TaskConfig) -> SupervisedTask:
    """Windows of 33 characters of a text, each in one window only: 32 inputs, and for each the character after it.

    Test, meta-validation and training windows are three stretches of the text, one after the other, that begin at a
    window drawn from ``task.data_seed`` (the end of the text goes on at its start). By default a tenth of the windows
    is for testing and a twentieth for meta-validation. The loss is the mean cross entropy, the score the accuracy, both
    over all 32 positions. The text is that of ``task.root``, or Python's own documentation (see ``python_text``).

    Raises:
        MetaschedError: no such text, a text that is too short, sizes that do not fit, or a width of no whole heads.
    """
    if config.width > HEAD_WIDTH and config.width % HEAD_WIDTH:
        problem = f"is {config.width}, which has no whole heads of {HEAD_WIDTH} channels"
        fix = f"set it to a multiple of {HEAD_WIDTH}, or to less than {HEAD_WIDTH}"
        raise MetaschedError("task.width", problem, fix)
    characters, vocabulary = encoded(python_text() if config.root is None else text_of(config.root))
    windows = characters[: len(characters) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    train, validation, test = (Split(w[:, :-1], w[:, 1:]) for w in parts(config, windows))
    return SupervisedTask(
        name=config.name,
        train=train,
        validation=validation,
        test=test,
        model=partial(Transformer, vocabulary, config.width, config.depth or DEPTH),
        criterion=F.cross_entropy,
        metric=accuracy,
        batch_size=config.batch,
    )


def python_text() -> str:
    """The language reference that Python's ``help()`` shows, each paragraph once, on a line of its own.

    About 370,000 characters of English with some code, from ``pydoc_data.topics`` of the standard library, under the
    licence of Python. It has other words in other versions of Python, so that their scores differ a little, and
    so do their fingerprints.

    Raises:
        MetaschedError: a Python without it.
    """
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        fix = "set task.root to a text file in UTF-8"
        raise MetaschedError("task.name", "this Python comes without the text of its documentation", fix) from None
    # a topic may repeat what other topics say: what is tested must not be in the training part
    paragraphs = (" ".join(paragraph.split()) for name in sorted(topics) for paragraph in topics[name].split("\n\n"))
    return "\n".join(dict.fromkeys(paragraph for paragraph in paragraphs if paragraph))


def text_of(path: str) -> str:
    """The text of a file, in UTF-8.

    Raises:
        MetaschedError: there is no such file, or it holds something else.
    """
    content = read_regular(os.path.expanduser(path), _LARGEST_FILE, _FIX)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MetaschedError("task.root", f"{path} is not UTF-8 (byte {error.start})", _FIX) from None


def encoded(text: str) -> tuple[torch.Tensor, int]:
    """Each character as its rank by frequency, int64 [n], and the size of the vocabulary.

    Of more than 256 different characters, the rarest are one: 255.

    >>> encoded("abba b")
    (tensor([1, 0, 0, 1, 2, 0]), 3)
    """
    values, found, counts = np.unique(
        np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True, return_counts=True
    )
    rank = np.empty(len(values), np.int64)
    rank[np.lexsort((values, -counts))] = np.arange(len(values)).clip(max=MOST_CHARACTERS - 1)
    return torch.from_numpy(rank[found]), min(len(values), MOST_CHARACTERS)


def parts(config: TaskConfig, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Windows [n, 33] for training, meta-validation and testing.

    Raises:
        MetaschedError: more are asked for than there are, or a batch that is larger than the training part.
    """
    n = len(windows)
    if n < 3:
        problem = f"holds {n} windows of {CONTEXT + 1} characters, and each part needs one"
        raise MetaschedError("task.root", problem, "give a longer text")
    test = _size(config, "test", max(1, n // 10), n - 2)
    validation = _size(config, "validation", max(1, min(n // 20, n - test - 1)), n - test - 1)
    train = _size(config, "train", n - test - validation, n - test - validation)
    if config.batch > train:
        problem = f"must be at most the {train} training windows, got {config.batch}"
        raise MetaschedError("task.batch", problem, f"set it to {min(64, train)}")
    first = int(torch.randint(n, (), generator=generator(config.data_seed, "text")))
    of_test, of_validation, rest = windows.roll(-first, 0).split([test, validation, n - test - validation])
    return rest[:train], of_validation, of_test


def _size(config: TaskConfig, part: str, default: int, available: int) -> int:
    """The number of windows of a part: what the user asks for, if there are so many, or its default."""
    asked = getattr(config, part)
    if asked is not None and asked > available:
        problem = f"asks for {asked} windows of {CONTEXT + 1} characters, and the text has only {available} for this"
        raise MetaschedError(f"task.{part}", problem, f"ask for at most {available}")
    return default if asked is None else asked
