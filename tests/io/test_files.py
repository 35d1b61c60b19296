from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metasched.core.errors import MetaschedError
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment, version
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


def run_python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=subprocess.PIPE)


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for data in (b"long content", b"", b"x"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["a.bin"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_failure_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(MetaschedError, match=r"a\.bin: cannot be written \(No space left on device\)"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_full_disk_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    code = (
        "import resource, sys; from metasched.io.atomic import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomic(sys.argv[1], bytes(5000))"
    )
    process = run_python(code, str(path))
    assert b"MetaschedError" in process.communicate()[1]
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_killed_writers_leave_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    code = (
        "import sys; from metasched.io.atomic import write_atomic\n"
        "while True:\n"
        "    for byte in (b'a', b'b'): write_atomic(sys.argv[1], byte * 3_000_000)"
    )
    for trial in range(6):
        path.unlink(missing_ok=True)
        process = run_python(code, str(path))
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(0.013 * trial)
        process.kill()
        process.communicate()
        content = path.read_bytes()
        assert len(content) == 3_000_000 and len(set(content)) == 1


def test_run_folders_are_numbered(tmp_path: Path) -> None:
    parent = tmp_path / "deep" / "runs"
    names = [RunFolder.create(parent, "a").path.name for _ in range(2)]
    (parent / "a-007").mkdir()
    (parent / "a-b-009").mkdir()
    names += [RunFolder.create(parent, name).path.name for name in ("a", "b")]
    assert names == ["a-001", "a-002", "a-008", "b-001"]


@pytest.mark.parametrize("mark", ["DONE", "config.resolved.yaml", "checkpoint.pt", "metrics.jsonl"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).write_text("123\n")
    for _ in range(2):  # it leaves no lock
        with pytest.raises(MetaschedError) as caught:
            RunFolder.claim(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: already holds a run (it has a {mark})")
    assert (tmp_path / mark).read_text() == "123\n"


def test_a_given_folder_is_made_once(tmp_path: Path) -> None:
    folder = RunFolder.claim(tmp_path / "x" / "y", "online")
    assert (folder.path / "PID").read_text() == f"{os.getpid()} online\n"
    with pytest.raises(MetaschedError, match=f"is in use by process {os.getpid()};"):
        RunFolder.claim(folder.path)
    assert not folder.done.exists()
    folder.finish()
    assert folder.done.exists()
    folder.release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from metasched.io.run_folder import RunFolder\n"
        "folder = RunFolder.claim(sys.argv[1]); folder.config.touch(); print(flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    for take in (RunFolder.claim, RunFolder.resume):
        with pytest.raises(MetaschedError, match=f"is in use by process {process.pid};"):
            take(tmp_path)
    process.kill()
    process.communicate()
    folder = RunFolder.resume(tmp_path)
    assert (tmp_path / "PID").read_text() == f"{os.getpid()} train\n"
    folder.release()


def test_what_can_be_resumed(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(MetaschedError) as caught:
            RunFolder.resume(path)
        return str(caught.value)

    assert f"{tmp_path}: holds no run" in refused(tmp_path) and os.listdir(tmp_path) == []
    assert "holds no run" in refused(tmp_path / "nowhere")
    folder = RunFolder.claim(tmp_path, "compare")
    folder.config.touch()
    folder.release()
    assert "holds a run of `metasched compare`; only runs of `metasched train` can be resumed" in refused(tmp_path)
    (tmp_path / "PID").write_text("1 train\n")
    (tmp_path / ".schedule.json.1a2b.tmp").touch()
    RunFolder.resume(tmp_path).release()
    assert sorted(os.listdir(tmp_path)) == ["PID", "config.resolved.yaml"]  # what was half written is taken away
    folder.finish()
    assert "holds a run that has finished; read its results, or start a new run" in refused(tmp_path)


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "PID").symlink_to(tmp_path / "mine")
    with pytest.raises(MetaschedError, match="cannot be made a run folder"):
        RunFolder.claim(folder)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make in (lambda: RunFolder.claim(tmp_path / "file"), lambda: RunFolder.create(tmp_path / "file", "a")):
        with pytest.raises(MetaschedError, match="cannot be made a run folder"):
            make()


def test_json_has_no_bare_nan() -> None:
    value = {"a": [float("nan"), float("-inf"), 1e-3], "b": ("x", None, True, 3), "c": {"d": float("inf")}}
    assert json.loads(json_text(value)) == {"a": ["nan", "-inf", 0.001], "b": ["x", None, True, 3], "c": {"d": "inf"}}


def test_environment_names_versions_and_nothing_private() -> None:
    import numpy
    import torch

    got = environment()
    assert (got["python"], got["numpy"]) == (platform.python_version(), numpy.__version__)
    assert got["torch"] == torch.__version__.split("+")[0] or got["torch"] == torch.__version__
    assert got["threads"] == torch.get_num_threads() and got["cpu_count"] == os.cpu_count()
    assert got["git"] is None or (len(got["git"]["commit"]) == 40 and isinstance(got["git"]["dirty"], bool))
    text = json.dumps(got)
    assert str(Path.home()) not in text and str(ROOT) not in text and f'"{platform.node()}"' not in text
    assert version("surely-not-installed") is None


def test_git_state_of_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "metasched"
    (package / "io").mkdir(parents=True)
    for name in ("__init__.py", "io/__init__.py", "io/environment.py"):
        (package / name).write_bytes((ROOT / "metasched" / name).read_bytes())

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    def ask() -> object:
        code = "import json; from metasched.io.environment import _git; print(json.dumps(_git()))"
        environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environ))

    git("init", "-q")
    assert ask() is None
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert ask() == {"commit": commit, "dirty": False}
    (package / "__init__.py").write_text((package / "__init__.py").read_text() + "\n")
    assert ask() == {"commit": commit, "dirty": True}
