"""Data sets read from a folder, on tiny fake ones in the true formats."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.tasks.build import build_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.splits import split_indices
from metasched.tasks.supervised import SupervisedTask

NUM_TRAIN, NUM_TEST = 20, 8
FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
NPZ = "cifar10_10k_2k.npz"


def pixels(n: int, *shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n: int) -> np.ndarray:
    return (np.arange(n) % 10).astype(np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    """MNIST's format: 0, 0, type (8: uint8), number of dimensions, big-endian sizes, data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def write_mnist(root: Path, folder: str) -> None:
    for prefix, n, seed in (("train", NUM_TRAIN, 0), ("t10k", NUM_TEST, 1)):
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", pixels(n, 28, 28, seed=seed))
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels(n))


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    x, y = pixels(NUM_TRAIN, 3, 32, 32, seed=0), labels(NUM_TRAIN).tolist()
    files: dict[str, Any] = {
        f"data_batch_{i + 1}": {"data": x[4 * i : 4 * i + 4].reshape(4, -1), "labels": y[4 * i : 4 * i + 4]}
        for i in range(5)
    }
    test = pixels(NUM_TEST, 3, 32, 32, seed=1).reshape(NUM_TEST, -1)
    files["test_batch"] = {"data": test, "labels": labels(NUM_TEST).tolist()}
    files["batches.meta"] = {"label_names": list("abcdefghij")}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))


def npz_arrays() -> dict[str, Any]:
    return {
        "x_train": pixels(NUM_TRAIN, 3, 32, 32, seed=0).transpose(0, 2, 3, 1),
        "y_train": labels(NUM_TRAIN),
        "x_test": pixels(NUM_TEST, 3, 32, 32, seed=1).transpose(0, 2, 3, 1),
        "y_test": labels(NUM_TEST),
    }


def config(name: Any, root: Path | str | None, **changes: Any) -> TaskConfig:
    return TaskConfig(name=name, root=None if root is None else str(root), **{"batch": 4, **changes})


def check_parts(task: SupervisedTask, *shape: int, classes: int = 10) -> None:
    """Train and validation come from the official training part, test from the official test part alone."""
    train, test = pixels(NUM_TRAIN, *shape, seed=0), pixels(NUM_TEST, *shape, seed=1)
    chosen = split_indices(NUM_TRAIN, validation=4, test=0, seed=0)
    order = split_indices(NUM_TEST, validation=0, test=NUM_TEST, seed=0).test
    fitted = train[chosen.train].astype(np.float64)
    mean, std = fitted.mean((0, 2, 3), keepdims=True), fitted.std((0, 2, 3), keepdims=True)
    for part, x, rows in (
        (task.train, train, chosen.train),
        (task.validation, train, chosen.validation),
        (task.test, test, order),
    ):
        np.testing.assert_allclose(part.x.numpy(), (x[rows] - mean) / std, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(part.y.numpy(), labels(len(x))[rows])
        assert part.x.dtype == torch.float32 and part.y.dtype == torch.int64
    assert task.build()(task.train.x.to(torch.get_default_dtype())).shape == (16, classes)


def message_of(config: TaskConfig) -> str:
    with pytest.raises(MetaschedError) as caught:
        build_task(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_idx_files(name: str, tmp_path: Path):
    write_mnist(tmp_path, FOLDERS[name])
    check_parts(build_task(config(name, tmp_path)), 1, 28, 28)


def test_cifar10_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.isfile(path))
    check_parts(build_task(config("cifar10", tmp_path)), 3, 32, 32)


def test_cifar100_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, n, seed in (("train", NUM_TRAIN, 0), ("test", NUM_TEST, 1)):
        x = pixels(n, 3, 32, 32, seed=seed).reshape(n, -1)
        (folder / name).write_bytes(pickle.dumps({"data": x, "fine_labels": labels(n).tolist()}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.isfile(path))
    check_parts(build_task(config("cifar100", tmp_path)), 3, 32, 32, classes=100)


@pytest.mark.parametrize("folder", [".", "cifar10-subset"])
def test_npz(folder: str, tmp_path: Path):
    (tmp_path / folder).mkdir(exist_ok=True)
    np.savez(tmp_path / folder / NPZ, **npz_arrays())
    check_parts(build_task(config("cifar10_npz", tmp_path)), 3, 32, 32)


def test_a_channel_without_variation_becomes_zero(tmp_path: Path):
    arrays = npz_arrays()
    arrays["x_train"] = arrays["x_train"].copy()
    arrays["x_train"][..., 1] = 17
    np.savez(tmp_path / NPZ, **arrays)
    task = build_task(config("cifar10_npz", tmp_path))
    assert torch.equal(task.train.x[:, 1], torch.zeros(16, 32, 32))
    assert task.train.x.isfinite().all() and task.test.x.isfinite().all()


def test_a_part_of_the_official_test_set_is_a_prefix_of_its_permutation(tmp_path: Path):
    write_mnist(tmp_path, "MNIST")
    whole, part = build_task(config("mnist", tmp_path)), build_task(config("mnist", tmp_path, test=3))
    assert torch.equal(part.test.x, whole.test.x[:3])
    assert torch.equal(part.train.x, whole.train.x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 17}, "task.train: asks for 17 examples, but mnist has only 16 for this part; ask for at most 16"),
        ({"validation": 20}, "task.validation: asks for 20 examples, but mnist has only 19 for this part"),
        ({"test": 9}, "task.test: asks for 9 examples, but mnist has only 8 for this part"),
        ({"batch": 17}, "task.batch: must be between 2, which batch normalization needs, and the 16 training examples"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, int], message: str, tmp_path: Path):
    write_mnist(tmp_path, "MNIST")
    assert message_of(config("mnist", tmp_path, **changes)).startswith(message)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
    ],
)
def test_missing_data_sets_say_what_the_root_must_hold(name: str, folder: str, tmp_path: Path):
    fix = f"; set task.root to the folder that holds {folder}; task.download: true fetches it there"
    nowhere = tmp_path / "nowhere"
    assert message_of(config(name, None)) == f"task.root: is missing, but {name} is read from a folder{fix}"
    assert message_of(config(name, nowhere)) == f"task.root: there is no folder {nowhere}{fix}"
    empty = message_of(config(name, tmp_path))
    assert empty.startswith(f"task.root: cannot read {name} in {tmp_path} (Dataset not found") and empty.endswith(fix)
    assert not nowhere.exists() and not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not an idx file", bytes([0, 0, 8, 3, 0, 0, 0, 9])])
