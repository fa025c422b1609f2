"""The benchmark of updates at toy size: a row a minute, and shares of where the time goes."""

from recsys.bench.update import Minute, bench_update
from recsys.presets import tiny


def test_every_minute_has_its_row_and_the_last_its_profile() -> None:
    minutes = [Minute(decisions=3, catalogue=40, history=5, slots=4), Minute(decisions=300, catalogue=40, history=40, slots=3)]
    said = bench_update(tiny(), minutes, 0)
    assert [(row["decisions"], row["catalogue"], row["history"], row["slots"]) for row in said["update_rows"]] == [
        (3, 40, 5, 4),
        (300, 40, 40, 3),
    ]
    assert all(row["update_s"] > 0 and row["peak_rss_mb"] > 0 for row in said["update_rows"])
    shares = [row["share"] for row in said["profile"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1
