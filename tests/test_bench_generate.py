"""The bench of generating at toy size: every figure is there and is a time. What it measures is not asked here."""

from recsys.bench.generate import catalogue_growth, filters, history_growth, our_slates


def test_every_figure_is_there() -> None:
    rows = our_slates(width=16, layers=1, items=300, history=8, slate=3, codes=4, runs=3)
    assert [(row["way"], row["batch"]) for row in rows] == [("slot", 1), ("slot", 32), ("beam", 1), ("beam", 32)]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] and row["slates_per_s"] > 0 for row in rows)
    (small, large) = catalogue_growth([400, 900], compare_up_to=400, runs=3)
    named = {"items", "p50_ms", "beam_p50_ms", "build_s", "trie_bytes_per_item"}
    assert set(large) == named
    assert set(small) == named | {"flat_p50_ms", "flat_beam_p50_ms", "ivf_p50_ms", "ivf_build_s"}
    assert all(value > 0 for row in (small, large) for value in row.values())
    figures = filters(2000, runs=3)
    names = ("unfiltered", "where", "candidates", "exclusions")
    assert set(figures) == {"items"} | {f"{way}_{name}_p50_ms" for way in ("slot", "beam") for name in names}
    (row,) = history_growth([20], items=300, runs=3)
    assert set(row) == {"length", "append_ms", "cached_slate_ms", "fresh_slate_ms"}
    assert min(row.values()) > 0
