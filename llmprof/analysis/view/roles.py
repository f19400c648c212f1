"""What engines spend on the same purpose, and the bandwidth that they reach at it.

*Modelled*: packed bytes of the matrices of a role (the engine's own list) over the time of its
kernels. *Measured*: the fit of DRAM samples to kernels (``analysis.bandwidth.kernels``). GB is 1e9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmprof.analysis.bandwidth.kernels import KernelBandwidth, KernelDram
from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.device.roles import (
    UNKNOWN,
    WEIGHTS,
    Place,
    RoleReport,
    RoleTime,
    matrices,
    order,
)
from llmprof.records import EngineInfo, Maybe, Unavailable


@dataclass(frozen=True)
class RoleRow:
    """One role of one engine; a decode step's means."""

    role: str
    ms_per_step: float
    launches_per_step: float
    names: tuple[str, ...]
    """Short names of its kernels, that with the most time first; printable."""
    weight_mb: Maybe
    """Packed bytes of its matrices, a step."""
    modelled_gb_s: Maybe
    """``weight_mb`` over its time."""
    measured_gb_s: Maybe
    """Mean over its time, of the kernels that samples could tell."""
    told_together: tuple[str, ...]
    """Other roles that ``measured_gb_s`` is of too: same kernel, same launch shape."""


@dataclass(frozen=True)
class RolePair:
    """``None``: the engine has no kernel of that role."""

    role: str
    a: RoleRow | None
    b: RoleRow | None

    @property
    def delta_ms(self) -> float:
        return (self.b.ms_per_step if self.b else 0.0) - (self.a.ms_per_step if self.a else 0.0)


def role_rows(
    report: RoleReport | Unavailable,
    info: EngineInfo | None,
    dram: KernelBandwidth | Unavailable,
) -> tuple[RoleRow, ...] | Unavailable:
    """All roles of one engine, in the order of ``device.roles.ROLES``."""
    if isinstance(report, Unavailable):
        return report
    packed = matrices(None if info is None else info.projections)
    owners = _owners(report)
    return tuple(_row(role, report, dram, packed, owners) for role in report.roles)


def role_pairs(
    a: tuple[RoleRow, ...] | Unavailable, b: tuple[RoleRow, ...] | Unavailable
) -> tuple[RolePair, ...] | Unavailable:
    """What two engines do for the same purpose; roles that neither has are left out."""
    if isinstance(a, Unavailable):
        return a
    if isinstance(b, Unavailable):
        return b
    left, right = ({row.role: row for row in rows} for rows in (a, b))
    return tuple(
        RolePair(role, left.get(role), right.get(role))
        for role in sorted({*left, *right}, key=order)
    )


def _row(
    role: RoleTime,
    report: RoleReport,
    dram: KernelBandwidth | Unavailable,
    packed: dict[str, tuple[int, int]],
    owners: dict[_Key, set[str]],
) -> RoleRow:
    weight = _weight(role.role, report, packed)
    modelled: Maybe = weight
    if not isinstance(weight, Unavailable):
        modelled = weight * 1e6 / role.ns_per_step  # bytes a ns: GB/s
    measured, together = _measured(role, dram, owners)
    return RoleRow(
        role=role.role,
        ms_per_step=role.ns_per_step / 1e6,
        launches_per_step=role.launches_per_step,
        names=role.names,
        weight_mb=weight,
        modelled_gb_s=modelled,
        measured_gb_s=measured,
        told_together=tuple(sorted(together, key=order)),
    )


def _weight(role: str, report: RoleReport, packed: dict[str, tuple[int, int]]) -> Maybe:
    if role not in WEIGHTS:
        return Unavailable("it does not multiply by weights")
    if role not in packed:
        return Unavailable("the engine does not say which matrices a step multiplies by")
    if not report.layers:
        return Unavailable("the layers of a step are not all known")
    return packed[role][1] * (1 if role == "lm_head" else report.layers) / 1e6


_Key = tuple[str, tuple[int, int, int], tuple[int, int, int], str]
"""Short name, grid, block, and what ran before it."""


def _key(place: Place) -> _Key:
    return short_name(place.name), place.grid, place.block, place.before


def _owners(report: RoleReport) -> dict[_Key, set[str]]:
    found: dict[_Key, set[str]] = {}
    for role in report.roles:
        for place in role.places:
            found.setdefault(_key(place), set()).add(role.role)
    return found


def _fits(kernel: KernelDram, key: _Key) -> bool:
    """Is the fitted group what ran at that place?"""
    name, grid, block, before = key
    if name in kernel.others:
        return True
    if (kernel.short_name, kernel.grid, kernel.block) != (name, grid, block):
        return False
    return not kernel.after or before in kernel.after.split(" or ")


def _measured(
    role: RoleTime, dram: KernelBandwidth | Unavailable, owners: dict[_Key, set[str]]
) -> tuple[Maybe, set[str]]:
    if isinstance(dram, Unavailable):
        return dram, set()
    if role.role == UNKNOWN:
        return Unavailable("kernels of several purposes"), set()
    moved, time, together = 0.0, 0, set()
    for place in role.places:
        kernel = next((k for k in dram.kernels if _fits(k, _key(place))), None)
        if kernel is None or isinstance(kernel.dram_gb_s, Unavailable):
            continue
        moved += kernel.dram_gb_s * place.total_ns
        time += place.total_ns
        together |= _of(kernel, owners)
    whole = sum(place.total_ns for place in role.places)
    if time < LEAST_KNOWN * whole:
        return Unavailable("the samples do not tell its kernels' bandwidth"), set()
    return moved / time, together - {role.role}


LEAST_KNOWN = 0.9
"""Of a role's time that must have a measured bandwidth for the role to have one."""


def _of(kernel: KernelDram, owners: dict[_Key, set[str]]) -> set[str]:
    return {role for key, roles in owners.items() if _fits(kernel, key) for role in roles}


def gb_s(row: RoleRow) -> tuple[Maybe, str]:
    """(value, how it is known): measured where it was, else modelled."""
    if not isinstance(row.measured_gb_s, Unavailable):
        return row.measured_gb_s, "measured"
    return row.modelled_gb_s, "modelled"


def names_text(names: Sequence[str], limit: int = 2) -> str:
    """The first names, and how many more."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" +{more}" if more > 0 else "")
