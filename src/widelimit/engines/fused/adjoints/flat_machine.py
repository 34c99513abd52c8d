"""The compiled interpreter that pulls cotangents of rows of the kernel matrix back.

A slice goes forwards through all instructions, of which each keeps its K, T and gap, and then
backwards. The gap is a function of K and the variances, and has no cotangent of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.adjoints.order import JOINED, LAST_JOINED, LAST_READ, READ
from widelimit.engines.fused.adjoints.sums import dot, pull_affine, pull_product, put
from widelimit.engines.fused.compiling import call, entry, loop, pointer
from widelimit.engines.fused.constants import ZERO
from widelimit.engines.fused.flat_machine import fill_input
from widelimit.engines.fused.instructions import (
    ADD,
    CODE,
    HAS_G,
    HAS_T,
    LOOP,
    MULTIPLY,
    NONLINEAR,
    OWN,
    PLACE,
    TABLE,
    WINDOW,
    WORK,
)
from widelimit.engines.fused.places import parameters
from widelimit.engines.fused.stencils import add, copy, multiply, total

# What is kept of every instruction: K, T, the gap, and the cotangents of K and T.
K, T, G, K_BAR, T_BAR, PARTS = range(6)
EXTRA = 4  # slices beside: what a nonlinearity passes back to K, T and both variances


@loop
def _at(scratch: Any, value: Any, part: Any) -> Any:
    """Returns the place of a part of what an instruction has written."""
    return np.uint64((PARTS * value + part) * scratch[1])


@loop
def _spare(code: Any, scratch: Any, part: Any) -> Any:
    """Returns the place of a slice beside the values."""
    return np.uint64((PARTS * code.shape[0] + part) * scratch[1])


@loop
def _forward(
    code: Any, reads: Any, numbers: Any, cst: Any, step: Any, prep1: Any, i: Any, prep2: Any,
    j: Any, own: Any, n: Any, scratch: Any,
) -> None:  # fmt: skip
    """Writes K, T and the gap of an instruction that is no input."""
    op, buf, source = code[step], scratch[0], reads[step, READ]
    if op[CODE] == WINDOW:
        _dense(op, numbers[step], source, step, n, scratch)
        return
    first = reads[step, JOINED] if reads[step, JOINED] >= 0 else source
    for part in range(3):
        copy(buf, _at(scratch, step, part), _at(scratch, first, part), n)
    k, t, g = _at(scratch, step, K), _at(scratch, step, T), _at(scratch, step, G)
    if op[CODE] == NONLINEAR:
        n1, n2, place = prep1.shape[1], prep2.shape[1], op[PLACE]
        p, work = parameters(op[TABLE], step, numbers), pointer(buf, len(buf) - WORK)
        if own and op[OWN] != 0:
            buf[len(buf) - WORK] = 1.0  # nothing is masked
            call(op[OWN], (pointer(buf, k), pointer(buf, t), work, p, pointer(cst, 0), n))
        else:
            call(
                op[LOOP],
                (
                    pointer(buf, k), pointer(buf, t), pointer(buf, g),
                    pointer(prep1, place * n1 + i), pointer(prep2, place * n2 + j), p,
                    pointer(cst, 0), work, np.uint64(n1), np.uint64(n2), np.uint64(op[HAS_G]), n,
                ),
            )  # fmt: skip
    elif op[CODE] == ADD:
        for part in range(3):
            add(buf, _at(scratch, step, part), _at(scratch, source, part), n)
    elif op[CODE] == MULTIPLY:
        multiply(buf, k, t, _at(scratch, source, K), _at(scratch, source, T), n)


@loop
def _dense(op: Any, numbers: Any, source: Any, step: Any, n: Any, scratch: Any) -> None:
    """K' = w K + b, T' = w T + u K + v, G' = w G."""
    buf, w, b, u, v = scratch[0], numbers[0], numbers[1], numbers[2], numbers[3]
    k, t, g = _at(scratch, source, K), _at(scratch, source, T), _at(scratch, source, G)
    to_k, to_t, to_g = _at(scratch, step, K), _at(scratch, step, T), _at(scratch, step, G)
    still = buf.dtype.type(op[HAS_T])
    for i in range(n):
        value = buf[k + i]
        buf[to_t + i] = still * w * buf[t + i] + u * value + v
        buf[to_k + i] = w * value + b
        buf[to_g + i] = w * buf[g + i]


