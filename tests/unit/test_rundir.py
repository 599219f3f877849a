import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from tracenas import rundir
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.models.checkpoints.shards import atomic_directory
from tracenas.rundir import (
    atomic_path,
    cache_directory,
    check_free,
    default_mode,
    provenance,
    read_json,
    require_free,
    sha256,
    sweep,
    temporary_prefix,
    write_json,
)


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, {"Φ": [1.5, None]})
    assert read_json(path) == {"Φ": [1.5, None]}
    assert os.listdir(path.parent) == ["a.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_asking_for_the_umask_opens_nothing_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[int] = []
    monkeypatch.setattr(rundir.os, "umask", lambda mask: masks.append(mask) or 0o027)
    assert default_mode(0o777) == 0o750
    assert masks == [0o077, 0o027]


def test_writing_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    write_json(tmp_path / "new" / "a.json", 1)
    sweep(tmp_path)
    require_free(tmp_path / "free")
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert read_json(path) == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    monkeypatch.setattr(rundir.os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*a\.json: No space left"):
        write_json(path, 2)
    assert read_json(path) == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_process_leaves_is_swept(tmp_path: Path) -> None:
    write_json(tmp_path / "kept.json", 1)
    child = os.fork()
    if child == 0:  # dies between the temporary file and its rename
        with atomic_path(tmp_path / "a.json"):
            os._exit(0)
    os.waitpid(child, 0)
    unfinished = tmp_path / f"{temporary_prefix(tmp_path / 'checkpoint')}x"
    unfinished.mkdir()
    (unfinished / "model.safetensors").touch()
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]


def test_what_is_not_json_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / "file" / "a.json", 1)
    with pytest.raises(UserError, match="is a file"):
        require_free(tmp_path / "file")
    with pytest.raises(UserError, match="output directory"):
        require_free(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b'{"a": 1,\n ]', "not JSON: .* at line 2, column 2"), (b"\xff\xfe\xfa", r"not UTF-8 \(byte 0\)")],
)
def test_unreadable_json_is_named(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message):
        read_json(path)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="directory"):
        read_json(tmp_path)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_provenance_has_versions_and_facts() -> None:
    import numpy

    facts = provenance(seed=3, model="x")
    assert facts["versions"]["numpy"] == numpy.__version__
    assert (facts["seed"], facts["model"]) == (3, "x")
    json.dumps(facts)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_directory() == tmp_path / "elsewhere" / "tracenas"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == tmp_path / ".cache" / "tracenas"


def test_require_free(tmp_path: Path) -> None:
    require_free(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    require_free(tmp_path / "a" / "b")
    with pytest.raises(UserError, match="exists and is not empty"):
        require_free(tmp_path / "a", what="run directory")


def test_a_result_cannot_take_the_place_of_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's volume is, which would be told only after the work."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(UserError, match="checkpoint directory .*: is a mount point; name a directory in it"):
        check_free(tmp_path, what="checkpoint directory")
    check_free(tmp_path / "a")


def test_a_link_to_an_empty_directory_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with atomic_directory(tmp_path / "out") as directory:
        (directory / "a").write_text("x")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "a").read_text() == "x"


# ---- journal ---------------------------------------------------------------------------------------------


def journal(tmp_path: Path, *lines: str) -> Journal:
    path = tmp_path / "journal.jsonl"
    path.write_bytes("".join(lines).encode())
    return Journal(path)


def test_journal_appends_lines(tmp_path: Path) -> None:
    log = Journal(tmp_path / "run" / "journal.jsonl")
    assert log.read() == []
    log.append({"a": 1})
    log.append({"b": None})
    assert log.read() == Journal(log.path).read() == [{"a": 1}, {"b": None}]
    assert log.path.read_text() == '{"a": 1}\n{"b": null}\n'


def test_journal_is_on_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(rundir.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    log = Journal(tmp_path / "journal.jsonl")
    log.append({"a": 1})
    log.append({"a": 2})
    assert synced == [9, 18]


@pytest.mark.parametrize("rest", ['{"a": 2', "{", '{"a": 2}', "nonsense"])
def test_journal_drops_a_last_line_without_its_end(rest: str, tmp_path: Path) -> None:
    log = journal(tmp_path, '{"a": 1}\n', rest)
    assert log.read() == [{"a": 1}]
    assert log.path.read_text() == '{"a": 1}\n' + rest  # reading changes nothing
    log.append({"a": 3})
    assert log.path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_journal_truncates_without_having_been_read(tmp_path: Path) -> None:
    log = journal(tmp_path, '{"a": 1}\n', '{"a": "longer than the line that comes in its place')
    log.append({"a": 3})
    assert log.path.read_text() == '{"a": 1}\n{"a": 3}\n'


@pytest.mark.parametrize("bad", ["{", "", "[1]", "3", "\x00\x00"])
def test_journal_names_a_corrupt_line(bad: str, tmp_path: Path) -> None:
    log = journal(tmp_path, '{"a": 1}\n', f"{bad}\n", '{"a": 3}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl: line 2 is corrupt"):
        log.read()
    with pytest.raises(UserError, match="line 2 is corrupt"):
        log.append({"a": 4})


def test_journal_names_a_corrupt_complete_last_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2 is corrupt"):
        journal(tmp_path, '{"a": 1}\n', '{"a": \n').read()


def test_journal_names_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n{"a": 1}\n')
    with pytest.raises(UserError, match="line 1 is corrupt"):
        Journal(path).read()


def test_journal_on_a_full_disk_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Journal(tmp_path / "journal.jsonl")
    log.append({"a": 1})
    with monkeypatch.context() as patched:
        patched.setattr(rundir.os, "fsync", full_disk)
        with pytest.raises(UserError, match="cannot write .*journal.jsonl: No space left"):
            log.append({"a": 2})
    log.append({"a": 3})
    assert Journal(log.path).read() == [{"a": 1}, {"a": 3}]


def test_journal_refuses_what_is_not_json(tmp_path: Path) -> None:
    log = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"a": float("inf")})
    assert log.read() == []


def test_a_directory_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="directory"):
        Journal(tmp_path).read()
