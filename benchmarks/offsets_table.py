"""The covariance entries that networks store, against all pairs of positions, as markdown.

python -m benchmarks.offsets_table
"""

import widelimit as wl

NETWORKS = {
    "LeNet, conv-pool-conv-pool-flatten": wl.models.lenet(padding="SAME"),
    "wide residual network, strides 1, 2, 2, global pooling": wl.models.wide_resnet(2, 1),
    "Myrtle-5": wl.models.myrtle(5),
    "CNN, 5 layers, flatten": wl.models.cnn(5, "flatten"),
    "CNN, 5 layers, global pooling": wl.models.cnn(5, "gap"),
}


def main() -> None:
    """Prints one row per network: first layer, and the sum over all nonlinearities."""
    print("| network on 32 x 32 x 3 | offsets at first | stored | of all pairs | ratio |", end="")
    print(" through nonlinearities | of all pairs | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name, net in NETWORKS.items():
        rows = wl.plan(net, (1, 32, 32, 3)).rows
        first = rows[1]
        relus = [row for row in rows if row.layer.strip().startswith("Relu")]
        stored, full = sum(r.entries for r in relus), sum(r.all_entries for r in relus)
        offsets = " x ".join(map(str, first.offsets))
        print(
            f"| {name} | {offsets} | {first.entries:,} | {first.all_entries:,} | "
            f"{first.all_entries / first.entries:,.1f} | {stored:,} | {full:,} | "
            f"{full / stored:,.1f} |"
        )


if __name__ == "__main__":
    main()
