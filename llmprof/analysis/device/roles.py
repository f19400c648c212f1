"""Which part of a transformer's layer a kernel plays, by its order in the step.

A step is products with weights between two kinds of landmarks: attention, one a layer, and norms,
before the attention's and before the MLP's products. Between the attention of one layer and that of
the next lie three groups of products, parted by norms::

    attention | o | norm | gate, up, down | norm | q, k, v | attention | ...
    ... attention | o | norm | gate, up, down | norm | lm_head

Where norms are fused into products there is one group; its products are told apart only if they
are as many as the engine's own list of matrices says. Anything else (experts, parallel blocks,
adapters) is ``unknown``: nothing is guessed from a name such as ``NT_matmul12``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.kernels import TracedRound
from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.device.sweep import Work
from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import Ints

Dim = tuple[int, int, int]

WEIGHTS: Final = ("qkv", "o", "gate/up", "down", "lm_head")
"""Roles that multiply by weights."""
UNKNOWN: Final = "unknown"
ROLES: Final = (
    *WEIGHTS, "attention", "KV write", "norm", "RoPE", "activation", "elementwise", "embedding",
    "sampling", "collective", "copy", UNKNOWN,
)  # fmt: skip
"""In the order in which they are shown; further ones (MoE, SSM, …) are categories that are a role
as they stand."""
PRODUCTS: Final = ("quantised GEMV/GEMM", "GEMM/GEMV")
MOST_ORDERS: Final = 256
"""Different orders of kernels that are looked at; steps of further ones are ``unknown``."""

_OF_CATEGORY: Final[Mapping[str, str]] = {
    "KV cache": "KV write",
    "activation/elementwise": "elementwise",
    "communication": "collective",
    "other": UNKNOWN,
}
_SOFTMAX = re.compile(r"soft_?max", re.IGNORECASE)
_WHOLE_ATTENTION = re.compile(r"flash|fmha|sdpa|paged|decode|attn|attention", re.IGNORECASE)
_SPLIT_K = re.compile(r"split_?k_?reduce|reduce_1Block|splitkreduce", re.IGNORECASE)
_NORM = re.compile(r"rsqrt|rms_?norm|pow_tensor_scalar|MeanOps", re.IGNORECASE)
_MAY_NORM: Final = ("embedding", "activation/elementwise")
"""inductor fuses a norm with the embedding before it; eager torch's has kernels of its own."""
_PART_OF: Final = (
    ("qkv", re.compile(r"qkv|(^|[._])(attn_)?[qkv](_proj)?$")),
    ("o", re.compile(r"(^|[._])o(_proj)?$|attn_output|out_proj")),
    ("gate/up", re.compile(r"gate|(^|[._])(ffn_)?up|(^|[._])w[13]$|fc1|dense_h_to_4h")),
    ("down", re.compile(r"down|(^|[._])w2$|fc2|dense_4h_to_h")),
    ("lm_head", re.compile(r"lm_head|^output$|embed_tokens|token_embd|wte")),
)


@dataclass(frozen=True)
class Place:
    """One kernel in one role. Names as recorded."""

    name: str
    grid: Dim
    block: Dim
    before: str
    """Short name of the kernel before it on the device; empty for the first of a step."""
    launches: int
    total_ns: int


@dataclass(frozen=True)
class RoleTime:
    """What a decode step spends on one purpose; means over ``RoleReport.steps``."""

    role: str
    ns_per_step: float
    """Sum of durations."""
    launches_per_step: float
    names: tuple[str, ...]
    """Short names, printable, that with the most time first."""
    places: tuple[Place, ...]


@dataclass(frozen=True)
class RoleReport:
    """Kernels and copies of the primary device by role; the roles add up to all of them."""

    steps: int
    layers: int
    """Of a step of the most frequent order whose products are all known; 0: none is."""
    orders: int
    """Different orders of kernels among the steps."""
    roles: tuple[RoleTime, ...]
    """In the order of ``ROLES``."""
    why_unknown: str
    """What is not known, and why; empty where every kernel has its role."""

    def role(self, name: str) -> RoleTime | None:
        return next((r for r in self.roles if r.role == name), None)


