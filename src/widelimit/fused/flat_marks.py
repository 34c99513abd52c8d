"""Which distances the instructions of a network without spatial axes pass on.

Beside K and T a slot may hold G = (q1 + q2) / 2 - K, Z = sqrt(q1 q2 - K^2) and
H = (q1 + q2) / 2 + K, none of which differences of float32 would give for inputs that are nearly
equal, opposite, or multiples of each other, where variances are large. They are computed where a
later instruction reads them, and nowhere else.
"""

from __future__ import annotations

import math

import numpy as np

from widelimit.fused import instructions as m

_MODERATE = 32  # of what multiplies rounding errors of variances; more needs distances

# What the loops read that know distances, by kind; those of RELU depend on what comes later.
_READS = {
    m.ERF: (m.NEED_Z,),
    m.GAUSSIAN: (m.NEED_Z,),
    m.GELU: (m.NEED_Z,),
    m.SIGN: (m.NEED_Z,),
    m.SIN: (m.NEED_G, m.NEED_H),
    m.RBF: (m.NEED_G,),
    m.EXP: (m.NEED_H,),
}
_ALL = (m.NEED_G, m.NEED_Z, m.NEED_H)


def mark_distances(code: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns the instructions with marks of what they write, and which loops they take.

    Args:
      code: instructions [ops, COLUMNS].
      numbers: their hyper-parameters [ops, NUMBERS].
    """
    code = code.copy()
    _mark_careful(code, numbers)
    needs: dict[int, set[int]] = {}
    for op in code[::-1]:
        target, source = int(op[m.TARGET]), int(op[m.SOURCE])
        wanted = needs.pop(target, set())
        op[list(_ALL)] = [need in wanted for need in _ALL]
        adds = op[m.CODE] == m.ADD
        if op[m.CODE] != m.INPUT:
            needs.setdefault(source, set()).update(_reads(op, wanted))
        if adds:
            needs.setdefault(target, set()).update(_reads(op, wanted))
    return code


def _reads(op: np.ndarray, wanted: set[int]) -> set[int]:
    """Returns what an instruction reads to write what is wanted of it."""
    bend = {m.NEED_Z, m.NEED_H} & wanted
    match int(op[m.CODE]), int(op[m.KIND]):
        case (m.WINDOW, _) if m.NEED_Z in wanted:
            return wanted | {m.NEED_G}  # of two multiples a bias makes vectors apart
        case (m.NONLINEAR, m.RELU):
            return wanted | {m.NEED_G} | ({m.NEED_Z} if bend or op[m.CAREFUL] else set())
        case (m.NONLINEAR, kind):
            reads = set(_READS[kind]) if op[m.CAREFUL] else set()
            gap = {m.NEED_G} if op[m.CAREFUL] and kind == m.GELU and wanted else set()
            return reads | gap
    return wanted


def _mark_careful(code: np.ndarray, numbers: np.ndarray) -> None:
    """Marks the nonlinearities whose variances may be large.

    Those behind a bounded function are not, and rounding errors do no harm there.
    """
    bounds: dict[int, float] = {}
    for op, p in zip(code, numbers.astype(np.float64), strict=True):
        target, kind = int(op[m.TARGET]), int(op[m.KIND])
        bound = bounds.get(int(op[m.SOURCE]), math.inf)
        match int(op[m.CODE]):
            case m.INPUT:
                bound = math.inf
            case m.WINDOW:
                bound = p[0] * bound + p[1]
            case m.ADD:
                bound += bounds[target]
            case m.NONLINEAR:
                if kind == m.RELU:
                    op[m.CAREFUL] = p[2] < p[0]  # slopes of opposite signs: a large kink
                else:
                    op[m.CAREFUL] = kind in _READS and not _rate(kind, p) * bound < _MODERATE
                bound = _bound_after(kind, p, bound)
        bounds[target] = bound


def _rate(kind: int, p: np.ndarray) -> float:
    """Returns what multiplies variances in a formula."""
    match kind:
        case m.ERF:
            return float(p[0])
        case m.GAUSSIAN:
            return abs(float(p[0]))
        case m.SIN:
            return float(p[1])
        case m.RBF | m.EXP:
            return 2 * float(p[1])
        case m.SIGN:
            return math.inf
    return 1.0


def _bound_after(kind: int, p: np.ndarray, bound: float) -> float:
    """Returns the largest variance after a nonlinearity, given that before it."""
    match kind:
        case m.RELU:
            return float(p[0]) * bound
        case m.ERF:
            return float(p[1]) * math.pi / 2 + float(p[2])
        case m.SIN:
            return 2 * float(p[2])
        case m.GAUSSIAN if p[0] <= 0:
            return float(p[2])
        case m.RBF | m.SIGN:
            return 1.0
        case m.GELU:
            return bound
    return math.inf