@loop
def _back(
    code: Any, reads: Any, pulls: Any, numbers: Any, cst: Any, step: Any, prep1: Any, i: Any,
    prep2: Any, j: Any, own: Any, n: Any, bars: Any, scratch: Any,
) -> None:  # fmt: skip
    """Passes the cotangents of an instruction that is no input to what it reads.

    Those of variances go to `bars`, or if `own` back to K, which is the variance.
    """
    op, buf, source = code[step], scratch[0], reads[step, READ]
    k_bar, t_bar = _at(scratch, step, K_BAR), _at(scratch, step, T_BAR)
    to_k, to_t = _at(scratch, source, K_BAR), _at(scratch, source, T_BAR)
    k, t, anew = _at(scratch, source, K), _at(scratch, source, T), reads[step, LAST_READ]
    if op[CODE] == WINDOW:
        pull_affine(buf, to_k, to_t, k_bar, t_bar, op[HAS_T], anew, n, numbers[step])
        row = bars[0][step]
        row[0] += dot(buf, k_bar, k, n) + (dot(buf, t_bar, t, n) if op[HAS_T] else 0.0)
        row[1] += total(buf, k_bar, n)
        row[2] += dot(buf, t_bar, k, n)
        row[3] += total(buf, t_bar, n)
    elif op[CODE] == NONLINEAR:
        new_k, new_t = _spare(code, scratch, 0), _spare(code, scratch, 1)
        q1, q2 = _spare(code, scratch, 2), _spare(code, scratch, 3)
        n1, n2, place = prep1.shape[1], prep2.shape[1], op[PLACE]
        has_gap = 1 if own else op[HAS_G]  # that of a sample with itself is zero
        call(
            pulls[step],
            (
                pointer(buf, k), pointer(buf, t), pointer(buf, _at(scratch, source, G)),
                pointer(buf, k_bar), pointer(buf, t_bar), pointer(prep1, place * n1 + i),
                pointer(prep2, place * n2 + j), parameters(op[TABLE], step, numbers),
                pointer(cst, 0), pointer(buf, new_k), pointer(buf, new_t), pointer(buf, q1),
                pointer(buf, q2), np.uint64(n1), np.uint64(n2), np.uint64(has_gap), n,
            ),
        )  # fmt: skip
        put(buf, to_k, new_k, anew, n)
        put(buf, to_t, new_t, anew, n)
        if own:
            put(buf, to_k, q1, 0, n)
            put(buf, to_k, q2, 0, n)
        else:
            bars[1][step, i] += total(buf, q1, n)
            others = bars[2][step]
            for x in range(n):
                others[j + x] += buf[q2 + x]
    elif op[CODE] == MULTIPLY:
        first = reads[step, JOINED]
        first_k, first_t = _at(scratch, first, K), _at(scratch, first, T)
        pull_product(buf, to_k, to_t, first_k, first_t, k_bar, t_bar, anew, n)
        to_k, to_t = _at(scratch, first, K_BAR), _at(scratch, first, T_BAR)
        pull_product(buf, to_k, to_t, k, t, k_bar, t_bar, reads[step, LAST_JOINED], n)
    else:
        put(buf, to_k, k_bar, anew, n)
        put(buf, to_t, t_bar, anew, n)
        if op[CODE] == ADD:
            first, anew = reads[step, JOINED], reads[step, LAST_JOINED]
            put(buf, _at(scratch, first, K_BAR), k_bar, anew, n)
            put(buf, _at(scratch, first, T_BAR), t_bar, anew, n)