def test_damaged_idx_files(content: bytes, tmp_path: Path):
    write_mnist(tmp_path, "MNIST")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    assert message_of(config("mnist", tmp_path)).startswith(f"task.root: cannot read mnist in {tmp_path} (")


def test_download_is_passed_on_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched: list[str] = []

    def fetch(dataset: Any) -> None:
        fetched.append(str(dataset.root))
        write_mnist(Path(dataset.root), "MNIST")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fetch)
    root = tmp_path / "new"
    message_of(config("mnist", root))
    assert fetched == []
    check_parts(build_task(config("mnist", root, download=True)), 1, 28, 28)
    assert set(fetched) == {str(root)}


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(dataset: Any) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    message = message_of(config("mnist", tmp_path, download=True))
    assert message.startswith(f"task.root: cannot read mnist in {tmp_path} (no network)")


def test_a_missing_npz(tmp_path: Path):
    fix = f"; set task.root to the folder that holds {NPZ}, with arrays x_train, y_train, x_test, y_test"
    assert message_of(config("cifar10_npz", None)).endswith(fix)
    assert message_of(config("cifar10_npz", tmp_path)) == f"task.root: there is no {NPZ} in {tmp_path}{fix}"
    nowhere = tmp_path / "nowhere"
    assert message_of(config("cifar10_npz", nowhere)) == f"task.root: there is no folder {nowhere}{fix}"


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_an_npz_without_a_key(key: str, tmp_path: Path):
    np.savez(tmp_path / NPZ, **{name: array for name, array in npz_arrays().items() if name != key})
    message = message_of(config("cifar10_npz", tmp_path))
    assert message.startswith(f"task.root: cannot read {tmp_path / NPZ} (") and key in message.split(";")[0]


@pytest.mark.parametrize(
    ("key", "array", "problem"),
    [
        ("x_train", np.zeros((20, 32, 32, 3)), "must be uint8 of shape (N, 32, 32, 3), got float64 of shape"),
        ("x_test", np.zeros((8, 3, 32, 32), np.uint8), "must be uint8 of shape (N, 32, 32, 3), got uint8 of shape (8,"),
        ("x_test", np.zeros((8, 32, 32), np.uint8), "must be uint8 of shape (N, 32, 32, 3), got uint8 of shape (8,"),
        ("y_train", np.zeros(20), "must be integers of shape (20,), got float64 of shape (20,)"),
        ("y_train", np.zeros(19, np.uint8), "must be integers of shape (20,), got uint8 of shape (19,)"),
        ("y_test", np.zeros((8, 1), np.uint8), "must be integers of shape (8,), got uint8 of shape (8, 1)"),
        ("y_test", np.full(8, 10), "must be labels in 0..9, got 10 to 10"),
        ("y_test", np.full(8, -1), "must be labels in 0..9, got -1 to -1"),
    ],
)
def test_npz_arrays_of_another_kind(key: str, array: Any, problem: str, tmp_path: Path):
    np.savez(tmp_path / NPZ, **{**npz_arrays(), key: array})
    assert message_of(config("cifar10_npz", tmp_path)).startswith(f"task.root: {key} in {tmp_path / NPZ} {problem}")


def test_pickled_objects_are_never_loaded(tmp_path: Path):
    arrays = npz_arrays()
    arrays["y_test"] = np.array([Unpickled()] * 8, dtype=object)
    np.savez(tmp_path / NPZ, **arrays)
    assert message_of(config("cifar10_npz", tmp_path)).startswith(f"task.root: cannot read {tmp_path / NPZ} (Object")
    assert not Unpickled.happened


class Unpickled:
    happened = False

    def __setstate__(self, state: object) -> None:
        Unpickled.happened = True

    def __getstate__(self) -> str:
        return "something, so that __setstate__ is called"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_a_damaged_npz(content: bytes, tmp_path: Path):
    (tmp_path / NPZ).write_bytes(content)
    assert message_of(config("cifar10_npz", tmp_path)).startswith(f"task.root: cannot read {tmp_path / NPZ} (")


def test_a_single_array_is_not_an_archive(tmp_path: Path):
    with (tmp_path / NPZ).open("wb") as file:
        np.save(file, np.zeros(3))
    assert message_of(config("cifar10_npz", tmp_path)).startswith(f"task.root: cannot read {tmp_path / NPZ} (")
