"""The command line: one small function a command. It parses, calls and prints; the work is done below.

Results go to standard output, all else to standard error. Exit status: 0 done, 2 wrong usage or input, 1 otherwise.
"""

import gc
import json
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from polars.exceptions import PolarsError
from rich.console import Console
from rich.logging import RichHandler
from typer.exceptions import TyperException

from models import artifact as artifacts
from models.artifact import BadArtifact
from models.threads import one_thread
from models.tokenizer import TokenizerConfig
from recsys import datasets, publisher
from recsys.bench.commands import bench
from recsys.checkpoint import StateBusy, StateLock
from recsys.config import Config
from recsys.config import as_json as config_json
from recsys.dashboard import LiveTable
from recsys.imports import Frames, write_import
from recsys.log_commands import log as log_commands
from recsys.log_commands import rollback
from recsys.loop import SCENES, Loop, Stage, refuse_records, write_history
from recsys.options import (
    AcceptGap,
    AsJson,
    LogUrl,
    Partitions,
    Seed,
    Settings,
    State,
    about,
    fresh_directory,
    opened,
    peak_rss_mb,
    print_figures,
    stop_on_signals,
)
from recsys.outcome import progress_of, result_of
from recsys.presets import Preset, acting, configured
from recsys.processes import LearnerProcess, Place, run, server_of, signing_key
from recsys.quarantine_gate import TooMuchQuarantined
from recsys.replay import replay as replayed
from recsys.report import headline, to_json, write_report
from recsys.semantic_ids import id_figures
from recsys.sequences import Sequences, load_items, load_sequences, neighbours
from recsys.server import Access
from recsys.simulate.commands import simulate
from recsys.verify.commands import verify
from streaming.address import ITEMS_SUFFIX
from streaming.clock import SystemClock
from streaming.log import LogUnavailable, OffsetGone

app = typer.Typer(help="One decoder generates the slate; what users do with it changes the weights within a minute.", no_args_is_help=True)
data = typer.Typer(help="Public logs in, archives and catalogues out.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")
app.add_typer(log_commands, name="log")
app.add_typer(verify, name="verify")

LOG = logging.getLogger("recsys")
REFUSALS = (ValueError, BadArtifact, FileNotFoundError, FileExistsError, NotADirectoryError, StateBusy, PolarsError)
"""What a user can put right: exit status 2."""
FAILURES = (LogUnavailable, OSError, TooMuchQuarantined)
"""What failed around us: exit status 1."""

ADDRESS = 'server.address="127.0.0.1:50051"'
"""Where `recsys serve` listens unless told otherwise."""

PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the configuration and stop.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(version("recsys"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command; what a user can put right is one line and status 2, what failed around us one line and status 1."""
    _set_up()
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        _stop(error.exit_code, error.format_message() or "name a command")
    except OffsetGone as error:
        _stop(1, f"{error}. With --accept-gap serve and learn go on there where events are gone, log archive always")
    except REFUSALS as error:
        _stop(2, error)
    except FAILURES as error:
        _stop(1, error)


@app.command()
def loop(
    minutes: Annotated[int, typer.Option(min=1, max=100_000, help="World minutes to run.")] = 120,
    world: Annotated[str, typer.Option(help=f"Who answers: {', '.join(SCENES)}.")] = "sample",
    seed: Seed = 0,
    preset: Preset = "standard",
    settings: Settings = None,
    log: LogUrl = "",
    out: Annotated[Path, typer.Option(help="Directory of this run; emptied of an earlier run.")] = Path("runs/loop"),
    mlflow: Annotated[bool, typer.Option(help="Record the run in MLflow (a SQLite store in --out).")] = True,
    as_json: AsJson = False,
    print_config: PrintConfig = False,
) -> None:
    """The whole loop in one process: a world, the server, the learner and a frozen twin, then a report."""
    config = acting(preset, settings)
    if print_config:
        return _print_config(config)
    if world not in SCENES:
        raise ValueError(f"--world is {world!r}; it must be one of {', '.join(SCENES)}")
    started = time.perf_counter()
    logs = [opened(log, lasting=False), opened(log, ITEMS_SUFFIX, lasting=False)] if log else []
    refuse_records(*logs)  # before anything of the last run is removed
    for lock in out.glob("state/*/LOCK"):  # of a run that still writes
        StateLock(lock.parent).release()
    state_dir = fresh_directory(out)
    url = f"sqlite:///{(out / 'events.db').resolve()}"
    LOG.info("making the world %s", world)
    scene = SCENES[world](minutes, seed)
    events, items = logs or (opened(url), opened(url, ITEMS_SUFFIX))
    stage = Stage(log=events, items_log=items, state_dir=state_dir)
    running = Loop(config, scene, stage, seed)
    gc.freeze()  # what was loaded so far stays: no need to look at it again and again
    done = 0
    stop = stop_on_signals()
    with LiveTable() as table:
        for done in running.minutes():
            table.update(progress_of(running, done, time.perf_counter() - started))
            if stop.is_set():
                LOG.warning("stopped after %d of %d world minutes: the report says so", done, minutes)
                break
    facts = {"version": version("recsys"), "threads": torch.get_num_threads(), "command": _command(), "peak_rss_mb": peak_rss_mb()}
    result = result_of(running, done, time.perf_counter() - started, facts)
    running.close()
    page = write_report(result, out)
    if mlflow:
        LOG.info("recording the run in %s", out / "mlflow.db")
        _record(result, out, state_dir)
    typer.echo(headline(result), err=True)
    typer.echo(f"report: {page}", err=True)
    if as_json:
        typer.echo(json.dumps(to_json(result, page)))
    return None


@app.command()
def serve(
    log: LogUrl,
    state: State,
    address: Annotated[str | None, typer.Option(help="HOST:PORT to listen on, else 127.0.0.1:50051; port 0 takes a free one.")] = None,
    seed: Seed = 0,
    preset: Preset = "standard",
    settings: Settings = None,
    partitions: Partitions = 4,
    accept_gap: AcceptGap = False,
    print_config: PrintConfig = False,
) -> None:
    """Serve recommendations over gRPC from the published versions; events and decisions go into the log."""
    config = acting(preset, [ADDRESS, *(settings or []), *([f"server.address={json.dumps(address)}"] if address else [])])
    if print_config:
        return _print_config(config)
    keys = [signing_key(key, "RECSYS_TOKEN_KEYS") for key in os.environ.get("RECSYS_TOKEN_KEYS", "").split(",") if key]
    timeout_s = config.server.log_timeout_s
    place = Place(
        log=opened(log, partitions=partitions, timeout_s=timeout_s),
        items_log=opened(log, ITEMS_SUFFIX, timeout_s=timeout_s),
        state_dir=state,
        seed=seed,
        access=_access(),
        token_keys=keys,
        accept_gap=accept_gap,
    )
    server, snapshots = server_of(config, place)
    port = server.start()
    LOG.info("serving on %s:%d; log %s, state %s", config.server.address.rpartition(":")[0], port, log, state)
    run([server, snapshots], stop_on_signals(), interval_s=0.05)
    return None


@app.command()
def learn(
    log: LogUrl,
    state: State,
    seed: Seed = 0,
    preset: Preset = "standard",
    settings: Settings = None,
    partitions: Partitions = 4,
    accept_gap: AcceptGap = False,
    print_config: PrintConfig = False,
) -> None:
    """Learn from the log, minute by minute, and publish a version each time."""
    config = configured(preset, settings)
    if print_config:
        return _print_config(config)
    logs = opened(log, partitions=partitions), opened(log, ITEMS_SUFFIX)
    place = Place(log=logs[0], items_log=logs[1], state_dir=state, seed=seed, accept_gap=accept_gap)
    run([LearnerProcess(config, place)], stop_on_signals(), interval_s=0.05)
    return None


@app.command()
def replay(
    archive: Annotated[Path, typer.Option(help="What `data import` wrote: a directory with events/ and items/.")],
    state: Annotated[Path, typer.Option(help="Directory for versions and checkpoints; must be new.")] = Path("runs/replay"),
    seed: Seed = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Versions between two checkpoints and publishes.")] = 60,
    until: Annotated[int | None, typer.Option(min=1, metavar="VERSION", help="Stop when this version is made.")] = None,
    include: Annotated[Path | None, typer.Option(help="Repaired records, as if they had been right at once.")] = None,
    preset: Preset = "standard",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Drive an archive through the joiner and the learner as fast as the machine can."""
    done = replayed(configured(preset, settings), archive, state, seed, save_every, until, include)
    books = done.books["decisions"]
    typer.echo(
        f"{done.events} events in {done.seconds:.1f} s, {done.real_time_factor or 0:.0f} × real time, {done.versions} versions; "
        f"decisions {books['total']}, trained {books['trained']}, foreign {books['foreign']} (learned from: {done.books['taught']}), "
        f"quarantined {sum(done.books['quarantined'].values())}, balanced {done.books['balanced']}",
        err=True,
    )
    if not books["trained"] + done.books["taught"]:
        LOG.warning("nothing was learned: no decision in the archive was shown; %d interactions are context", done.books["interactions"])
    if as_json:
        typer.echo(json.dumps(asdict(done) | about(seed)))


app.command()(rollback)
app.command()(simulate)


@data.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A directory (kuairand, movielens) or a CSV or parquet file (table).")],
    archive: Annotated[Path | None, typer.Option(help="Write an archive here, for `recsys replay`.")] = None,
    log: Annotated[str, typer.Option("--log", help="Write into this empty log as history for `serve` and `learn`.")] = "",
    form: Annotated[str, typer.Option("--format", help="kuairand, movielens or table.")] = "table",
    user: Annotated[str, typer.Option(help="table: column of the user.")] = "user_id",
    item: Annotated[str, typer.Option(help="table: column of the item.")] = "item_id",
    when: Annotated[str, typer.Option("--time", help="table: column of the time (ms, s, or ISO 8601).")] = "time",
    click: Annotated[str, typer.Option(help="table: column that is 1 where the item was clicked.")] = "",
    kind: Annotated[str, typer.Option(help="table: column of the kind of feedback.")] = "",
    value: Annotated[str, typer.Option(help="table: column of its value.")] = "",
    shown: Annotated[str, typer.Option(help="table: column that is 1 where a recommender showed the item.")] = "",
    items: Annotated[Path | None, typer.Option(help="table: CSV or parquet of the items: id, title, attributes.")] = None,
    partitions: Partitions = 4,
) -> None:
    """Turn a public log into an archive and a catalogue, or into the history of a new log."""
    if (archive is None) == (not log):
        raise ValueError("give one of --archive DIR and --log URL")
    table = datasets.TableColumns(
        user=user, item=item, time=when, kind=kind or None, value=value or None, shown=shown or None, click=click or None
    )
    readers: dict[str, Callable[[], Frames]] = {
        "kuairand": lambda: datasets.load_kuairand(source),
        "movielens": lambda: datasets.load_movielens(source),
        "table": lambda: datasets.load_table(source, table, items),
    }
    if form not in readers:
        raise ValueError(f"--format is {form!r}; it must be one of {', '.join(readers)}")
    LOG.info("reading %s", source)
    frames = readers[form]()
    LOG.info("%d interactions, %d items", frames.interactions.height, frames.items.height)
    now_ms = SystemClock().now_ms()
    frames.refuse_future(now_ms)
    if not frames.interactions["shown"].any():
        LOG.warning("nothing in it was shown by a recommender: it is context, and there is nothing to learn from")
    if archive is not None:
        write_import(frames, archive, partitions)
    else:
        write_history(frames, None, opened(log, partitions=partitions), opened(log, ITEMS_SUFFIX), now_ms)
    typer.echo(f"wrote {archive or log}", err=True)


@data.command()
def sample(
    kuairand: Annotated[Path, typer.Argument(help="Directory of KuaiRand-Pure.")],
    out: Annotated[Path, typer.Argument(help="Directory for log, history and items.")],
) -> None:
    """Make the sample that ships with the project from KuaiRand-Pure."""
    datasets.make_sample(kuairand, out)


@data.command()
def tokens(
    items: Annotated[Path, typer.Option(help="CSV or parquet: an id column, maybe `title`, attributes.")],
    sequences: Annotated[Path | None, typer.Option(help="CSV or parquet: user and list of items, or user, item and maybe time.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="An .npz with `ids` and `emb`.")] = None,
    levels: Annotated[int, typer.Option(help="Codes an id has; 1 gives plain ids.")] = 2,
    codes: Annotated[int, typer.Option(help="Clusters a level has, at most.")] = 128,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Give the items of a table semantic ids and say how they turned out."""
    started = time.perf_counter()
    config = TokenizerConfig(levels=levels, codes=codes, seed=seed)
    known = load_items(items, embeddings)
    met = load_sequences(sequences, known) if sequences else Sequences(known, [])
    figures = id_figures(met.items, neighbours(met.by_user), config)
    print_figures(figures, seed, started, as_json=as_json)


@data.command()
def artifact(
    directory: Annotated[Path, typer.Argument(help="A version: <state>/<variant>/versions/<v>.")], as_json: AsJson = False
) -> None:
    """Verify a published version, load it and say how large it is."""
    started = time.perf_counter()
    artifacts.verified_manifest(directory)
    verified = time.perf_counter()
    found = artifacts.read(directory)
    files = artifacts.size_bytes(directory)
    figures = {
        "items": len(found.item_ids),
        "levels": found.tokenizer.config.levels,
        "policy_version": found.facts.get("policy_version"),
        "size_bytes": sum(files.values()),
        "files": files,
        "verify_s": verified - started,
        "load_s": time.perf_counter() - verified,
    }
    print_figures(figures, None, started, as_json=as_json)


def _set_up() -> None:
    """One thread a process, quiet libraries, progress on stderr."""
    one_thread()
    gc.set_threshold(100_000, 50, 100)
    gc.freeze()  # what was imported stays; to look through it once more at the end would take a second and a half
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", datefmt="%H:%M:%S", force=True)
    for ours in ("recsys", "models"):
        logging.getLogger(ours).setLevel(logging.INFO)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # a broker that is away is told of in one line
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="torchrec|mlflow")


def _print_config(config: Config) -> None:
    typer.echo(config_json(config))


def _access() -> Access:
    """Secrets and certificates from RECSYS_* variables."""
    paths = {name: os.environ.get(f"RECSYS_{name.upper()}") for name in ("tls_certificate", "tls_key", "tls_client_ca")}
    said = os.environ.get("RECSYS_BEARER_TOKENS", "")
    tokens = tuple(filter(None, said.split(","))) or ("",) * bool(said)  # nothing but commas is refused, and does not open it to all
    return Access(bearer_tokens=tokens, **{name: Path(path) for name, path in paths.items() if path})


def _record(result: Any, out: Path, state_dir: Path) -> None:
    figures = {"decisions": float(result.decisions), "versions_published": float(result.versions_published), "seconds": result.seconds}
    figures |= {f"reward_{name}": variant.reward for name, variant in result.variants.items() if variant.reward is not None}
    if result.gap.mean is not None:
        figures["gap"] = result.gap.mean
    parameters = {"seed": result.seed, "minutes": result.minutes, "world": result.world, "weights_digest": result.weights_digest}
    run_id = publisher.record_run(out, "recsys-loop", parameters, figures, [out / "report.html", out / "report.json"])
    published = publisher.current(state_dir / "online")
    if published is not None:
        publisher.promote(out, "recsys-online", published, run_id)


def _command() -> str:
    return shlex.join(["recsys", *sys.argv[1:]])


def _stop(status: int, reason: object) -> None:
    lines = str(reason).splitlines()
    typer.echo(f"recsys: {lines[0] if isinstance(reason, PolarsError) and lines else reason}", err=True)
    raise SystemExit(status)
