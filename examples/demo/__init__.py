"""The demonstration that `make demo` runs: networks of infinite width at work on real data."""
