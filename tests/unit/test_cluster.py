"""Pools of Ray actors, and what is no cluster."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import NEEDS_RAY, ray_head

from tracenas.cluster import joining
from tracenas.cluster.actors import ActorPool
from tracenas.cluster.joining import Cluster, joined, require_address
from tracenas.cluster.versions import difference, versions
from tracenas.errors import UserError


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Room for two actors."""
    with ray_head(2) as address, joined(address) as found:
        yield found


def pool(cluster: Cluster, mark: Path, workers: int = 2) -> ActorPool:
    return ActorPool(cluster, "pool_worker:build", str(mark), workers, cores=1, memory=1 << 20)


@NEEDS_RAY
def test_results_come_in_order_and_an_actor_that_dies_costs_a_retry(cluster: Cluster, tmp_path: Path) -> None:
    with pool(cluster, tmp_path / "mark") as workers:
        answers = list(workers.map([1, "die once", 3, "fail", 5]))
        assert (tmp_path / "mark").exists()
        assert answers == [
            {"result": 1},
            {"result": "die once"},
            {"result": 9},
            {"error": "ValueError: as asked"},
            {"result": 25},
        ]
        assert [a["result"] for a in workers.map([6, 7])] == [36, 49]


@NEEDS_RAY
def test_a_task_that_ends_every_fresh_actor_fails_alone(cluster: Cluster, tmp_path: Path) -> None:
    with pool(cluster, tmp_path / "mark") as workers:
        one, died, three = workers.map([1, "die", 3])
    assert (one, three) == ({"result": 1}, {"result": 9})
    assert died["error"].startswith("its process died 3 times (")


@NEEDS_RAY
def test_more_actors_than_there_is_room_for_are_waited_for_by_nobody(cluster: Cluster, tmp_path: Path) -> None:
    with pool(cluster, tmp_path / "mark", workers=5) as workers:
        assert [a["result"] for a in workers.map([1, 2, 3])] == [1, 4, 9]


@NEEDS_RAY
def test_a_node_with_another_version_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracenas.cluster import actors

    monkeypatch.setattr(actors, "versions", lambda: {**versions(), "torch": "1.0"})
    with pytest.raises(UserError, match=r"node .*: torch is .*, here it is 1.0"):
        pool(cluster, tmp_path / "mark")


@NEEDS_RAY
def test_an_actor_that_cannot_be_built_is_refused_in_a_line(cluster: Cluster) -> None:
    with pytest.raises(UserError, match=r"node .*: ModuleNotFoundError: No module named 'not_here'"):
        ActorPool(cluster, "not_here:build", None, 1, cores=1, memory=1 << 20)


def test_the_first_difference_is_named() -> None:
    assert difference(versions(), versions()) is None
    assert difference({"a": "1", "b": "2"}, {"a": "1"}) == "b is absent, here it is 2"


@pytest.mark.parametrize("address", ["", "here", "host:", ":1", "host:0", "host:70000", "ray://host:1", "a/b:6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="accepted: auto, or the HOST:PORT"):
        require_address(address)


def test_a_cluster_that_is_not_there_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        pytest.raises(UserError, match=f"no cluster answers at 127.0.0.1:{port}"),
        joined(f"127.0.0.1:{port}"),
    ):
        pass


def test_auto_takes_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"ray auto: no cluster answers at 127.0.0.1:{port}"), joined("auto"):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(joining, "_running", lambda: None)
    with pytest.raises(UserError, match="--ray needs Ray: pip install ray"), joined("auto"):
        pass
