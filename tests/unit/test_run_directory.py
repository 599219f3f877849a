"""One process per directory, nothing of the user's removed, failures kept: without a model."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tracenas import error_log as logs
from tracenas import rundir
from tracenas.error_log import error_log, is_error_log, log_failure, log_trace, traceback_place
from tracenas.errors import CheckFailed, UserError, disk_failures, disk_trouble
from tracenas.journal import Journal
from tracenas.locks import locked
from tracenas.pipeline.resume import CONFIG, as_started, resolve_settings
from tracenas.pipeline.run_directory import run_directory, starting
from tracenas.process import is_first, terminable
from tracenas.rundir import atomic_path, holding, require_free, sweep, temporary_prefix, write_json
from tracenas.settings import read_settings
from tracenas.world import World, without_leftovers

HOLD = """
import sys, time
from pathlib import Path
from tracenas.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has a directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_directory_is_one_process_alone_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    import socket

    out = tmp_path / "run"
    with holder(out) as other:
        words = rf"run directory .*run: in use by pid {other.pid} on {socket.gethostname()}; wait, or choose another"
        for resume in (False, True):
            with pytest.raises(UserError, match=words), run_directory(out, "search", resume):
                pass
    assert (out / ".lock").is_file()  # killed: its lock file is still there
    with run_directory(out, "search", False) as begun:
        assert not begun
        with locked(out):  # a stage within a stage
            pass
        assert (out / ".lock").read_text() == f"pid {os.getpid()} on {socket.gethostname()}"
    assert not out.exists() or not list(out.iterdir())


def test_two_threads_are_two(tmp_path: Path) -> None:
    errors: list[str] = []

    def other() -> None:
        try:
            with locked(tmp_path):
                pass
        except UserError as error:
            errors.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert f"in use by pid {os.getpid()} on" in errors[0]


