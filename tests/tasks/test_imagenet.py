"""ImageNet's folder form, on a tiny one: what is read and when, the parts, an inner run, and the user's mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from metasched.commands.deploy import deploy
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_score, played
from metasched.schedules.table import hand_coded
from metasched.tasks.build import build_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.imagenet import ImageFiles, read_image
from metasched.tasks.supervised import Stored, SupervisedTask
from metasched.training.loop import hardened_score, train
from metasched.training.problem import build_problem

CLASSES = ("n01440764", "n01443537", "n02102040")
SIZE = 16
OF_EACH = {"train": 8, "val": 3}


def write_images(root: Path) -> None:
    """Landscape, portrait and square; a grey, a transparent and a CMYK one among them, as in ILSVRC2012."""
    draws = np.random.default_rng(0)
    for part, count in OF_EACH.items():
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                shape = ((24, 30), (31, 20), (20, 20))[i % 3]
                pixels = draws.integers(0, 120, (*shape, 3)) + 60 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image = image.convert(("RGB", "L", "RGBA", "CMYK")[i % 4])
                suffix = "png" if image.mode == "RGBA" else "JPEG"
                image.save(folder / f"{name}_{part}_{i}.{suffix}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    write_images(folder)
    return folder


def config(root: Path, **settings: Any) -> TaskConfig:
    given: dict[str, Any] = {"image_size": SIZE, "batch": 4, "model": "convnet", "width": 2, "steps": 3, **settings}
    return TaskConfig(name="imagenet", root=str(root), **given)


@pytest.fixture
def task(root: Path) -> SupervisedTask:
    return build_task(config(root, validation=5))


def files(part: Any) -> list[str]:
    assert isinstance(part.x, ImageFiles)
    return list(part.x.paths)


def test_parts_are_disjoint_by_construction(root: Path, task: SupervisedTask) -> None:
    assert [len(part.y) for part in (task.train, task.validation, task.test)] == [19, 5, 9]
    assert all("/train/" in path for path in files(task.train)) and all("/val/" in path for path in files(task.test))
    every = {str(path) for path in root.glob("*/*/*") if path.is_file()}
    left = every - {*files(task.train)} - {*files(task.test)}
    assert len({*files(task.train)}) == 19 and len({*files(task.test)}) == 9 and len(left) == 5
    held_out = sorted(left)
    kept = ImageFiles(tuple(held_out), SIZE)[:]
    found = {t.numpy().tobytes() for t in task.validation.x}
    assert found == {t.numpy().tobytes() for t in kept}  # what is in memory are the images that are left


def test_labels_are_the_classes_in_order(task: SupervisedTask) -> None:
    for part in (task.train, task.test):
        assert [Path(path).parent.name for path in files(part)] == [CLASSES[i] for i in part.y]


def test_an_image_is_what_torchvision_s_evaluation_transform_makes_of_it(root: Path) -> None:
    transform = transforms.Compose(
        [
            transforms.Resize(round(SIZE * 256 / 224)),
            transforms.CenterCrop(SIZE),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    paths = sorted(str(path) for path in (root / "val").glob("*/*"))
    images = ImageFiles(tuple(paths), SIZE)
    assert images.shape == (9, 3, SIZE, SIZE) and images[2:4].dtype == torch.float32
    expected = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    torch.testing.assert_close(images[:], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(images[torch.tensor([5, 0, 5])], images[:][[5, 0, 5]])
    assert read_image(paths[0], 300).shape == (3, 300, 300)  # larger than the file


def test_a_batch_is_read_when_it_is_asked_for_and_is_a_function_of_seed_and_step(
    root: Path, task: SupervisedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr("metasched.tasks.imagenet.read_image", lambda path, size: read.append(path) or _grey(path))
    fresh = build_task(config(root, validation=5))
    assert len(read) == 5  # meta-validation alone
    first = fresh.batch(3, 7)
    assert len(read) == 5 + 4
    monkeypatch.undo()
    again, other = task.batch(3, 7), task.batch(4, 7)
    assert torch.equal(first.y, again.y) and torch.equal(again.x, task.batch(3, 7).x)
    assert not torch.equal(again.x, other.x)
    known = {t.numpy().tobytes(): int(y) for t, y in zip(task.train.x[:], task.train.y, strict=True)}
    assert [known[t.numpy().tobytes()] for t in again.x] == again.y.tolist()  # inputs stay with their targets


def _grey(path: str) -> torch.Tensor:
    return torch.full((3, SIZE, SIZE), 7, dtype=torch.uint8)


def test_an_inner_run_trains_and_is_scored_from_disk(root: Path) -> None:
    experiment = Experiment(task=config(root, validation=5), method=MethodConfig(name="gxnor"))
    problem = build_problem(experiment.problem)
    assert isinstance(problem.task.train, Stored)
    schedule = hand_coded("gxnor")["gxnor_constant"]
    controls = {name: v.float() for name, v in played(experiment.problem, schedule, 3).items()}
    outcome = train(problem.with_seed(1), controls)
    assert bool(outcome.losses.isfinite().all())
    # the same data in memory: the same bits
    held = replace(
        problem.task, train=problem.task.validation._replace(x=problem.task.train.x[:], y=problem.task.train.y)
    )
    assert torch.equal(train(replace(problem, task=held, seed=1), controls).losses, outcome.losses)
    score = hardened_score(problem.with_seed(1), outcome.state, "test")
    assert score * 9 == pytest.approx(round(score * 9), abs=1e-6)
    assert cell_score(experiment.problem, played(experiment.problem, schedule, 3), 1, 3, "test") == score


def test_as_many_outputs_as_classes_and_the_default_of_validation(root: Path) -> None:
    task = build_task(config(root, batch=2, train=2, validation=22))
    assert task.build().float()(task.test.x[:2]).shape == (2, len(CLASSES))
    with pytest.raises(MetaschedError, match=r"^task\.batch: .* the 1 training examples"):
        build_task(config(root))  # 512 are more than there are: all but one


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 20}, "task.batch: must be between 2, which batch normalization needs, and the 19 training examples"),
        ({"train": 30}, "task.train: asks for 30 examples, but imagenet has only 19 for this part"),
        ({"test": 10}, "task.test: asks for 10 examples, but imagenet has only 9 for this part"),
        ({"validation": 24}, "task.validation: asks for 24 examples, but imagenet has only 23 for this part"),
        ({"image_size": 8, "model": "vgg8"}, "task.model: vgg8 needs images of at least 16x16 pixels, got 8x8"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaschedError) as caught:
        build_task(config(root, **{"validation": 5, **settings}))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_missing_folders_and_classes_are_named(tmp_path: Path) -> None:
    def mistake(**settings: Any) -> str:
        with pytest.raises(MetaschedError) as caught:
            build_task(config(tmp_path, validation=5, **settings))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(MetaschedError, match=r"^task\.root: is missing, but imagenet is read from a folder; set task"):
        build_task(replace(config(tmp_path), root=None))
    assert mistake().startswith(f"task.root: cannot read {tmp_path / 'train'} (there is no such folder); set task.root")
    write_images(tmp_path)
    empty = tmp_path / "val" / CLASSES[1]
    for file in empty.iterdir():
        file.unlink()
    assert f"Found no valid file for the classes {CLASSES[1]}" in mistake()
    empty.rmdir()
    assert mistake() == (
        f"task.root: {tmp_path / 'val'} has no folder {CLASSES[1]}; give train and val the same class folders"
    )


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    for file in (tmp_path / "train").glob("*/*"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(MetaschedError, match=r"train/n\d+/n\d+_train_\d\.\w+: cannot be read as an image \(.+\); put"):
        build_task(config(tmp_path, validation=5))


def test_what_needs_all_images_at_once_is_refused(root: Path, tmp_path: Path) -> None:
    experiment = Experiment(task=config(root, validation=5), method=MethodConfig(name="gxnor"))
    with pytest.raises(MetaschedError, match=r"^task\.name: imagenet stays on disk"):
        deploy(experiment.problem, 0, "gxnor_constant", tmp_path / "deployed", None)  # type: ignore[arg-type]
