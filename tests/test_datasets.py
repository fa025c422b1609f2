import hashlib
from collections.abc import Sequence
from datetime import date, datetime
from importlib import resources
from pathlib import Path

import polars as pl
import pytest

from recsys.datasets import Sample, TableColumns, load_kuairand, load_movielens, load_sample, load_table, make_sample
from recsys.imports import Frames, ImportRefused, import_logs, make_frames, write_import
from recsys.loop import LogNotEmpty, write_history
from streaming.archive import ArchiveLog
from streaming.events import IMPORTED, Record, decision_id_of, decode
from streaming.joiner import JoinConfig, Joiner
from streaming.log import Entry, MemoryLog, Position

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the development data is not beside the project")

KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
KUAIRAND_VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,music_type,tag\n"
)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return load_sample()


@pytest.fixture
def kuairand(tmp_path: Path) -> Path:
    """KuaiRand as it unpacks: a `data` folder, with an exact repeat and the statistics that must not be read."""
    data = tmp_path / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    clicked = "7,11,20220422,700,1650582000000,1,1,0,0,0,0,1,90000,120000,0,0,0,0,1\n"
    (data / "log_standard_4_08_to_4_21_pure.csv").write_text(
        KUAIRAND_LOG + "7,10,20220408,100,1649376000000,0,0,0,0,0,1,0,0,8000,0,0,0,0,0\n"
    )
    (data / "log_standard_4_22_to_5_08_pure.csv").write_text(
        KUAIRAND_LOG + clicked + clicked + "7,12,20220422,700,1650582000000,0,0,0,0,0,0,0,1500,9000,0,0,0,0,1\n"
    )
    (data / "video_features_basic_pure.csv").write_text(
        KUAIRAND_VIDEOS
        + "10,501,NORMAL,2022-04-01,Web,0,8000,720,1280,900,9,3\n"
        + '11,502,NORMAL,2022-04-02,LongImport,0,120500,720,1280,901,,"39,68"\n'
    )
    (data / "video_features_statistic_pure.csv").write_text("video_id,counts,show_cnt\n10,14,999\n")
    return tmp_path / "KuaiRand-Pure"


def records_of(log: MemoryLog) -> list[Record]:
    return [decode(record.value) for partition in range(log.num_partitions) for record in log.read(partition, 0, 10**9)]


def digest_of(log: MemoryLog) -> str:
    parts = [record.key + b"\0" + record.value for partition in range(log.num_partitions) for record in log.read(partition, 0, 10**9)]
    return hashlib.sha256(b"\1".join(parts)).hexdigest()


def attributes_of(frames: Frames, item_id: str) -> dict[str, str]:
    pairs = frames.items.filter(pl.col("item_id") == item_id)["attributes"].to_list()[0]
    return {pair["key"]: pair["value"] for pair in pairs}