@entry
def pull_rows(
    code: Any, reads: Any, pulls: Any, numbers: Any, cst: Any, products: Any, width: Any,
    squares1: Any, squares2: Any, prep1: Any, prep2: Any, symmetric: Any, rows: Any, chunk: Any,
    cotangents: Any, bars: Any, inputs_bar: Any, buf: Any,
) -> None:  # fmt: skip
    """Pulls cotangents of rows of K and T back to numbers, variances and products of inputs.

    Args:
      code: instructions [ops, COLUMNS].
      reads: `order.values_read` of them.
      pulls: addresses of the loops of nonlinearities [ops].
      numbers: hyper-parameters [ops, NUMBERS].
      cst: constants of the dtype.
      products: products of inputs; row 0 is sample `low` of x1, column 0 sample 0 of x2, or
        sample `low` if symmetric.
      width: number of features.
      squares1: mean squares of the samples of x1.
      squares2: those of x2.
      prep1: recorded numbers of x1 [places, n1].
      prep2: those of x2.
      symmetric: whether x2 is x1: entries behind the diagonal are taken.
      rows: [low, high], samples of x1 to do.
      chunk: samples of x2 to do at a time.
      cotangents: of K and T, as `products`; none where not wanted.
      bars: adds to those of numbers [ops, NUMBERS], of the variances of x1 at every instruction
        [ops, n1], and of x2 [ops, n2].
      inputs_bar: cotangents of the products over `width`, as `products`; none where not wanted.
      buf: scratch.
    """
    n2, shift, last = len(squares2), rows[0] if symmetric else 0, code.shape[0] - 1
    scratch = (buf, chunk + 16)  # slices that are whole pages apart would share lines of a cache
    for start in range(shift, n2, chunk):
        for i in range(rows[0], min(rows[1], start + chunk) if symmetric else rows[1]):
            begin = max(start, i + 1) if symmetric else start
            if begin >= min(start + chunk, n2):
                continue
            n, j = np.uint64(min(start + chunk, n2) - begin), np.uint64(begin)
            row, column = i - rows[0], np.uint64(begin - shift)
            k, t, g = _at(scratch, 0, K), _at(scratch, 0, T), _at(scratch, 0, G)
            fill_input(buf, k, t, g, products[row], column, width, squares1[i], squares2, j, n)
            for step in range(1, last + 1):
                _forward(code, reads, numbers, cst, step, prep1, i, prep2, j, False, n, scratch)
            for part in range(2):
                _load(cotangents[part], row, column, n, buf, _at(scratch, last, K_BAR + part))
            for step in range(last, 0, -1):
                _back(
                    code, reads, pulls, numbers, cst, step, prep1, i, prep2, j, False, n, bars,
                    scratch,
                )  # fmt: skip
            if inputs_bar.shape[1] > 0:
                source = _at(scratch, 0, K_BAR)
                for x in range(n):
                    inputs_bar[row, column + x] = buf[source + x]


@loop
def _load(values: Any, row: Any, column: Any, n: Any, buf: Any, to: Any) -> None:
    """Writes a stretch of a row into scratch; zeros where there are none."""
    zero = buf.dtype.type(0)
    if values.shape[1] > 0:
        for x in range(n):
            buf[to + x] = values[row, column + x]
    else:
        for x in range(n):
            buf[to + x] = zero


@entry
def pull_own(
    code: Any, reads: Any, pulls: Any, numbers: Any, cst: Any, own: Any, prep: Any, samples: Any,
    k_bar: Any, t_bar: Any, variances_bar: Any, bars: Any, squares_bar: Any, buf: Any,
) -> None:  # fmt: skip
    """Pulls cotangents of samples with themselves back to numbers and mean squares of inputs.

    Args:
      code: instructions [ops, COLUMNS].
      reads: `order.values_read` of them.
      pulls: addresses of the loops of nonlinearities [ops].
      numbers: hyper-parameters [ops, NUMBERS].
      cst: constants of the dtype.
      own: mean squares of the samples [n].
      prep: recorded numbers [places, n].
      samples: [low, high], samples to do.
      k_bar: cotangents of the variances of the output [n].
      t_bar: of T of samples with themselves [n].
      variances_bar: of the variances that each instruction reads [ops, n].
      bars: adds to those of numbers [ops, NUMBERS]; the others are not used.
      squares_bar: those of mean squares [n].
      buf: scratch.
    """
    last, one, scratch = code.shape[0] - 1, np.uint64(1), (buf, 16)
    for sample in range(samples[0], samples[1]):
        j = np.uint64(sample)
        buf[_at(scratch, 0, K)] = own[j]
        buf[_at(scratch, 0, T)] = buf[_at(scratch, 0, G)] = cst[ZERO]
        for step in range(1, last + 1):
            _forward(code, reads, numbers, cst, step, prep, j, prep, j, True, one, scratch)
            buf[_at(scratch, step, G)] = cst[ZERO]
        buf[_at(scratch, last, K_BAR)], buf[_at(scratch, last, T_BAR)] = k_bar[j], t_bar[j]
        for step in range(last, 0, -1):
            _back(
                code, reads, pulls, numbers, cst, step, prep, j, prep, j, True, one, bars, scratch
            )
            buf[_at(scratch, reads[step, READ], K_BAR)] += variances_bar[step, j]
        squares_bar[j] = buf[_at(scratch, 0, K_BAR)]
