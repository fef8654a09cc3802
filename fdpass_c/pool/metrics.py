"""The status of a pool as JSON, and in the format of Prometheus."""

import json
from collections import Counter
from collections.abc import Mapping
from operator import attrgetter

from fdpass_c.pool.status import STATES, Status, WorkerStatus

PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TOTALS = (
    ("handled", "handled_total", "counter", "Connections finished."),
    ("failed", "failed_total", "counter", "Connections finished whose handler raised."),
    ("lost", "lost_total", "counter", "Connections that a worker had begun when it died."),
    ("waiting", "waiting", "gauge", "Connections accepted and given to no worker yet."),
)
_OF_WORKERS = (
    ("in_hand", "worker_in_hand", "gauge", "Connections given and not finished."),
    ("handled", "worker_handled_total", "counter", "Connections finished."),
    ("busy", "worker_busy_seconds_total", "counter", "Time in handlers; event loops: CPU time."),
    ("age", "worker_age_seconds", "gauge", "Time since it was started."),
    ("restarts", "worker_restarts_total", "counter", "Workers that had its slot before."),
)


def to_json(status: Status) -> str:
    """Returns a JSON object with the fields of Status and WorkerStatus, and busy_share."""
    workers = [{**worker._asdict(), "busy_share": worker.busy_share} for worker in status.workers]
    return json.dumps({**status._asdict(), "workers": workers}) + "\n"


def to_prometheus(status: Status) -> str:
    """Returns the text format, version 0.0.4. Each slot has one time series, to which all workers
    in this slot contribute, one after the other."""
    parts = [
        _render(name, kind, text, {"": getattr(status, field)})
        for field, name, kind, text in _TOTALS
    ]
    states = Counter(worker.state for worker in status.workers)
    counts = {f'{{state="{state.lower()}"}}': states[state] for state in STATES}
    parts.append(_render("workers", "gauge", "Worker processes.", counts))
    serving = _find_serving(status)
    for field, name, kind, text in _OF_WORKERS:
        values = {f'{{slot="{worker.slot}"}}': getattr(worker, field) for worker in serving}
        parts.append(_render(name, kind, text, values))
    return "".join(parts)


def _find_serving(status: Status) -> list[WorkerStatus]:
    """Returns one worker of each slot: while a worker is replaced, the one that gets
    connections."""
    ranks = {"LEAVING": 0, "STARTING": 1, "BUSY": 2, "FREE": 2}
    ordered = sorted(status.workers, key=lambda worker: ranks[worker.state])
    by_slot = {worker.slot: worker for worker in ordered}
    return sorted(by_slot.values(), key=attrgetter("slot"))


def _render(name: str, kind: str, text: str, values: Mapping[str, float]) -> str:
    name = f"fdpass_pool_{name}"
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{labels} {value}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"