class TestKuaiRand:
    def test_official_csv(self, kuairand: Path) -> None:
        frames = load_kuairand(kuairand)
        assert frames.interactions["item_id"].to_list() == ["10", "11", "12"]
        assert frames.interactions["shown"].all()
        feedback = [
            {entry["kind"]: (entry["value"], entry["delay_ms"]) for entry in entries} for entries in frames.interactions["feedback"]
        ]
        assert feedback[0] == {"dislike": (1.0, 0)}
        # Played for 90 s: the click is taken to have come after 50 s, inside the window.
        assert feedback[1] == dict.fromkeys(("click", "like", "long_view"), (1.0, 50_000)) | {"play_ms": (90_000.0, 50_000)}
        assert feedback[2] == {"play_ms": (1500.0, 1500)}
        assert frames.interactions["context"].to_list()[1] == [{"key": "tab", "value": "1"}]

    def test_items_have_attributes_and_no_statistics(self, kuairand: Path) -> None:
        frames = load_kuairand(kuairand)
        assert attributes_of(frames, "10") == {
            "tag1": "3",
            "author_id": "501",
            "video_type": "NORMAL",
            "upload_type": "Web",
            "music_type": "9",
            "duration": "0-15s",
        }
        assert attributes_of(frames, "11")["tag2"] == "68"
        assert attributes_of(frames, "11")["duration"] == "120-240s"
        assert attributes_of(frames, "12") == {}

    @pytest.mark.parametrize(
        ("column", "cell", "message"),
        [
            ("time_ms", "", "time_ms is empty in 1 of"),
            ("is_click", "", "is_click is empty in 1 of"),
            ("is_click", "2", "is_click holds '2'; 0 or 1"),
            ("play_time_ms", "long", "play_time_ms holds 'long'; a number"),
        ],
    )
    def test_a_cell_that_says_nothing_is_named(self, kuairand: Path, column: str, cell: str, message: str) -> None:
        path = kuairand / "data" / "log_standard_4_08_to_4_21_pure.csv"
        table = pl.read_csv(path, infer_schema=False)
        table[0, column] = cell or None
        table.write_csv(path)
        with pytest.raises(ImportRefused, match=message):
            load_kuairand(kuairand)

    def test_missing_column_is_named(self, kuairand: Path) -> None:
        path = kuairand / "data" / "log_standard_4_08_to_4_21_pure.csv"
        path.write_text(path.read_text().replace("is_hate", "is_hat"))
        with pytest.raises(ImportRefused, match=r"no column 'is_hate'; there are user_id, .*is_hat,"):
            load_kuairand(kuairand)

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "ratings.csv").write_text("a\n")
        with pytest.raises(ImportRefused, match=r"none of log_standard_\*\.csv.*it holds ratings\.csv"):
            load_kuairand(tmp_path)
        with pytest.raises(ImportRefused, match="no such directory"):
            load_kuairand(tmp_path / "nowhere")


