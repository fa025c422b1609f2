import numpy as np
import pytest

from recsys.abtest import Gap, gap_with_slope, smoothed

MINUTES = 120


def ar1(rng: np.random.Generator, *, minutes: int, rho: float, sigma: float = 1.0, burn_in: int = 100) -> np.ndarray:
    """Stationary AR(1) noise with standard deviation `sigma`."""
    noise = rng.normal(size=minutes + burn_in) * sigma * np.sqrt(1 - rho**2)
    for minute in range(1, len(noise)):
        noise[minute] += rho * noise[minute - 1]
    return noise[burn_in:]


def coverage(*, slope: float, rho: float, runs: int = 400, minutes: int = MINUTES, hole: slice | None = None) -> tuple[float, float]:
    """How often the interval of the slope, and that of the mean, held the truth."""
    rng = np.random.default_rng(7)
    hits = np.zeros(2)
    hours = np.arange(minutes) / 60
    for _ in range(runs):
        slots = rng.integers(200, 400, size=(2, minutes)).astype(float)
        online = 0.3 + slope * (hours - hours.mean()) + ar1(rng, minutes=minutes, rho=rho, sigma=0.02)
        offline = 0.3 + rng.normal(size=minutes) * 0.001
        if hole:
            online[hole] = np.nan
        gap = gap_with_slope(online, offline, *slots)
        assert gap.slope_interval
        assert gap.mean_interval
        centre = 0.0 if hole is None else slope * float((hours[np.isfinite(online)] - hours.mean()).mean())
        hits += [
            gap.slope_interval[0] <= slope <= gap.slope_interval[1],
            gap.mean_interval[0] <= centre <= gap.mean_interval[1],
        ]
    return float(hits[0] / runs), float(hits[1] / runs)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("slope", [0.0, 0.03])
def test_the_95_percent_interval_covers_the_truth_about_that_often(slope: float, rho: float) -> None:
    of_slope, of_mean = coverage(slope=slope, rho=rho)
    assert 0.91 <= of_slope <= 0.98
    assert 0.91 <= of_mean <= 0.98


def test_the_interval_covers_with_a_quarter_of_the_minutes_missing() -> None:
    of_slope, of_mean = coverage(slope=0.0, rho=0.4, hole=slice(40, 70))
    assert 0.9 <= of_slope <= 0.98
    assert 0.9 <= of_mean <= 0.98


def test_plain_least_squares_would_not_cover_where_ours_does() -> None:
    """What the correction for autocorrelation is there for."""
    rng = np.random.default_rng(3)
    hours = np.arange(MINUTES) / 60
    plain_hits = 0
    for _ in range(300):
        noise = ar1(rng, minutes=MINUTES, rho=0.6)
        (slope, _), covariance = np.polyfit(hours, noise, 1, cov=True)
        plain_hits += abs(slope) <= 1.98 * np.sqrt(covariance[0, 0])
    assert plain_hits / 300 < 0.8


def test_no_growth_is_not_called_growth() -> None:
    rng = np.random.default_rng(11)
    noise = ar1(rng, minutes=MINUTES, rho=0.3, sigma=0.01)
    gap = gap_with_slope(0.31 + noise, np.full(MINUTES, 0.27), np.full(MINUTES, 300), np.full(MINUTES, 300))
    assert gap.mean == pytest.approx(0.04, abs=0.01)
    assert gap.slope_interval
    assert gap.slope_interval[0] < 0 < gap.slope_interval[1]


def test_growth_is_found_and_its_size_with_it() -> None:
    rng = np.random.default_rng(12)
    grows = 0.02 * np.arange(MINUTES) / 60
    noise = ar1(rng, minutes=MINUTES, rho=0.3, sigma=0.01)
    gap = gap_with_slope(0.27 + grows + noise, np.full(MINUTES, 0.27), np.full(MINUTES, 300), np.full(MINUTES, 300))
    assert gap.slope_per_hour == pytest.approx(0.02, abs=0.008)
    assert gap.slope_interval
    assert 0 < gap.slope_interval[0] < 0.02 < gap.slope_interval[1]
    assert gap.mean_interval
    assert gap.mean_interval[0] > 0


def test_an_exact_line_is_found_exactly() -> None:
    online = np.array([0.1, 0.2, 0.3, 0.4])
    gap = gap_with_slope(online, np.zeros(4), np.full(4, 10), np.full(4, 10))
    assert gap.mean == pytest.approx(0.25)
    assert gap.slope_per_hour == pytest.approx(6.0)
    assert gap.slope_interval == pytest.approx((6.0, 6.0))
    assert list(gap.line_by_minute) == pytest.approx(online.tolist())
    assert len(gap.line_interval_by_minute) == 4


def test_a_run_without_any_reward_has_a_gap_of_zero() -> None:
    gap = gap_with_slope(np.zeros(10), np.zeros(10), np.ones(10), np.ones(10))
    assert (gap.mean, gap.slope_per_hour, gap.slope_interval) == (0.0, 0.0, (0.0, 0.0))


def test_minutes_count_by_the_slots_behind_them() -> None:
    gap = gap_with_slope([0.1, 0.5, 0.1], [0.0] * 3, [30, 10, 30], [30, 10, 30])
    assert gap.mean == pytest.approx((0.1 * 15 + 0.5 * 5 + 0.1 * 15) / 35)


def test_missing_minutes_keep_their_place_in_time() -> None:
    online = [0.0, np.nan, 0.02, 0.03, 0.9, 0.05]
    gap = gap_with_slope(online, [0.0] * 6, [5, 5, 5, 5, 0, 5], [5] * 6)
    assert gap.slope_per_hour == pytest.approx(0.6)
    assert np.isnan(gap.by_minute[1])
    assert np.isnan(gap.by_minute[4])
    assert np.isfinite(gap.line_by_minute).all()


@pytest.mark.parametrize("minutes", [0, 1, 2])
def test_fewer_than_three_minutes_have_no_slope(minutes: int) -> None:
    gap = gap_with_slope([0.3] * minutes, [0.2] * minutes, [9] * minutes, [9] * minutes)
    assert (gap.slope_per_hour, gap.slope_interval, gap.mean_interval) == (None, None, None)
    assert list(gap.line_by_minute) == []
    assert gap.mean == (pytest.approx(0.1) if minutes else None)


def test_three_minutes_of_which_one_is_missing_have_no_slope() -> None:
    gap = gap_with_slope([0.3, np.nan, 0.3], [0.2] * 3, [9] * 3, [9] * 3)
    assert gap.slope_per_hour is None
    assert gap.mean == pytest.approx(0.1)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1, 2, 2\]"):
        gap_with_slope([1, 2], [1], [1, 1], [1, 1])
    with pytest.raises(ValueError, match="negative"):
        gap_with_slope([1.0], [1.0], [-1], [1])


def test_a_gap_of_nothing_is_all_none() -> None:
    assert Gap().mean is None


def test_smoothing_weighs_each_minute_by_its_slots_and_bridges_holes() -> None:
    assert smoothed([0.2, np.nan, 0.8], [30, 0, 10]) == pytest.approx([0.35] * 3)
    far = smoothed([1.0] + [np.nan] * 20, [1] + [0] * 20)
    assert far[:6] == [1.0] * 6
    assert np.isnan(far[6:]).all()
    assert smoothed([], []) == []
    with pytest.raises(ValueError, match="2 minutes of rewards and 1 of slots"):
        smoothed([1, 2], [1])