def roles_of(
    traced: TracedRound, projections: Mapping[str, Sequence[int]] | None = None
) -> RoleReport | Unavailable:
    """The role of every kernel of the counted decode steps of a traced round.

    Args:
        projections: ``EngineInfo.projections``.
    """
    why = traced.attribution.unavailable
    if why is not None:
        return why
    work = traced.work.on(traced.laid.device)
    counted = np.concatenate([[False], traced.counted])
    mine = np.flatnonzero((work.step > 0) & counted[np.maximum(work.step, 0)])
    steps = int(np.count_nonzero(traced.counted))
    if not len(mine) or not steps:
        return Unavailable("no kernel was launched in a decode step")
    mine = mine[np.lexsort((work.start_ns[mine], work.step[mine]))]
    kinds = [_kind(name, traced.categories.get(n, "other")) for n, name in enumerate(work.names)]
    label, step = work.label[mine], work.step[mine]
    role, layers, orders = _by_order(label, step, work.is_kernel[mine], kinds, projections)
    return RoleReport(
        steps=steps,
        layers=layers,
        orders=orders,
        roles=_times(traced, work, mine, role, steps),
        why_unknown=_why(role, kinds, label, orders),
    )


def matrices(projections: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, int]]:
    """Role → (matrices, packed bytes) of a layer; of the whole model for the head. Empty where a
    matrix of the list has no role that is known here: then no bytes are told of any."""
    found: dict[str, tuple[int, int]] = {}
    for name, (_, _, size) in (projections or {}).items():
        part = next((role for role, pattern in _PART_OF if pattern.search(name)), None)
        if part is None:
            return {}
        count, total = found.get(part, (0, 0))
        found[part] = count + 1, total + size
    return found


def _kind(name: str, category: str) -> str:
    """``product``, ``attention``, ``softmax``, ``reduce`` (of the product before it), or a role."""
    if category in PRODUCTS:
        return "reduce" if _SPLIT_K.search(name) else "product"
    if category == "attention":
        core = _SOFTMAX.search(name) and not _WHOLE_ATTENTION.search(name)
        return "softmax" if core else "attention"
    if category in _MAY_NORM and _NORM.search(name):
        return "norm"
    return _OF_CATEGORY.get(category, category)


def _by_order(
    label: Ints,
    step: Ints,
    is_kernel: NDArray[np.bool_],
    kinds: Sequence[str],
    projections: Mapping[str, Sequence[int]] | None,
) -> tuple[NDArray[np.object_], int, int]:
    """(role of every row, layers, orders). Rows come in order of step and start.

    Steps of one order of kernels are parsed once. Copies are left out of the order: on a stream of
    their own they come now before, now after the kernel beside them.
    """
    role = np.array([kinds[n] for n in label.tolist()], object)
    begin = np.flatnonzero(np.concatenate([[True], step[1:] != step[:-1]]))
    end = np.append(begin[1:], len(step))
    seen: dict[bytes, tuple[list[str], int]] = {}
    count: dict[bytes, int] = {}
    expected = {name: number for name, (number, _) in matrices(projections).items()}
    for low, high in zip(begin.tolist(), end.tolist(), strict=True):
        rows = low + np.flatnonzero(is_kernel[low:high])
        key = label[rows].tobytes()
        count[key] = count.get(key, 0) + 1
        if key not in seen and len(seen) < MOST_ORDERS:
            seen[key] = parse(kinds, label[rows].tolist(), expected)
        if key in seen:
            role[rows] = seen[key][0]
        else:
            pending = np.isin(role[rows], ("product", "reduce"))
            role[rows[pending]] = UNKNOWN
            role[rows[role[rows] == "softmax"]] = "attention"
    usual = max(count, key=lambda key: count[key])
    layers = seen[usual][1] if usual in seen else 0
    return role, layers, len(count)