class TestMovieLens:
    def test_ml_1m_dat(self, tmp_path: Path) -> None:
        (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n")
        (tmp_path / "movies.dat").write_bytes(
            "661::Caf\xe9 (1996)::Animation|Children's|Musical\n1193::Cuckoo (1975)::Drama\n".encode("latin-1")
        )
        frames = load_movielens(tmp_path)
        assert not frames.interactions["shown"].any()
        assert frames.interactions["event_time_ms"].to_list() == [978300760000, 978302109000]
        kinds = [{entry["kind"]: entry["value"] for entry in entries} for entries in frames.interactions["feedback"]]
        assert kinds == [{"rating": 5.0, "click": 1.0}, {"rating": 3.0}]
        assert frames.items["title"][0] == "Café (1996)"
        assert attributes_of(frames, "661") == {"genre1": "Animation", "genre2": "Children's", "genre3": "Musical", "year": "1996"}

    def test_ml_100k(self, tmp_path: Path) -> None:
        (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t4\t891717742\n")
        flags = "0|1|0|0|0|1" + "|0" * 13
        (tmp_path / "u.item").write_text(f"242|Kolya (1996)|24-Jan-1997||http://x|{flags}\n302|L.A. (1997)|01-Jan-1997||http://y|{flags}\n")
        frames = load_movielens(tmp_path)
        assert frames.interactions["item_id"].to_list() == ["242", "302"]
        assert attributes_of(frames, "242") == {"genre1": "Action", "genre2": "Comedy", "year": "1996"}

    def test_csv(self, tmp_path: Path) -> None:
        (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,32,4.0,1260759179\n")
        (tmp_path / "movies.csv").write_text('movieId,title,genres\n31,"Minds, The (1995)",Drama\n32,Monkeys,(no genres listed)\n')
        frames = load_movielens(tmp_path)
        assert attributes_of(frames, "31") == {"genre1": "Drama", "year": "1995"}
        assert attributes_of(frames, "32") == {}

    def test_broken_rating_is_shown(self, tmp_path: Path) -> None:
        (tmp_path / "ratings.dat").write_text("1::1193::five::978300760\n")
        (tmp_path / "movies.dat").write_text("1193::x::Drama\n")
        with pytest.raises(ImportRefused, match=r"rating holds 'five'; a number of 0 to 1000 is needed; 1 are none"):
            load_movielens(tmp_path)
        (tmp_path / "ratings.dat").write_text("1::1193::5::1\n1;1193\n")
        with pytest.raises(ImportRefused, match=r"line 2 has not the 4 fields.*1;1193"):
            load_movielens(tmp_path)

    @pytest.mark.parametrize("when", [datetime(2001, 1, 1), date(2001, 1, 1), 978307200, 978307200000])
    def test_times_in_parquet(self, tmp_path: Path, when: object) -> None:
        pl.DataFrame({"userId": [1], "movieId": [10], "rating": [4.0], "timestamp": [when]}).write_parquet(tmp_path / "ratings.parquet")
        pl.DataFrame({"movieId": [10], "title": ["A"], "genres": ["x"]}).write_parquet(tmp_path / "movies.parquet")
        assert load_movielens(tmp_path).interactions["event_time_ms"].to_list() == [978307200000]

    @needs_shared
    def test_the_real_file(self) -> None:
        frames = load_movielens(SHARED / "ml_latest_small")
        assert (frames.interactions.height, frames.items.height) == (100_004, 9125)


class TestTable:
    COLUMNS = TableColumns(user="who", item="what", time="when")

    def table(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "log.csv"
        path.write_text(text)
        return path

    @pytest.mark.parametrize(
        "when", ["1650582000", "1650582000000", "1650582000000000", "2022-04-21T23:00:00Z", "2022-04-22 01:00:00+02:00"]
    )
    def test_times(self, tmp_path: Path, when: str) -> None:
        frames = load_table(self.table(tmp_path, f"who,what,when\na,x,{when}\n"), self.COLUMNS)
        assert frames.interactions["event_time_ms"].to_list() == [1650582000000]
        assert not frames.interactions["shown"].any()

    def test_dates_in_numbers(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        frames = load_table(self.table(tmp_path, "who,what,when\na,x,20240116\na,y,20240115\n"), self.COLUMNS)
        assert frames.interactions["event_time_ms"].to_list() == [1705276800000, 1705363200000]
        assert "read as dates, like 2024-01-16" in caplog.text
        frames = load_table(self.table(tmp_path, "who,what,when\na,x,20240116\na,y,20240199\n"), self.COLUMNS)
        assert frames.interactions["event_time_ms"].to_list() == [20240116000, 20240199000]

    def test_columns_by_name(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "who,what,when,did,worth,seen,clicked,page\na,x,5,buy,9.5,1,1,home\na,y,6,look,1,0,0,\n")
        columns = TableColumns(
            user="who", item="what", time="when", kind="did", value="worth", shown="seen", click="clicked", context=("page",)
        )
        frames = load_table(path, columns)
        assert frames.interactions["shown"].to_list() == [True, False]
        kinds = [[(entry["kind"], entry["value"]) for entry in entries] for entries in frames.interactions["feedback"]]
        assert kinds == [[("click", 1.0), ("buy", 9.5)], [("look", 1.0)]]
        assert frames.interactions["context"].to_list() == [[{"key": "page", "value": "home"}], []]

    def test_clicks_alone_make_exposures(self, tmp_path: Path) -> None:
        frames = load_table(
            self.table(tmp_path, "who,what,when,c\na,x,5,1\na,y,6,0\n"), TableColumns(user="who", item="what", time="when", click="c")
        )
        assert frames.interactions["shown"].all()
        assert frames.interactions["feedback"].list.len().to_list() == [1, 0]

    def test_items_with_attributes(self, tmp_path: Path) -> None:
        items = tmp_path / "items.csv"
        items.write_text("what,title,colour\nx,The X,red\n")
        frames = load_table(self.table(tmp_path, "who,what,when\na,x,5\na,z,6\n"), self.COLUMNS, items)
        assert attributes_of(frames, "x") == {"colour": "red"}
        assert frames.items["title"].to_list() == ["The X", ""]

    @pytest.mark.parametrize(
        ("text", "columns", "message"),
        [
            ("who,what,at\na,x,5\n", COLUMNS, "no column 'when'; there are who, what, at"),
            ("who,what,when\n", COLUMNS, "no rows"),
            ("", COLUMNS, "log.csv"),
            ("who,what,when\na,x,5\na,y,yesterday\n", COLUMNS, "when holds 'yesterday', beside numbers; .* ISO 8601; 1 of 2"),
            ("who,what,when\na,x,2022-13-01\n", COLUMNS, "when holds '2022-13-01', which is no time"),
            ("who,what,when\na,x,NaN\n", COLUMNS, "when holds 'NaN', which is no time"),
            ("who,what,when\na,x,-5\n", COLUMNS, "when holds '-5', which is no time"),
            ("who,what,when\na,x,\nb,y,3\n", COLUMNS, "when is empty in 1 of 2 rows"),
            ("who,what,when\n,x,1\nb,y,3\n", COLUMNS, "who is empty in 1 of 2 rows"),
            (
                "who,what,when,v\na,x,5,NaN\n",
                TableColumns(user="who", item="what", time="when", value="v"),
                "v holds 'NaN'; a number",
            ),
            ("who,what,when,v\na,x,5,much\n", TableColumns(user="who", item="what", time="when", value="v"), "v holds 'much'; a num"),
            ("who,what,when,c\na,x,5,maybe\n", TableColumns(user="who", item="what", time="when", click="c"), "c holds 'maybe'"),
            ("who,what,when,c\na,x,5,nan\nb,y,6,1\n", TableColumns(user="who", item="what", time="when", click="c"), "c holds 'nan'"),
            ("who,what,when,c\na,x,5,7\n", TableColumns(user="who", item="what", time="when", click="c"), "c holds '7'"),
            ("who,what,when,v\na,x,5,1e13\n", TableColumns(user="who", item="what", time="when", value="v"), "v holds '1e13'; a number"),
            ("who,what,when\na,x,1700000000\nb,y,1700000200000\n", COLUMNS, "holds 1700000000, which is seconds, and .* milliseconds"),
            ('who,what,when\na,"",5\n', COLUMNS, "what is empty in 1 of 1 rows"),
            (
                "who,what,when,c,k\na,x,5,1,click\n",
                TableColumns(user="who", item="what", time="when", click="c", kind="k"),
                "k holds 'click' beside the column c",
            ),
            ("who,what,when,k\na,x,5,\nb,y,6,watch\n", TableColumns(user="who", item="what", time="when", kind="k"), "kind not empty"),
        ],
    )
    def test_errors_are_named(self, tmp_path: Path, text: str, columns: TableColumns, message: str) -> None:
        with pytest.raises(ImportRefused, match=message):
            load_table(self.table(tmp_path, text), columns)

    def test_an_id_is_the_text_that_the_file_holds(self, tmp_path: Path) -> None:
        items = tmp_path / "items.csv"
        items.write_text("what,zip\n0012,01234\n1.10,00501\n")
        frames = load_table(self.table(tmp_path, "who,what,when\n007,0012,5\n7,12,6\n9e999,1.10,7\n"), self.COLUMNS, items)
        assert frames.interactions["user_id"].to_list() == ["007", "7", "9e999"]
        assert frames.interactions["item_id"].to_list() == ["0012", "12", "1.10"]
        assert attributes_of(frames, "0012") == {"zip": "01234"}

    def test_letters_may_come_late(self, tmp_path: Path) -> None:
        rows = "".join(f"a,{number},{number}\n" for number in range(10_050))
        frames = load_table(self.table(tmp_path, f"who,what,when\n{rows}a,B00X,20000\n"), self.COLUMNS)
        assert frames.interactions["item_id"][-1] == "B00X"

    def test_whole_floats_are_integers_as_ids(self, tmp_path: Path) -> None:
        """So pandas writes a column of integers that once had a gap."""
        log, items = tmp_path / "log.parquet", tmp_path / "items.parquet"
        pl.DataFrame({"who": [1.0, 2.0], "what": [12.0, 13.0], "when": [5, 6]}).write_parquet(log)
        pl.DataFrame({"what": [12, 13], "title": [["A", "B"], ["C"]]}).write_parquet(items)
        frames = load_table(log, self.COLUMNS, items)
        assert frames.interactions["user_id"].to_list() == ["1", "2"]
        assert frames.items["item_id"].to_list() == ["12", "13"]
        assert frames.items["title"].to_list() == ["A B", "C"]
        pl.DataFrame({"who": [1.0, 2.0], "what": [12.0, float("nan")], "when": [5, 6]}).write_parquet(log)
        with pytest.raises(ImportRefused, match="what holds nan, which is no id; 1 of 2 are not"):
            load_table(log, self.COLUMNS)

    def test_only_rows_that_repeat_another_in_every_column_are_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = self.table(tmp_path, "who,what,when,session\na,x,5,1\na,x,5,2\na,x,5,2\n")
        assert load_table(path, self.COLUMNS).interactions.height == 2
        assert "1 of 3 rows repeat another in every column" in caplog.text

    def test_kinds_of_feedback_in_rows_of_their_own_are_of_one_exposure(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "who,what,when,s,k\na,x,5,1,click\na,y,5,1,skip\na,x,5,1,like\na,z,6,0,buy\na,z,6,0,like\n")
        frames = load_table(path, TableColumns(user="who", item="what", time="when", shown="s", kind="k"))
        kinds = [[entry["kind"] for entry in entries] for entries in frames.interactions["feedback"]]
        assert (frames.interactions["item_id"].to_list(), kinds) == (["x", "y", "z", "z"], [["click", "like"], ["skip"], ["buy"], ["like"]])

    def test_items_that_the_catalogue_lacks_are_told_of(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        items = tmp_path / "items.csv"
        items.write_text("what,title\nx,The X\n")
        load_table(self.table(tmp_path, "who,what,when\na,x,5\na,z,6\n"), self.COLUMNS, items)
        assert "1 of 2 items are not among those given, like z" in caplog.text
        with pytest.raises(ImportRefused, match=r"none of its 2 items \(y, z, …\) is among the 1 given \(x, …\)"):
            load_table(self.table(tmp_path, "who,what,when\na,y,5\na,z,6\n"), self.COLUMNS, items)

    def test_two_columns_of_one_name_are_refused(self, tmp_path: Path) -> None:
        items = tmp_path / "items.parquet"
        pl.DataFrame({"what": ["x"], "genre": [["a", "b"]], "genre1": ["c"]}).write_parquet(items)
        with pytest.raises(ImportRefused, match="'genre1' is said by genre1 and by another column"):
            load_table(self.table(tmp_path, "who,what,when\na,x,5\n"), self.COLUMNS, items)

    def test_missing_file(self, tmp_path: Path) -> None:
        self.table(tmp_path, "x")
        with pytest.raises(ImportRefused, match=r"no such file; .* holds log\.csv"):
            load_table(tmp_path / "lgo.csv", self.COLUMNS)


class TestImport:
    def test_records_of_exposures(self, kuairand: Path) -> None:
        events, items = import_logs(load_kuairand(kuairand))
        records = records_of(events)
        decisions = [record.decision for record in records if record.HasField("decision")]
        assert [list(decision.item_ids) for decision in decisions] == [["10"], ["11", "12"]]
        last = decisions[1]
        assert (last.variant, last.memory_offset, last.items_offset, list(last.slot_logprobs)) == (IMPORTED, -1, 3, [])
        assert last.decision_token == f"{last.decision_id}.0.imported"
        assert dict(last.context) == {"tab": "1"}
        mine = [r.event for r in records if r.HasField("event") and r.event.user_id == "7"]
        exposures = [e for e in mine if e.HasField("exposure")]
        assert [list(e.exposure.slots) for e in exposures] == [[0], [0, 1]]
        clicks = [e for e in mine if e.HasField("feedback") and e.feedback.kind == "click"]
        assert [(e.feedback.slot, e.event_time_ms - last.event_time_ms, decision_id_of(e.feedback.decision_token)) for e in clicks] == [
            (0, 50_000, last.decision_id)
        ]
        changes = [r.item for r in records_of(items) if r.HasField("item")]
        assert [change.item.item_id for change in changes] == ["10", "11", "12"]
        assert all(change.event_time_ms < decisions[0].event_time_ms for change in changes)

    def test_every_partition_is_ticked_until_all_is_closed(self, kuairand: Path) -> None:
        events, items = import_logs(load_kuairand(kuairand), num_partitions=3)
        for log in (events, items):
            for partition in range(log.num_partitions):
                records = [decode(record.value) for record in log.read(partition, 0)]
                times_ms = [record.append_time_ms for record in records]
                assert times_ms == sorted(times_ms)
                ticks = [record.tick.event_time_ms for record in records if record.HasField("tick")]
                assert all(time_ms % 60_000 == 0 for time_ms in ticks)
                # Bucket of the last event closed: (b + 1)·M + W + L ≤ watermark = tick − D.
                assert ticks[-1] - 2000 >= (1650582050000 // 60_000 + 1) * 60_000 + 65_000

    def test_remembereded_item_makes_a_second_slate(self) -> None:
        row = {"user_id": "a", "item_id": "x", "event_time_ms": 60_000, "shown": True, "feedback": [], "context": []}
        empty = load_sample().frames().interactions.clear()
        frames = make_frames(pl.DataFrame([row, row], schema=empty.schema), load_sample().items.clear())
        decisions = [r.decision for r in records_of(import_logs(frames)[0]) if r.HasField("decision")]
        assert len({decision.decision_id for decision in decisions}) == 2

    def test_organic_rows_become_interactions(self, tmp_path: Path) -> None:
        path = tmp_path / "log.csv"
        path.write_text("who,what,when\na,x,1650582000\n")
        events, _ = import_logs(load_table(path, TableColumns(user="who", item="what", time="when")))
        bodies = [r.event.interaction for r in records_of(events) if r.HasField("event")]
        assert [(body.item_id, body.kind, body.value) for body in bodies] == [("x", "watch", 1.0)]

    @pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
    def test_times_are_seconds_milli_micro_or_nanoseconds(self, tmp_path: Path, unit: int) -> None:
        path = tmp_path / "log.csv"
        path.write_text(f"who,what,when\na,x,{1650582000 * unit}\n")
        frames = load_table(path, TableColumns(user="who", item="what", time="when"))
        assert frames.interactions["event_time_ms"].to_list() == [1650582000_000]

    @pytest.mark.parametrize(
        ("times", "said"),
        [
            (pl.Series([[1], [2]]), r"when holds List\(Int64\); it must hold numbers"),
            (pl.Series(["10:00:00", "10:01:00"]).str.to_time(), "when holds Time; it must hold numbers"),
            (pl.Series([1e300, 5.0]), "when holds 1e\\+300, which is no time; 1 of 2"),
        ],
    )
    def test_times_of_another_kind_are_refused_by_column(self, tmp_path: Path, times: pl.Series, said: str) -> None:
        path = tmp_path / "log.parquet"
        pl.DataFrame({"who": ["a", "b"], "what": ["x", "y"], "when": times}).write_parquet(path)
        with pytest.raises(ImportRefused, match=said):
            load_table(path, TableColumns(user="who", item="what", time="when"))

    def test_a_list_of_an_item_is_an_attribute_by_place(self, tmp_path: Path) -> None:
        log, items = tmp_path / "log.csv", tmp_path / "items.parquet"
        log.write_text("who,what,when\na,x,1650582000\n")
        pl.DataFrame({"what": ["x", "y"], "genre": [["a", "b"], None], "year": [1979, 1986]}).write_parquet(items)
        columns = TableColumns(user="who", item="what", time="when")
        found = {
            row["item_id"]: {pair["key"]: pair["value"] for pair in row["attributes"]}
            for row in load_table(log, columns, items).items.to_dicts()
        }
        assert found == {"x": {"genre1": "a", "genre2": "b", "year": "1979"}, "y": {"year": "1986"}}
        pl.DataFrame({"what": ["x"], "cover": [b"png"]}).write_parquet(items)
        with pytest.raises(ImportRefused, match="cover holds Binary; it must hold texts"):
            load_table(log, columns, items)

    def test_what_is_later_than_now_is_refused_by_name(self, tmp_path: Path) -> None:
        path = tmp_path / "log.csv"
        path.write_text("who,what,when\na,x,1650582000\nb,y,1650582001\n")
        frames = load_table(path, TableColumns(user="who", item="what", time="when"))
        frames.refuse_future(1650582001_000)
        with pytest.raises(ImportRefused, match="user 'b', item 'y': its time is 2022-04-21 23:00:01 UTC, after now; 1 rows"):
            frames.refuse_future(1650582000_999)

    def test_ticks_of_a_log_that_goes_on_do_not_run_ahead(self, kuairand: Path) -> None:
        frames = load_kuairand(kuairand)
        last_ms = frames.interactions["event_time_ms"][-1]
        log, items_log = MemoryLog(3), MemoryLog(1)
        write_history(frames, None, log, items_log, last_ms + 10_000)
        times_ms = [record.tick.event_time_ms for of in (log, items_log) for record in records_of(of) if record.HasField("tick")]
        assert max(times_ms) == last_ms + 10_000

    def test_a_history_that_was_broken_off_is_none_to_start_from(self, kuairand: Path) -> None:
        """Where the log fails before its last partition, no item and no word of a history is there, and it is said what to do."""

        class Failing(MemoryLog):
            def append(self, entries: Sequence[Entry]) -> list[Position]:
                if self.end_offsets()[0]:
                    raise OSError("the disk is full")
                return super().append(entries)

        log, items_log = Failing(2), MemoryLog(1)
        with pytest.raises(OSError, match="the disk is full"):
            write_history(load_kuairand(kuairand), None, log, items_log)
        assert log.end_offsets()[0] > 0
        assert items_log.end_offsets() == [0]
        with pytest.raises(LogNotEmpty, match="broken off must begin anew with a new log"):
            write_history(load_kuairand(kuairand), None, log, items_log)

    def test_same_rows_same_bytes(self, sample: Sample) -> None:
        frames = sample.frames(until_ms=sample.log["event_time_ms"][0] + 3_600_000)
        assert [digest_of(log) for log in import_logs(frames)] == [digest_of(log) for log in import_logs(frames)]

    def test_the_joiner_closes_every_exposure_with_its_clicks(self, sample: Sample) -> None:
        day_ms = sample.log["event_time_ms"][0] + 86_400_000
        events, _ = import_logs(sample.frames(until_ms=day_ms))
        joiner = Joiner(JoinConfig(variant="online", teach_imported=True), events.num_partitions)
        for partition in range(events.num_partitions):
            joiner.apply(partition, events.read(partition, 0, 10**9))
        examples = []
        while (bucket := joiner.take_bucket()) is not None:
            examples += bucket.examples
        exposures = sample.log.filter(pl.col("event_time_ms") < day_ms)
        assert sum(len(example.shown) for example in examples) == exposures.height > 3000
        assert sum(sum(example.rewards) for example in examples) == exposures["click"].cast(pl.Int64).sum()
        assert not joiner.quarantined

    def test_frames_refuse_what_is_no_log(self, sample: Sample) -> None:
        frames = sample.frames()
        with pytest.raises(ImportRefused, match="empty"):
            Frames(interactions=frames.interactions.clear(), items=frames.items)
        with pytest.raises(ImportRefused, match="event_time_ms must be"):
            Frames(interactions=frames.interactions.reverse(), items=frames.items)
        with pytest.raises(ImportRefused, match="is in the interactions and not in items"):
            Frames(interactions=frames.interactions, items=frames.items.head(5))
        for item_id, why in (("", "has 0 bytes; it must have 1..256"), ("x" * 257, "has 257 bytes"), ("a\0b", "and no NUL")):
            with pytest.raises(ImportRefused, match=why):
                Frames(interactions=frames.interactions, items=frames.items.with_columns(item_id=pl.lit(item_id)))
        with pytest.raises(ImportRefused, match="stands twice"):
            Frames(interactions=frames.interactions, items=pl.concat([frames.items, frames.items.head(1)]))

    def test_a_slate_that_is_no_record_is_refused_by_its_user(self, tmp_path: Path) -> None:
        """A day as the time of all that somebody was shown on it."""
        path = tmp_path / "log.parquet"
        shown = pl.DataFrame({"what": [f"{number:0250}" for number in range(4_000)]})
        shown.with_columns(who=pl.lit("crawler"), when=pl.lit(1650582000), c=pl.lit(0)).write_parquet(path)
        frames = load_table(path, TableColumns(user="who", item="what", time="when", click="c"))
        with pytest.raises(ImportRefused, match=r"user 'crawler': 4000 items at one time, 1650582000000 ms, are one slate of 10.* bytes"):
            import_logs(frames)

    def test_archive_reads_back(self, kuairand: Path, tmp_path: Path) -> None:
        frames = load_kuairand(kuairand)
        write_import(frames, tmp_path / "archive")
        for name, log in zip(("events", "items"), import_logs(frames), strict=True):
            back = ArchiveLog(tmp_path / "archive" / name)
            assert back.num_partitions == log.num_partitions
            for partition in range(log.num_partitions):
                assert back.read(partition, 0) == log.read(partition, 0)
        with pytest.raises(ImportRefused, match="is not empty"):
            write_import(frames, tmp_path / "archive")


class TestSample:
    def test_is_small_and_whole(self, sample: Sample) -> None:
        directory = resources.files("recsys") / "sample"
        assert sum(len(path.read_bytes()) for path in directory.iterdir()) <= 3_000_000
        assert (sample.log.height, sample.log["user_id"].n_unique(), sample.items.height) == (69_817, 5580, 7583)
        assert sample.log["event_time_ms"].is_sorted()
        assert sample.log.group_by("user_id").len()["len"].min() == 5
        assert sample.history["item_ids"].list.len().max() == 50
        assert 0.4 < float(sample.log["click"].cast(pl.Float64).to_numpy().mean()) < 0.5

    def test_says_where_it_is_from(self) -> None:
        text = (resources.files("recsys") / "sample" / "README.md").read_text()
        for needed in ("CC BY-SA 4.0", "https://kuairand.com", "Gao", "CIKM 2022", "What was changed"):
            assert needed in text

    def test_no_statistics_that_leak(self) -> None:
        columns = pl.read_parquet_schema(str(resources.files("recsys") / "sample" / "items.parquet")).keys()
        assert set(columns) == {"video_id", "author_id", "video_type", "upload_type", "music_type", "video_duration", "tag"}

    def test_warm_start_is_ten_days(self, sample: Sample) -> None:
        warm = sample.frames(until_ms=sample.warm_start_until_ms).interactions
        assert 0.7 < warm.height / sample.log.height < 0.8
        assert warm["event_time_ms"][-1] < sample.warm_start_until_ms

    @needs_shared
    def test_comes_out_the_same_again(self, tmp_path: Path) -> None:
        make_sample(SHARED / "kuairand_pure", tmp_path)
        directory = resources.files("recsys") / "sample"
        for name in ("log", "history", "items"):
            assert pl.read_parquet(tmp_path / f"{name}.parquet").equals(pl.read_parquet(str(directory / f"{name}.parquet")))
