"""The demonstration that `widelimit demo` runs: networks of infinite width at work on real data."""