def parse(
    kinds: Sequence[str], order: Sequence[int], expected: Mapping[str, int]
) -> tuple[list[str], int]:
    """(roles, layers) of the kernels of one step.

    Args:
        kinds: of every name (``_kind``).
        order: the names of the kernels, in order.
        expected: role → matrices of a layer, as the engine says; may be empty.
    """
    roles = [kinds[n] for n in order]
    _softmax_attention(roles)
    spans = _attention(roles)
    layers = 0
    if spans:
        inner = [
            _layer(roles, after, before, expected) for (_, after), (before, _) in pairwise(spans)
        ]
        tail = _layer(roles, spans[-1][1], len(roles), expected, last=True)
        _first(roles, order, spans[0][0], [found for found in inner if found])
        known = sum(bool(found) for found in inner) + bool(tail)
        layers = len(spans) if known == len(spans) else 0
    before = UNKNOWN
    for n, name in enumerate(order):
        if roles[n] == "product":
            roles[n] = UNKNOWN
        if kinds[name] == "product":
            before = roles[n]
        elif kinds[name] == "reduce":
            roles[n] = before
    return roles, layers


def _softmax_attention(roles: list[str]) -> None:
    """Attention of single kernels: a product, the softmax, a product, and what lies between."""
    for n, kind in enumerate(roles):
        if kind != "softmax":
            continue
        low = next((i for i in range(n - 1, -1, -1) if roles[i] in ("product", "norm")), n)
        high = next((i for i in range(n + 1, len(roles)) if roles[i] in ("product", "norm")), n)
        both = roles[low] == roles[high] == "product"
        for i in range(low, high + 1) if both else (n,):
            roles[i] = "attention"


def _attention(roles: Sequence[str]) -> list[tuple[int, int]]:
    """(first, behind the last) kernel of the attention of each layer: those with no product
    between them are of one layer."""
    spans: list[tuple[int, int]] = []
    product = True
    for n, role in enumerate(roles):
        if role == "product":
            product = True
        elif role == "attention":
            if product:
                spans.append((n, n + 1))
            else:
                spans[-1] = spans[-1][0], n + 1
            product = False
    return spans


def _groups(roles: Sequence[str], low: int, high: int) -> list[list[int]]:
    """Products from ``low`` to ``high``, parted where a norm lies between them."""
    groups: list[list[int]] = [[]]
    for n in range(low, high):
        if roles[n] == "product":
            groups[-1].append(n)
        elif roles[n] == "norm" and groups[-1]:
            groups.append([])
    return groups if groups[-1] else groups[:-1]


def _layer(
    roles: list[str], low: int, high: int, expected: Mapping[str, int], last: bool = False
) -> list[int]:
    """Assign what lies between two attentions, or behind the last. Returns the products that lead
    to the next attention (or to the tokens); empty: it is no layer that is known here."""
    groups = _groups(roles, low, high)
    end = "lm_head" if last else "qkv"
    most = 1 if last else 3
    if not (
        len(groups) == 3
        and len(groups[0]) == 1
        and 2 <= len(groups[1]) <= 3
        and 1 <= len(groups[2]) <= most
    ):
        wanted = [expected.get(role, 0) for role in ("o", "gate/up", "down", end)]
        flat = [n for group in groups for n in group]
        if not all(wanted) or len(flat) != sum(wanted) or wanted[2] != 1:
            return []
        cut = wanted[0], wanted[0] + wanted[1] + wanted[2]
        groups = [flat[: cut[0]], flat[cut[0] : cut[1]], flat[cut[1] :]]
    out, mlp, following = groups
    for role, rows in (("o", out), ("gate/up", mlp[:-1]), ("down", mlp[-1:]), (end, following)):
        for n in rows:
            roles[n] = role
    for n in range(mlp[0], mlp[-1]):
        if roles[n] == "elementwise":
            roles[n] = "activation"
    return following


