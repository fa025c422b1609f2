import io
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from recsys.dashboard import LiveTable, Progress, VariantProgress

PROGRESS = Progress(
    world_time_ms=1_767_600_000_000,
    minutes_done=20,
    minutes_total=120,
    decisions=4200,
    elapsed_s=21.0,
    variants={
        "online": VariantProgress(reward=0.291, reward_last_10_minutes=0.312, policy_version=18, served_weights_age_s=131.0),
        "offline": VariantProgress(reward=0.268, reward_last_10_minutes=None),
    },
    gap=0.023,
    gap_last_10_minutes=-0.004,
    books_balanced=True,
)
NOTHING_YET = Progress(world_time_ms=0, minutes_done=0, minutes_total=120, decisions=0, elapsed_s=0.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(width: int = 110) -> Console:
    return Console(file=Terminal(), force_terminal=True, width=width, height=40, color_system=None)


def pipe() -> Console:
    return Console(file=io.StringIO(), width=40)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_off_a_terminal_there_is_one_line_every_few_world_minutes() -> None:
    console = pipe()
    with LiveTable(console, minutes_per_line=10) as table:
        for minute in range(121):
            table.update(replace(PROGRESS, minutes_done=minute))
    lines = written(console).splitlines()
    assert len(lines) == 13
    assert [line.split(" · ")[0] for line in lines[:2]] == ["minute 0/120", "minute 10/120"]
    assert "\x1b" not in written(console)


def test_the_plain_line_says_what_matters() -> None:
    console = pipe()
    with LiveTable(console) as table:
        table.update(PROGRESS)
    assert written(console) == (
        "minute 20/120 · 4200 decisions · online 0.291 · offline 0.268 · gap +0.023 (last 10 min -0.004) · online v18, 2:11 old"
        " · books balanced · 200 decisions/s · 21 s\n"
    )


def test_force_color_does_not_make_a_pipe_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = pipe()
    with LiveTable(console) as table:
        table.update(PROGRESS)
    assert "\x1b" not in written(console)


def stopped_in_minute_3(table: LiveTable) -> None:
    with table:
        table.update(NOTHING_YET)
        table.update(replace(PROGRESS, minutes_done=3))
        raise KeyboardInterrupt


def test_a_run_stopped_between_two_lines_still_shows_its_last_state() -> None:
    console = pipe()
    with pytest.raises(KeyboardInterrupt):
        stopped_in_minute_3(LiveTable(console, minutes_per_line=10))
    assert [line.split(" · ")[0] for line in written(console).splitlines()] == ["minute 0/120", "minute 3/120"]


def test_on_a_terminal_the_page_is_redrawn_and_the_cursor_given_back() -> None:
    console = terminal()
    with LiveTable(console) as table:
        table.update(NOTHING_YET)
        table.update(PROGRESS)
    shown = written(console)
    for expected in ("minute 20 of 120", "online", "0.312", "18", "2:11 ago", "+0.023", "balanced", "4,200", "2026-01-05 08:00:00 UTC"):
        assert expected in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_redraws_are_limited_and_the_last_state_is_never_lost() -> None:
    console = terminal()
    with LiveTable(console) as table:
        for turn in range(1000):
            table.update(replace(PROGRESS, decisions=5000 + turn, elapsed_s=turn / 10_000))
    shown = written(console)
    assert shown.count("5,") < 5
    assert "5,999" in shown


def test_standard_output_stays_free_inside_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveTable(terminal()) as table:
        table.update(PROGRESS)
        print("{}")
    assert capsys.readouterr().out == "{}\n"


def test_everything_goes_to_standard_error() -> None:
    program = (
        "from recsys.dashboard import LiveTable, Progress\n"
        "with LiveTable() as table:\n"
        "    table.update(Progress(world_time_ms=0, minutes_done=0, minutes_total=2, decisions=0, elapsed_s=0.0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.startswith("minute 0/2")


def test_what_was_refused_is_named() -> None:
    for console in (pipe(), terminal(200)):
        with LiveTable(console) as table:
            table.update(replace(PROGRESS, refused={"a_gate": 31}))
        assert "refused 31: a_gate" in written(console)


def test_broken_books_are_shouted() -> None:
    console = terminal()
    with LiveTable(console) as table:
        table.update(replace(PROGRESS, books_balanced=False))
    assert "NOT BALANCED" in written(console)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_any_width_and_an_empty_run_can_be_drawn(width: int) -> None:
    console = terminal(width)
    with LiveTable(console) as table:
        table.update(NOTHING_YET)
        table.update(replace(NOTHING_YET, minutes_total=0, elapsed_s=4000.0))
    assert "1:06:40" in written(console)


def test_a_line_every_zero_minutes_is_refused() -> None:
    with pytest.raises(ValueError, match="minutes_per_line is 0"):
        LiveTable(pipe(), minutes_per_line=0)
