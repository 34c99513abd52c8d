"""Analysis of a program by rules: the uses of its parameters, and parameters without structure."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from widelimit.finite.empirical.structured.links import Link, Scope, Use, disjoint
from widelimit.finite.empirical.structured.program import Path, Program, Step, split_scan
from widelimit.finite.empirical.structured.rules import RULES

# Operations without derivative, for any type of the result.
CONSTANT = {"stop_gradient"}
# Most ways in which one value may depend on a parameter: powers of a matrix have many.
MOST_LINKS = 16

Links = dict[int, tuple[Link, ...]]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The result of applying rules to a program.

    Attributes:
      uses: the uses of each parameter with structure.
      without: the parameters without structure, and the reason.
    """

    uses: Mapping[int, tuple[Use, ...]]
    without: Mapping[int, str]


def analyse(program: Program, count: int, shared: int = 0) -> Analysis:
    """Returns the uses of the parameters of a program.

    Args:
      program: program of parameters and arrays.
      count: number of parameters, its first inputs.
      shared: number of arrays that are the same for all samples, its last inputs.
    """
    walk = _LinkWalk()
    links: Links = {
        number: (Link(leaf, (), shape, tuple(range(len(shape)))),)
        for leaf, number in enumerate(program.inputs[:count])
        if jnp.issubdtype(program.types[number].dtype, jnp.inexact)
        for shape in [tuple(program.types[number].shape)]
    }
    last = program.inputs[len(program.inputs) - shared :]
    scalars = {number for number in last if not program.types[number].shape}
    walk.run(program, links, set(program.inputs[:count]), scalars, ())
    for leaf, uses in walk.uses.items():
        if not compatible(uses, uses):
            walk.refuse(leaf, "different parts of it overlap")
    structured = {leaf: tuple(uses) for leaf, uses in walk.uses.items() if leaf not in walk.without}
    return Analysis(structured, walk.without)


def compatible(uses1: Sequence[Use], uses2: Sequence[Use]) -> bool:
    """Returns whether all pairs of uses have the same frame, or share no entries."""
    frames1, frames2 = ({use.frame for use in uses} for uses in (uses1, uses2))
    return all(a == b or disjoint(a, b) for a, b in itertools.product(frames1, frames2))


class _LinkWalk:
    """Follows links through a program and the scans inside it."""

    def __init__(self) -> None:
        self.uses: dict[int, list[Use]] = {}
        self.without: dict[int, str] = {}
        self.counter = itertools.count()

    def refuse(self, leaf: int, reason: str) -> None:
        self.without.setdefault(leaf, reason)

    def run(
        self, program: Program, links: Links, weights: set[int], fixed: set[int], path: Path
    ) -> None:
        """Walks one program.

        Args:
          program: a whole program, or the body of a scan.
          links: links of its inputs.
          weights: inputs that depend on parameters and numbers alone.
          fixed: inputs that depend on numbers alone.
          path: path of the program.
        """
        scope = Scope(path, program.types, self.counter)
        scope.weights = set(weights)
        scope.fixed = fixed | weights
        scope.fixed |= {n for n in program.constants if not program.types[n].shape}
        links = dict(links)
        for index, step in enumerate(program.steps):
            linked = [n for n in step.inputs if links.get(n)]
            if scope.fixed.issuperset(step.inputs):
                scope.fixed.update(step.outputs)
                if not scope.weights.isdisjoint(step.inputs):
                    scope.weights.update(step.outputs)
            derives = any(jnp.issubdtype(_dtype(program, n), jnp.inexact) for n in step.outputs)
            if not linked or not derives or step.name in CONSTANT:
                continue
            if step.body is not None:
                self.scan(step, links, scope, (*path, index))
            else:
                self.step(step, links, scope)
        for number in program.outputs:
            for link in links.get(number, ()):
                self.refuse(link.leaf, "part of the result" if not path else "carried by a scan")

    def step(self, step: Step, links: Links, scope: Scope) -> None:
        """Applies the rule of a step to every link of its inputs."""
        rule = RULES.get(step.name)
        outgoing: list[list[Link]] = [[] for _ in step.outputs]
        for position, number in enumerate(step.inputs):
            for link in links.get(number, ()):
                if link.leaf in self.without:
                    continue
                outcome = rule and rule(scope, step, position, link)
                if not outcome:
                    self.refuse(link.leaf, f"enters {step.name}")
                elif isinstance(outcome, Use):
                    self.uses.setdefault(link.leaf, []).append(outcome)
                else:
                    for each, one in zip(outgoing, outcome, strict=True):
                        each.append(one)
        for each in outgoing:
            for leaf, count in collections.Counter(link.leaf for link in each).items():
                if count > MOST_LINKS:
                    self.refuse(leaf, "one value depends on it in too many ways")
        links.update(
            {n: tuple(each) for n, each in zip(step.outputs, outgoing, strict=True) if each}
        )

    def scan(self, step: Step, links: Links, scope: Scope, path: Path) -> None:
        """Walks the body of a scan."""
        body = step.body
        assert body is not None
        outer, inner = split_scan(step, step.inputs), split_scan(step, body.inputs)
        entering: Links = {}
        weights: set[int] = set()
        fixed: set[int] = set()
        for kind, (numbers, names) in enumerate(zip(outer, inner, strict=True)):
            for number, name in zip(numbers, names, strict=True):
                if kind != 1 and number in scope.fixed:
                    (weights if number in scope.weights else fixed).add(name)
                for link in links.get(number, ()):
                    if kind == 1:
                        self.refuse(link.leaf, "carried by a scan")
                        continue
                    labels = link.labels if kind == 0 else link.labels[1:]
                    (loop,) = scope.fresh() if kind == 0 else link.labels[:1]
                    entered = dataclasses.replace(link, labels=labels, loops=(*link.loops, loop))
                    entering[name] = (*entering.get(name, ()), entered)
        self.run(body, entering, weights, fixed, path)


def _dtype(program: Program, number: int) -> Any:
    return getattr(program.types[number], "dtype", jnp.dtype(bool))
