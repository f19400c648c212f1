"""What a step spends on each purpose, in the JSON document."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from llmprof.analysis.device.roles import RoleReport
from llmprof.analysis.view.roles import RolePair, RoleRow
from llmprof.records import Unavailable

Document = dict[str, Any]
NAMES = 8
"""Of the kernels of one role."""


def roles_document(
    report: RoleReport | Unavailable, rows: tuple[RoleRow, ...] | Unavailable
) -> Document:
    """Key ``roles`` of ``gpu``: null and the reason where the steps are not known."""
    if isinstance(report, Unavailable) or isinstance(rows, Unavailable):
        why = report if isinstance(report, Unavailable) else rows
        assert isinstance(why, Unavailable)
        return {"roles": None, "roles_reason": why.reason}
    return {
        "roles": {
            "steps": report.steps,
            "layers": report.layers or None,
            "why_unknown": report.why_unknown or None,
            "rows": [role_row(row) for row in rows],
        }
    }


def role_row(row: RoleRow) -> Document:
    """One role of one engine."""
    document: Document = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Unavailable):
            document |= {field.name: None, f"{field.name}_reason": value.reason}
        else:
            document[field.name] = list(value)[:NAMES] if isinstance(value, tuple) else value
    return document


def role_pairs_document(found: tuple[RolePair, ...] | Unavailable) -> Document:
    """What two engines do for the same purpose; null and the reason where a side has no steps."""
    if isinstance(found, Unavailable):
        return {"rows": None, "rows_reason": found.reason}
    return {
        "rows": [
            {
                "role": pair.role,
                "a": None if pair.a is None else role_row(pair.a),
                "b": None if pair.b is None else role_row(pair.b),
                "delta_ms": pair.delta_ms,
            }
            for pair in found
        ]
    }