def test_a_directory_that_was_made_for_nothing_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"), locked(tmp_path / "file"):
        pass
    with locked(tmp_path, name=".c.lock"), locked(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_locked_directory_is_on_disk_and_its_lock_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(rundir, "fsync", synced.append)
    with locked(tmp_path / "new"):
        assert synced == [tmp_path]
        (tmp_path / "new" / ".lock").unlink()
    assert not (tmp_path / "new").exists()


def test_a_journal_that_another_process_changed_is_refused(tmp_path: Path) -> None:
    log = Journal(tmp_path / "journal.jsonl")
    log.append({"a": 1})
    Journal(log.path).append({"b": 2})
    with pytest.raises(UserError, match=r"journal\.jsonl: 18 bytes, where this process left 9: another one"):
        log.append({"a": 3})
    assert Journal(log.path).read() == [{"a": 1}, {"b": 2}]
    log.path.write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes, where"):  # shorter: filling it up would make it corrupt
        log.append({"a": 3})
    log.path.unlink()
    with pytest.raises(UserError, match="0 bytes, where"):
        log.append({"a": 3})


def test_a_journal_survives_a_short_write(tmp_path: Path) -> None:
    import resource

    log = Journal(tmp_path / "journal.jsonl")
    log.append({"a": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*journal.jsonl: File too large"):
            log.append({"a": "x" * 50})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.path.stat().st_size == 20
    log.append({"a": 2})
    assert Journal(log.path).read() == [{"a": 1}, {"a": 2}]


# ---- what is removed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["search", "study", "study ablation", "metric search", "sparsify"])
def test_a_directory_without_a_run_is_left_as_it_is(kind: str, tmp_path: Path) -> None:
    names = ["calibration.safetensors", "ordering.safetensors", "base.json", "notes.txt"]
    for name in names:
        (tmp_path / name).write_text("the user's")
    with pytest.raises(UserError, match="no run to go on with"), run_directory(tmp_path, kind, True):
        pass
    with pytest.raises(UserError, match="exists and is not empty"), run_directory(tmp_path, kind, False):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_a_refused_start_removes_its_own_files_only(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="typo"), run_directory(out, "search", False) as begun:
        assert not begun
        with starting(out, "search", {"data": "typo"}, begun):
            assert read_settings(out / CONFIG) == {"kind": "search", "data": "typo"}
            write_json(out / "base.json", {"loss": 1})
            write_json(out / "base.json", {"loss": 2})
            write_json(out / "best.json", {})
            (out / "best.json").unlink()
            (out / "best.json").write_text("the user's, in its place")
            (out / "calibration.safetensors").write_text("the user's")
            raise UserError("typo")
    assert sorted(p.name for p in out.iterdir()) == ["best.json", "calibration.safetensors"]


def test_an_interrupted_start_is_gone_on_with(tmp_path: Path) -> None:
    from tracenas.config import SearchConfig

    settings = {"model": "m", "data": "d", "params": "60%", "out": tmp_path / "run"}
    config = SearchConfig(**settings)
    with (
        pytest.raises(KeyboardInterrupt),
        run_directory(config.out, "search", False) as begun,
        starting(config.out, "search", config.model_dump(), begun),
    ):
        write_json(config.out / "base.json", {"loss": 1})
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="holds a run; go on with --resume"), run_directory(config.out, "search", False):
        pass
    with run_directory(config.out, "search", True) as begun:
        assert begun
        assert (config.out / "base.json").is_file()
        assert as_started(config.out, config, ("out", "resume")).samples is None
        resolve_settings(config, config.out, {"samples": 16, "device": "cpu"})
    stored = read_settings(config.out / CONFIG)
    assert (stored["samples"], stored["device"], stored["params"]) == (16, "cpu", "60%")
    words = "is of `tracenas search`, not of `tracenas study`"
    with pytest.raises(UserError, match=words), run_directory(config.out, "study", True):
        pass
    with run_directory(config.out, "run", True) as begun:  # a run goes on with a search
        assert begun


def test_what_is_being_written_is_not_swept(tmp_path: Path) -> None:
    live, dead = (tmp_path / f"{temporary_prefix(tmp_path / name)}x" for name in ("pruned", "a.json"))
    live.mkdir()
    dead.touch()
    handle = os.open(live, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [live]
    os.close(handle)
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    with atomic_path(tmp_path / "a.json") as temporary:
        with holding(temporary) as abandoned:
            assert not abandoned
        sweep(tmp_path)
        temporary.write_text("1")
    assert (tmp_path / "a.json").read_text() == "1"


def test_a_renamed_file_is_on_disk_with_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(rundir.os, "fsync", fsync)
    write_json(tmp_path / "new" / "deep" / "a.json", 1)
    names = [Path(name).name for name in synced]
    assert names[:2] == ["new", tmp_path.name]  # the directories that were made, in those above them
    assert names[2].startswith(".unfinished-a.json")
    assert names[3:] == ["deep"]


# ---- full disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG])
def test_what_the_system_refuses_is_one_line(number: int, tmp_path: Path) -> None:
    words = os.strerror(number)
    for error in (
        OSError(number, words),
        RuntimeError(f"Error while serializing: I/O error: {words} (os error {number})"),
        Exception(f"{words} (os error {number})"),
    ):
        assert disk_trouble(error) == words
        path, told = tmp_path / "a.safetensors", f"cannot write .*a.safetensors: {words}$"
        with pytest.raises(UserError, match=told), atomic_path(path):
            raise error
        with pytest.raises(UserError, match=f"cannot write or read .*: {words}$"), disk_failures():
            raise error
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("x"), OSError(errno.ENOENT, "no such file"), BrokenPipeError(), UserError("no disk")):
        with pytest.raises(type(error)), disk_failures():
            raise error
    assert disk_trouble(ValueError("x")) == ""
    assert disk_trouble(OSError("4096 requested and 12 written")) == "No space left on device"


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file can be larger: the system's own error, where a full disk is not at hand."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _tokens(path: Path) -> None:
    import torch

    from tracenas.data.tokens import save_tokens

    save_tokens(path, torch.zeros(64, 64, dtype=torch.int64))


def _ordering(path: Path) -> None:
    import numpy as np

    from tracenas.models.surgery.ordering import Ordering

    ids = np.arange(4096)
    Ordering({(0, "mlp"): ids}, {(0, "mlp"): ids.astype(np.float32)}).save(path)


def _shards(path: Path) -> None:
    import torch

    from tracenas.models.checkpoints.shards import Entry, atomic_directory, write_shards

    with atomic_directory(path) as directory:
        write_shards(directory, [Entry("w", (64, 64), torch.float32, lambda: torch.zeros(64, 64))], "5GB")


def _checkpoint(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from tracenas.recovery.checkpoints import writing

    with writing(path, None):
        save_file({"w": torch.zeros(64, 64)}, path)
    path.unlink()


def _settings(path: Path) -> None:
    from tracenas.pipeline.resume import write_settings

    write_settings(path, {"text": "x" * 4096})


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (_tokens, "a.safetensors"),
        (_ordering, "a.safetensors"),
        (_shards, "checkpoint"),
        (_checkpoint, "a.safetensors"),
        (_settings, CONFIG),
        (lambda path: write_json(path, "x" * 4096), "a.json"),
    ],
)
def test_every_writer_tells_a_full_disk_in_one_line(write: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        error = stack.enter_context(pytest.raises(UserError))
        stack.enter_context(small_files(2048))
        write(tmp_path / name)
    what = "checkpoint " if write is _checkpoint else ""
    assert str(error.value).startswith(f"cannot write {what}{tmp_path / name}: File too large")
    assert "\n" not in str(error.value)
    if write is not _checkpoint:  # its directory is removed by who writes it
        assert not list(tmp_path.iterdir())


# ---- error.log ------------------------------------------------------------------------------------------


def deep() -> None:
    raise KeyError("a name that nobody has")


def test_an_unexpected_error_is_kept_with_its_traceback(tmp_path: Path) -> None:
    path = tmp_path / "run" / "error.log"
    for _ in range(2):
        with pytest.raises(KeyError) as caught, error_log(path), error_log(tmp_path / "inner.log"):
            deep()
        assert traceback_place(caught.value) == str(path)
    text = path.read_text()
    assert is_error_log(path)
    assert text.count("in deep") == 2
    assert "KeyError: 'a name that nobody has'" in text
    assert not (tmp_path / "inner.log").exists()
    require_free(path.parent)  # the log of a failed attempt is in nobody's way


def test_what_is_the_users_to_read_is_not_kept(tmp_path: Path) -> None:
    for error in (UserError("x"), CheckFailed("x")):
        with pytest.raises(type(error)), error_log(tmp_path / "error.log"):
            raise error
    with pytest.raises(KeyError) as caught, error_log(None):
        deep()
    assert traceback_place(caught.value) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "error.log").write_text("the user's")
    with pytest.raises(UserError, match="not empty"):
        require_free(tmp_path)


def test_failures_within_are_kept_once(tmp_path: Path) -> None:
    with error_log(tmp_path / "error.log"):
        for _ in range(3):
            try:
                deep()
            except KeyError as error:
                log_failure(error)
        log_trace("of another process")
    log_trace("of nobody")
    text = (tmp_path / "error.log").read_text()
    assert text.count("in deep") == 1
    assert "of another process" in text
    assert "of nobody" not in text


def test_a_log_that_cannot_be_written_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeyError) as caught, error_log(tmp_path / "file" / "error.log"):
        deep()
    assert traceback_place(caught.value) is None
    assert not logs._log.handlers[1:]


# ---- the process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "1"}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "", "WORLD_SIZE": ""}],
)
def test_half_a_launch_is_none(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first("plan", ("recover",))
    assert is_first("recover", ("recover",))
    assert World.from_environment() == World()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with without_leftovers():  # accelerate takes any of them for a launch
        whole = bool(environment.get("RANK") and environment.get("WORLD_SIZE"))
        assert ("LOCAL_RANK" in os.environ, "RANK" in os.environ, "WORLD_SIZE" in os.environ) == (whole,) * 3
    assert os.environ["LOCAL_RANK"] == "1"
    assert {name: os.environ[name] for name in environment} == environment


def test_several_processes_are_for_commands_that_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="start them with torchrun, or unset it"):
        is_first("recover", ("recover", "eval"))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert not is_first("recover", ("recover", "eval"))
    with without_leftovers():
        assert os.environ["RANK"] == "1"
    with pytest.raises(UserError, match=r"^plan is one process, .* without torchrun \(recover, eval take several"):
        is_first("plan", ("recover", "eval"))
    for rank in ("2", "-1", "one"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError, match="no launcher sets these"):
            World.from_environment()


def test_sigterm_is_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) == before
