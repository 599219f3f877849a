"""What a run reports to experiment trackers, through accelerate's classes: every point once, however often it resumes.

RUN/tracking.json says what each tracker was sent. The points themselves are made from the run's journal, so that a
tracker that failed, or is named later, is sent the rest when the run goes on.
"""

import json
import logging
import math
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.reporting.terminal import to_plain
from tracenas.reporting.tracking.destinations import PROJECT, TENSORBOARD, WANDB, destinations
from tracenas.rundir import read_json, write_json

__all__ = ["Point", "Trackers", "tracked"]

TRACKING = "tracking.json"
_FORGETFUL = ("trackio",)
"""Trackers that have to be told the settings each time that a run goes on."""
Point = tuple[int, Mapping[str, float | None]]
"""A step and its values by name; None: there is none."""

_log = logging.getLogger("tracenas")


@dataclass(frozen=True)
class _Sent:
    """What a tracker was sent.

    Args:
        run: how it calls the run; None where it is a directory.
        settings: whether it was sent them.
        step: the last one.
        ended: whether it was sent the result.
    """

    run: str | None
    settings: bool = False
    step: int = -1
    ended: bool = False


class Trackers:
    """The trackers of a run; false where there are none. One that fails is left out from then on, with one warning.

    Args:
        out: the run directory.
        names: of trackers that there are.
        label: what they are to call the run; None: as its directory is called.
    """

    def __init__(self, out: Path, names: Iterable[str], label: str | None) -> None:
        self._path, self._label = out / TRACKING, label or out.name
        self._sent = _stored(self._path)
        self._waiting = [name for name in names if name not in self._sent or not self._sent[name].ended]
        self._live: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self._live)

    def connect(self, *, begun: bool) -> None:
        """Start what may ask for a login or have no network, before any work; TensorBoard writes no file yet.

        Raises:
            UserError: if a tracker cannot be started and no run is gone on with.
        """
        for name in [name for name in self._waiting if name != "tensorboard"]:
            try:
                self._start(name)
            except Exception as error:
                if not begun:
                    raise UserError(f"report-to {name}: cannot be started: {_line(error)}") from error
                self._lose(name, error)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """The run has begun, or goes on; a tracker that is new is told its settings."""
        for name in list(self._waiting):
            try:
                self._start(name)
            except Exception as error:
                self._lose(name, error)
        values = {key: _setting(value) for key, value in to_plain(dict(settings)).items() if value is not None}
        for name in [name for name in self._live if not self._sent[name].settings or name in _FORGETFUL]:
            action = partial(self._live[name].store_init_configuration, values)
            self._send(name, replace(self._sent[name], settings=True), action)

    def report(self, points: Iterable[Point]) -> None:
        """Send the points that were not sent."""
        for step, values in points:
            numbers = _numbers(values)
            for name in [name for name in self._live if self._sent[name].step < step]:
                sent = replace(self._sent[name], step=step)
                self._send(name, sent, partial(self._live[name].log, numbers, step=step))

    def conclude(self, values: Mapping[str, float | None], texts: Mapping[str, str], file: Path) -> None:
        """Send the result, one step behind the last point.

        Args:
            texts: by name; a tracker that takes no text is given `file`, which holds it.
        """
        numbers = _numbers(values)
        for name, tracker in list(self._live.items()):
            step = self._sent[name].step + 1
            sent = replace(self._sent[name], step=step, ended=True)
            told = numbers if name == "mlflow" else {**numbers, **texts}  # its metrics are numbers
            self._send(name, sent, partial(_log_result, tracker, told, step, file if name == "mlflow" else None))

    def close(self) -> None:
        """Have everything written."""
        for name, tracker in list(self._live.items()):
            try:
                with redirect_stdout(sys.stderr):
                    tracker.finish()
            except Exception as error:
                self._lose(name, error)
        self._live.clear()

    def _start(self, name: str) -> None:
        known = self._sent.get(name)
        with redirect_stdout(sys.stderr):  # where what they tell belongs
            tracker = _made(name, self._label, None if known is None else known.run)
            tracker.start()
        if known is None:
            self._sent[name] = _Sent(_run_of(name, tracker))
        self._waiting.remove(name)
        self._live[name] = tracker

    def _send(self, name: str, sent: _Sent, action: Callable[[], None]) -> None:
        """Do it, recorded first: killed in between, a point is missing rather than there twice."""
        before = self._sent[name]
        self._keep(name, sent)
        try:
            with redirect_stdout(sys.stderr):
                action()
        except Exception as error:
            self._keep(name, before)
            self._lose(name, error)

    def _keep(self, name: str, sent: _Sent) -> None:
        self._sent[name] = sent
        write_json(self._path, {name: asdict(sent) for name, sent in self._sent.items()})

    def _lose(self, name: str, error: Exception) -> None:
        self._live.pop(name, None)
        self._waiting = [one for one in self._waiting if one != name]
        _log.warning("report-to %s: %s; goes on without it, --resume reports what is missing", name, _line(error))


@contextmanager
def tracked(out: Path, names: Sequence[str], label: str | None, *, begun: bool) -> Iterator[Trackers]:
    """The trackers that are named, started; in the end everything is written.

    Args:
        names: as `TrackedConfig.trackers` has them.
        label: what they are to call the run; None: as its directory is called.
        begun: whether a run is gone on with: then a tracker that cannot be started is left out, with a warning.

    Raises:
        UserError: for one that cannot be started.
    """
    trackers = Trackers(out, names, label)
    if not trackers:
        yield trackers
        return
    with _single_process(), destinations(out):
        try:
            trackers.connect(begun=begun)
            yield trackers
        finally:
            trackers.close()


@contextmanager
def _single_process() -> Iterator[None]:
    """The state that accelerate's trackers ask whether they are the main process; nobody else's is replaced."""
    from accelerate import PartialState

    initialised = PartialState._shared_state != {}
    PartialState(cpu=True)
    try:
        yield
    finally:
        if not initialised:
            PartialState._reset_state()


def _made(name: str, label: str, run: str | None) -> Any:
    """A tracker of accelerate, of a new run or to go on with one."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    again = {} if run is None else {"resume": "allow"}
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "", "logging_dir": os.environ.get(TENSORBOARD)},
        "wandb": {"run_name": os.environ.get(WANDB), "name": label, "id": run, **again},
        # It knows runs by their names alone.
        "trackio": {"run_name": PROJECT, "name": run or f"{label}-{secrets.token_hex(3)}", **again},
        "mlflow": {"run_name": label, "run_id": run},
    }
    return LOGGER_TYPE_TO_CLASS[name](**arguments[name])


def _log_result(tracker: Any, values: Mapping[str, Any], step: int, file: Path | None) -> None:
    tracker.log(values, step=step)
    if file is not None:
        tracker.log_artifact(str(file))


def _run_of(name: str, tracker: Any) -> str | None:
    """What a run that was started is found by again."""
    if name == "tensorboard":
        return None
    run = tracker.tracker
    return str(run.info.run_id if name == "mlflow" else run.name if name == "trackio" else run.id)


def _stored(path: Path) -> dict[str, _Sent]:
    stored = read_json(path) if path.is_file() else {}
    try:
        return {str(name): _Sent(**sent) for name, sent in stored.items()}
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected what each tracker was sent; remove it to report everything again") from error


def _setting(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those that are finite, under names that every tracker takes."""
    finite = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
    return {re.sub(r"[^\w\-./ ]", "_", key): value for key, value in finite.items()}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
