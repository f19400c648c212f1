"""Rows about a run as a whole, as nsys' exports have them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from llmprof.records import RunInfo
from llmprof.runfile import schema


def heading_rows(info: RunInfo) -> dict[str, list[dict[str, Any]]]:
    """Table → rows: versions, start of the session, its span (nothing yet)."""
    version = [str(n) for n in schema.NSYS_SCHEMA]
    facts = {
        "EXPORT_PRODUCT_NAME": "llmprof",
        "EXPORT_PRODUCT_VERSION": info.tool_version,
        "EXPORT_SCHEMA_VERSION": ".".join(version),
        "EXPORT_SCHEMA_VERSION_MAJOR": version[0],
        "EXPORT_SCHEMA_VERSION_MINOR": version[1],
        "EXPORT_SCHEMA_VERSION_MICRO": version[2],
        "LLMPROF_SCHEMA_VERSION": str(schema.SCHEMA_VERSION),
    }
    utc = datetime.fromtimestamp(info.t0_utc_ns // 10**9, timezone.utc)
    start = {
        "utcEpochNs": info.t0_utc_ns,
        "utcTime": utc.strftime("%Y-%m-%dT%H:%M:%S"),
        "localTime": utc.astimezone().strftime("%Y-%m-%dT%H:%M:%S"),
        "systemClockNs": info.t0_ns,
    }
    # As in real exports, start and stop are on the target's clock, unlike all other times.
    span = {
        "globalVid": schema.VM,
        "duration": 0,
        "startTime": info.t0_ns,
        "stopTime": info.t0_ns,
    }
    return {
        "META_DATA_EXPORT": [{"name": k, "value": v} for k, v in facts.items()],
        "TARGET_INFO_SESSION_START_TIME": [start],
        "ANALYSIS_DETAILS": [span],
    }
