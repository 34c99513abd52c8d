"""The benchmarks: networks of both sides, counts by hand, tables. Nothing is timed or installed."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import machine, networks_nt, networks_widelimit, roofline, run, sides, tables
from benchmarks.environments import OTHERS, OURS
from benchmarks.workloads import WORKLOADS, Workload, inputs
from widelimit import plan, stax

LENET = next(w for w in WORKLOADS if w.name == "lenet")
CASE = sides.Case(LENET, "ntk", "float32")


def measured(*times, values=(1.0, 2.0), **fields) -> sides.Measured:
    about = {"versions": {"jax": "1.2"}, "device": "cpu", "engine": "some"}
    given = {"first": 3.0, "memory": 2_000_000, "about": about, "values": np.array(values)}
    return sides.Measured(list(times), **{**given, **fields})


def test_every_workload_has_a_network_on_both_sides() -> None:
    names = {workload.network for workload in WORKLOADS}
    assert set(networks_widelimit.NETWORKS) == set(networks_nt.NETWORKS) == names
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)


def test_gram_gives_what_the_kernel_function_does() -> None:
    x = inputs(dataclasses.replace(LENET, n1=2), "float32")[0]
    by_call, by_gram = (
        networks_widelimit.kernel("lenet", "ntk", gram)(x, None) for gram in (False, True)
    )
    np.testing.assert_array_equal(by_call, by_gram)
    assert {w.name for w in WORKLOADS if w.gram} >= {"fc-gram", "lenet-gram", "resnet-gram"}


@pytest.mark.parametrize("name", networks_widelimit.NETWORKS)
def test_networks_of_both_sides_are_one(name) -> None:
    # The module of layers takes the same arguments in both libraries.
    ours, theirs = networks_widelimit.NETWORKS[name](), networks_nt.NETWORKS[name](stax)
    assert str(ours) == str(theirs)
    assert jax.tree.leaves(ours) == jax.tree.leaves(theirs)


@pytest.mark.parametrize("name", ["lenet", "myrtle-5"])
def test_every_layer_is_counted(name) -> None:
    work = next(w for w in WORKLOADS if w.name == name)
    case = sides.Case(work, "ntk", "float64")
    (counted,) = run.counts([case])
    assert counted.least == 8 * (2 * work.n1 * np.prod(work.shape) + work.entries)
    assert counted.nonlinear == {"lenet": 40182, "myrtle-5": 2166784}[name]


def test_inputs_are_the_same_numbers_in_every_dtype() -> None:
    small = dataclasses.replace(LENET, n1=2, n2=3)
    single, double = inputs(small, "float32"), inputs(small, "float64")
    for a, b in zip(single, double, strict=True):
        assert (a.dtype, b.dtype) == (np.float32, np.float64)
        np.testing.assert_array_equal(a, b)
    assert [x.shape for x in single] == [(2, 28, 28, 1), (3, 28, 28, 1)]
    assert inputs(dataclasses.replace(small, n2=None), "float32")[1] is None


def test_pairs_of_a_symmetric_kernel_count_once() -> None:
    assert (LENET.entries, LENET.pairs, LENET.size) == (64, 64, "8 x 8")
    symmetric = dataclasses.replace(LENET, n2=None)
    assert (symmetric.entries, symmetric.pairs, symmetric.size) == (64, 36, "8, x2=None")


def test_operations_and_bytes_of_two_layers_by_hand() -> None:
    net = stax.serial(
        stax.Conv(8, (3, 3), padding="SAME"), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1)
    )
    rows = plan(net, (1, 4, 4, 3)).rows
    work = Workload("two", "two", "two layers", (4, 4, 3), 2, 5)
    pairs = 16 * 16
    nngp = 2 * 3 * pairs + pairs * (2 + 2 + 2) + pairs * roofline.RELU + pairs + 2
    found = roofline.count(rows, "nngp", 4, work)
    assert found.operations == nngp
    assert found.least == 4 * (7 * 48 + 10)
    assert found.streamed == 4 * (pairs + 2 * 2 * pairs + 2 * 2)
    assert found.nonlinear == pairs
    ntk = nngp + pairs * 6 + pairs * roofline.RELU_NTK + pairs + 2
    assert roofline.count(rows, "ntk", 4, work).operations == ntk


def test_operations_of_local_pooling_and_residual_sums_by_hand() -> None:
    net = stax.serial(
        stax.Conv(8, (5, 3), padding="SAME"),
        stax.FanOut(2),
        stax.parallel(stax.Conv(8, (1, 1)), stax.Identity()),
        stax.FanInSum(),
        stax.AvgPool((2, 2), (2, 2)),
        stax.Flatten(),
        stax.Dense(1),
    )
    rows = plan(net, (1, 4, 4, 1)).rows
    work = Workload("one", "one", "one layer", (4, 4, 1), 1, 1)
    band = 3 * 3 * 16  # offsets -1, 0, 1 of both axes are stored at every position
    by_hand = 2 * band + (4 + 2 + 2) * band + 2 * band + band + band + 4 + 2
    assert roofline.count(rows, "nngp", 4, work).operations == by_hand


def test_layers_that_nobody_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="got Erf"):
        roofline.layer_operations("Erf(a=1)", 1, 1, ntk=False)
    with pytest.raises(ValueError, match="that do not overlap, got AvgPool"):
        roofline.layer_operations("AvgPool((3, 3), strides=(2, 2))", 1, 1, ntk=False)
    with pytest.raises(ValueError, match="with a window"):
        roofline.window("Relu()")


def test_least_time_is_the_longer_of_arithmetic_and_memory() -> None:
    counted = roofline.Count(operations=10, least=100, streamed=0, nonlinear=0)
    assert roofline.bound_seconds(counted, 4, flops=2.0, bandwidth=100.0) == 20
    assert roofline.bound_seconds(counted, 4, flops=2.0, bandwidth=1.0) == 100


def test_time_table_has_median_spread_ratio_and_failures() -> None:
    both = tables.Result(CASE, measured(0.001, 0.002, 0.004), measured(0.5))
    broken = tables.Result(CASE, measured(0.1), measured(failure="ended by SIGKILL"))
    text = tables.time_table([both, broken], ("A", "B")).splitlines()
    assert text[0].count("|") == text[1].count("|") == text[2].count("|") == text[3].count("|")
    for cell in ("8 x 8", "NTK", "2 ms (1 ms to 4 ms, 3)", "500 ms (1)", "250", "2.5 s", "3 s"):
        assert f"| {cell} |" in text[2]
    assert "| failed: ended by SIGKILL | - |" in text[3]
    alone = tables.time_table([tables.Result(CASE, measured(0.1))], ("A", "B"))
    assert "ratio" not in alone
    assert "B" not in alone.splitlines()[0].replace("MB", "")
    double = dataclasses.replace(CASE, dtype="float64")
    faster = tables.Result(double, measured(0.01), measured(0.1))
    text = tables.time_table([both, faster], ("A", "B")).splitlines()
    assert "| 250 | 50 |" in text[2]
    assert "| 10 | 10 |" in text[3]
    with pytest.raises(ValueError, match="expected 2 cells"):
        tables.markdown(["a", "b"], [["1"]])


def test_quantities_are_readable() -> None:
    assert [tables.seconds(s) for s in (None, 1234.5, 0.0, 2.0, 3e-3, 4e-6, 5e-9)] == [
        "-",
        "1234 s",
        "0 s",
        "2 s",
        "3 ms",
        "4 µs",
        "5 ns",
    ]
    assert [tables.times_faster(r) for r in (None, 1234.4, 12.34)] == ["-", "1,234", "12.3"]
    assert [tables.quantity(q) for q in (12, 12_340.0, 2.5e9)] == ["12", "12.3 k", "2.5 G"]


def test_differences_are_relative_and_nothing_agrees_with_nan() -> None:
    assert tables.difference(None, np.ones(2)) is None
    assert tables.difference(np.array([2.0, 3.0]), np.array([2.0, 4.0])) == 0.25
    assert np.isnan(tables.difference(np.array([np.nan]), np.ones(1)))
    assert np.isnan(tables.difference(np.ones((2, 1)), np.ones(2)))


def test_agreement_marks_what_is_too_far() -> None:
    def result(dtype, ours, theirs):
        case = dataclasses.replace(CASE, dtype=dtype)
        return tables.Result(case, measured(1.0, values=ours), measured(1.0, values=theirs))

    near = result("float32", [1.0, 2.0], [1.0, 2.0 + 1e-6])
    text = tables.agreement_table([near, result("float64", [1, 2], [1, 2.001])], ("A", "B"))
    cells = text.splitlines()[2].split(" | ")
    assert cells[3:] == ["**5.0e-04**", "5.0e-07", "5.0e-04", "5.0e-04 |"]
    nothing = tables.agreement_table([result("float32", [np.nan], [1.0])], ("A", "B"))
    assert "**nan**" in nothing


def test_diagonal_of_a_symmetric_kernel_stands_apart() -> None:
    case = sides.Case(dataclasses.replace(LENET, n1=2, n2=None), "ntk", "float32")
    ours = measured(1.0, values=np.array([[1.0, 2.0], [2.0, 1.0]]))
    theirs = measured(1.0, values=np.array([[1.1, 2.0], [2.0, 1.0]]))
    rows = tables.agreement([tables.Result(case, ours, theirs)])
    assert [row[1] for row in rows] == ["2, x2=None, off the diagonal", "2, x2=None, diagonal"]
    assert rows[0][3]["float32"] == 0
    assert rows[1][3]["float32"] == pytest.approx(0.1 / 1.1)


def test_page_of_a_run() -> None:
    results = [tables.Result(CASE, measured(0.2), measured(0.1))]
    peaks = {"float32": 1e11, "float64": 5e10, "bandwidth": 1e10, "device": "2 cores"}
    text = run.page(results, ("A", "B"), ["- Machine: M"], peaks)
    for words in ("- Machine: M", "A is slower: lenet 8 x 8 ntk float32.", "## Roofline", "100 GF"):
        assert words in text
    assert "Roofline" not in run.page(results, ("A", "B"), [], None)
    assert run.versions(results) == "jax 1.2 on cpu; jax 1.2 on cpu"


def test_quick_and_only_choose_cases() -> None:
    options = run.arguments(["--quick"])
    assert options.rounds == 1
    assert options.output is None
    quick = run.cases(options)
    assert {(case.get, case.dtype) for case in quick} == {("ntk", "float32")}
    assert all(case.workload.entries <= 256**2 for case in quick)
    assert len(run.cases(run.arguments(["--only", "fc"]))) == 4
    assert len(run.cases(run.arguments([]))) == 2 * sum(len(w.dtypes) for w in WORKLOADS)
    assert run.arguments([]).output == run.PAGE


def test_environments_say_what_they_hold() -> None:
    assert "neural-tangents==0.6.5" in OTHERS["nt-0.6.5"].alone
    assert all(name == environment.name for name, environment in OTHERS.items())
    assert sides.variables(OURS, "float64", "cpu")["JAX_ENABLE_X64"] == "1"


def test_a_side_works_and_a_crash_is_a_failure() -> None:
    small = sides.Case(Workload("fc", "fc", "small", (5,), 3, None), "nngp", "float32")
    result = run.run_case(small, [OURS], rounds=1)
    assert result.ours.failure is None
    assert result.ours.values.shape == (3, 3)
    assert result.ours.median > 0
    assert result.ours.memory >= 0
    absent = dataclasses.replace(OURS, networks="networks_of_nobody")
    failure = run.run_case(small, [absent], rounds=1).ours.failure
    assert failure.startswith("ended with 1: ModuleNotFoundError")


def test_machine_is_described() -> None:
    assert f"{machine.cores()} cores" in machine.describe()
    found = machine.best({"a": 1.0, "b": 2.0}, None, {"a": 3.0, "b": 1.0})
    assert found == {"a": 3.0, "b": 2.0}
    assert machine.best(None) is None