def _first(roles: list[str], order: Sequence[int], high: int, known: Sequence[list[int]]) -> None:
    """q, k and v of the first layer: the last products before its attention, as many as the other
    layers have and of the same names (where one computes the angles of RoPE it is another's)."""
    products = [n for n in range(high) if roles[n] == "product"]
    most = max((len(found) for found in known), default=3)
    names = {order[n] for found in known for n in found}
    mine = [n for n in products if not names or order[n] in names]
    for n in mine[-most:] if known or len(products) <= most else ():
        roles[n] = "qkv"


def _times(
    traced: TracedRound, work: Work, mine: Ints, role: NDArray[np.object_], steps: int
) -> tuple[RoleTime, ...]:
    label, step = work.label[mine], work.step[mine]
    kernel = work.is_kernel[mine]
    rows = traced.rows.kernels
    numbers = np.full(len(work.is_kernel), -1, np.int64)
    numbers[work.is_kernel] = work.kernel_row
    shape = np.zeros((len(mine), 6), np.int64)
    columns = (rows.grid_x, rows.grid_y, rows.grid_z, rows.block_x, rows.block_y, rows.block_z)
    for n, column in enumerate(columns):
        shape[kernel, n] = column[numbers[mine[kernel]]]
    before = np.concatenate([[-1], label[:-1]])
    before[np.concatenate([[True], step[1:] != step[:-1]])] = -1
    names, role_number = np.unique(role.astype(str), return_inverse=True)
    table = np.column_stack((role_number, label, before, shape))
    unique, which = np.unique(table, axis=0, return_inverse=True)
    which = which.reshape(-1)
    launches = np.bincount(which, minlength=len(unique))
    total = np.zeros(len(unique), np.int64)
    np.add.at(total, which, (work.end_ns - work.start_ns)[mine])
    short = [short_name(name) for name in work.names]
    places: dict[str, list[Place]] = {}
    shown: dict[str, dict[str, int]] = {}
    for n, row in enumerate(unique.tolist()):
        place = Place(
            name=work.names[row[1]],
            grid=(row[3], row[4], row[5]),
            block=(row[6], row[7], row[8]),
            before="" if row[2] < 0 else short[row[2]],
            launches=int(launches[n]),
            total_ns=int(total[n]),
        )
        places.setdefault(str(names[row[0]]), []).append(place)
        by_name = shown.setdefault(str(names[row[0]]), {})
        by_name[short[row[1]]] = by_name.get(short[row[1]], 0) + place.total_ns
    return tuple(
        RoleTime(
            role=name,
            ns_per_step=sum(p.total_ns for p in places[name]) / steps,
            launches_per_step=sum(p.launches for p in places[name]) / steps,
            names=tuple(sorted(shown[name], key=lambda s: (-shown[name][s], s))),
            places=tuple(sorted(places[name], key=lambda p: (-p.total_ns, p.name, p.grid))),
        )
        for name in sorted(places, key=order)
    )


def order(role: str) -> tuple[int, str]:
    """Sort key: the order of ``ROLES``, others behind them by name."""
    return (ROLES.index(role) if role in ROLES else len(ROLES), role)


def _why(role: NDArray[np.object_], kinds: Sequence[str], label: Ints, orders: int) -> str:
    pending = role == UNKNOWN
    if not pending.any():
        return ""
    products = sum(kinds[n] in ("product", "reduce") for n in label[pending].tolist())
    others = int(np.count_nonzero(pending)) - products
    told = []
    if products:
        told.append(
            f"{products} products do not lie between attention and norms as those of a plain layer"
        )
    if others:
        told.append(f"{others} kernels are of no category")
    if orders > MOST_ORDERS:
        told.append(f"{orders} different orders of kernels; {MOST_ORDERS} were looked at")
    return "; ".join(told)
