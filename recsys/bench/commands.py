"""`recsys bench …`: one small function a command. It parses, calls and prints; the work is done beside it."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from models.decoder import Decoder
from models.next_item import NextItemModel
from models.sasrec import SasrecTrunk
from recsys.bench import generate as generating
from recsys.bench.checkpoint import checkpoint_cost
from recsys.bench.learners import LEARNERS, Tournament, bench_learners
from recsys.bench.loop import bench_loop
from recsys.bench.prequential import SETTINGS as PREQUENTIAL
from recsys.bench.prequential import PrequentialConfig, bench_prequential
from recsys.bench.rank import Maker, RankConfig, Task, bench_rank, decoder_maker, sasrec_maker
from recsys.bench.ranking import Split
from recsys.bench.serve import ServeBench, bench_serve
from recsys.bench.stream import beside_others, from_memory, growth, not_measured
from recsys.bench.train import TrainBench, bench_train, synthetic_sequences
from recsys.bench.unseen import bench_unseen
from recsys.bench.update import GROWTH, bench_update
from recsys.config import with_settings
from recsys.loop import sample_scene
from recsys.options import AsJson, Seed, Settings, fresh_directory, print_figures
from recsys.presets import Preset, configured
from recsys.sequences import load_items, load_sequences
from recsys.simulate.worlds import WORLDS

bench = typer.Typer(help="What it costs and how well it ranks, in figures.", no_args_is_help=True)

SequencesFile = Annotated[Path | None, typer.Option(help="CSV or parquet: user and items (a list), or user, item and maybe time.")]


@bench.command("loop")
def loop(
    seconds: Annotated[float, typer.Option(min=5, help="How long requests are timed while a learner runs beside.")] = 60,
    seed: Seed = 0,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Directory of this run; emptied of an earlier run.")] = Path("runs/bench-loop"),
    as_json: AsJson = False,
) -> None:
    """Warm start, Recommend while a learner runs in another process, and from feedback to served weights."""
    fresh_directory(out)
    started = time.perf_counter()
    print_figures(bench_loop(sample_scene(60, seed), out, seed, seconds, settings or []), seed, started, as_json=as_json)


@bench.command("serve")
def serve(
    seconds: Annotated[float, typer.Option(min=1, help="How long the load is held.")] = 300,
    saturate: Annotated[float, typer.Option(min=1, help="Seconds at saturation; the second half is counted.")] = 240,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of the requests a second at saturation, while held.")] = 0.8,
    clients: Annotated[int, typer.Option(min=1, max=64, help="Threads that ask.")] = 32,
    shown: Annotated[float, typer.Option(min=0, max=1, help="Share of the slates that their user looks at.")] = 1.0,
    seed: Seed = 0,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Directory of this run; emptied of an earlier run.")] = Path("runs/bench-serve"),
    as_json: AsJson = False,
) -> None:
    """Requests a second at saturation; then, under a share of it and with a new version every minute, how fast and how right."""
    fresh_directory(out)
    started = time.perf_counter()
    load = ServeBench(clients=clients, saturate_s=saturate, hold_s=seconds, share=share, shown_share=shown)
    print_figures(bench_serve(sample_scene(60, seed), out, seed, load, settings or []), seed, started, as_json=as_json)


@bench.command("stream")
def stream(
    bootstrap: Annotated[str, typer.Option(envvar="RECSYS_TEST_KAFKA", help="HOST:PORT of a Kafka broker; without one only memory.")] = "",
    decisions: Annotated[int, typer.Option(min=100, help="Decisions on the topic and in memory; 2.3 records come of each.")] = 60_000,
    most_open: Annotated[int, typer.Option(min=10_000, help="Open decisions at the most, beside 10,000.")] = 1_000_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """From a Kafka topic through the join beside Quix Streams and Bytewax (extra bench); from memory; what an open decision costs."""
    started = time.perf_counter()
    figures = beside_others(bootstrap, decisions, seed) if bootstrap else not_measured()
    figures |= from_memory(decisions, seed) | growth([10_000, most_open], seed)
    with TemporaryDirectory() as directory:
        figures |= checkpoint_cost(Path(directory), most_open)
    print_figures(figures, seed, started, as_json=as_json)


@bench.command("rank")
def rank(
    sequences: Annotated[Path, typer.Option(help="CSV or parquet: user and items (a list), or user, item and maybe time.")],
    items: Annotated[Path | None, typer.Option(help="CSV or parquet: id, title, attributes.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help=".npz with ids and emb.")] = None,
    protocol: Annotated[str, typer.Option(help="leave-one-out.")] = "leave-one-out",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many seeds, from --seed on.")] = 3,
    models: Annotated[str, typer.Option(help="decoder, sasrec, sasrec-trunk; those that only count are always there.")] = "decoder,sasrec",
    levels: Annotated[str | None, typer.Option(help="Levels K of the decoder's ids, 1 by default, or several like 1,2,3.")] = None,
    unseen: Annotated[bool, typer.Option(help="Also items held out of training, and whole slates; with the first of the levels.")] = True,
    seed: Seed = 0,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Next items over the whole catalogue: the decoder beside popularity, a Markov chain, content and SASRec."""
    if protocol != "leave-one-out":
        raise ValueError(f"--protocol is {protocol!r}; it must be leave-one-out")
    started = time.perf_counter()
    config: RankConfig = with_settings(RankConfig(), settings or [])
    leveled = [with_settings(config, [f"levels={level}"]) for level in levels.split(",")] if levels else [config]
    config, read = leveled[0], load_sequences(sequences, load_items(items, embeddings) if items else [])
    figures = bench_rank(read.items, read.by_user, _makers(models, leveled), config, range(seed, seed + seeds)) | {"slates": None}
    if unseen:
        more = bench_unseen(read.items, read.by_user, config, seed)
        figures |= {"cold": figures["cold"] + more["cold"], "slates": more["slates"]}
    print_figures(figures | {"file": str(sequences)}, seed, started, as_json=as_json)


@bench.command("generate")
def generate(
    up_to: Annotated[int, typer.Option(min=10_000, max=100_000_000, help="The largest catalogue.")] = 10_000_000,
    foreign: Annotated[bool, typer.Option(help="Also Hugging Face transformers (extra `bench`).")] = True,
    runs: Annotated[int, typer.Option(min=3, help="Runs of each at batch 1.")] = 100,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Slates a second beside `generate` of transformers; growth with the catalogue and the history; filters."""
    started = time.perf_counter()
    figures: dict[str, Any] = generating.beside_transformers(runs, seed) if foreign else {"rows": [], "ratio_to_hf": None}
    sizes = [size for size in (10**power for power in range(4, 9)) if size <= up_to]
    figures |= {
        "catalogue": generating.catalogue_growth(sizes, runs=runs),
        "filters": generating.filters(sizes[-1], runs=runs),
        "history": generating.history_growth([50, 500, 2_000], runs=runs),
    }
    print_figures(figures, seed, started, as_json=as_json)


@bench.command("train")
def train(
    sequences: SequencesFile = None,
    rectools_python: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The interpreter of an environment with RecTools (see README).")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps timed of each.")] = 40,
    seed: Seed = 0,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Sequences learned a second beside RecTools' SASRec, and the share of this machine's matrix-multiply peak."""
    started = time.perf_counter()
    config = with_settings(RankConfig(), settings or [])
    sizes = TrainBench(steps=steps, seed=seed, device=config.device)
    by_user = load_sequences(sequences).by_user if sequences else synthetic_sequences(20_000, 12_000, seed)
    split = Split.of([numbers + 1 for numbers in by_user], 1 + max(int(numbers.max()) for numbers in by_user) + 1)
    config = with_settings(config, [f"{model}.{setting}" for model in ("decoder", "sasrec") for setting in sizes.settings()])
    task = Task(split, torch.randn(split.num_rows, config.content_dim, generator=torch.Generator().manual_seed(seed)).numpy())
    engines: dict[str, NextItemModel] = {}
    for dtype in ("float32", "bfloat16"):
        precise = with_settings(config, [f"dtype={dtype}"])
        engines |= {f"decoder {dtype}": decoder_maker(precise)(task, seed), f"our SASRec {dtype}": sasrec_maker(precise)(task, seed)}
    print_figures(bench_train(split.train, engines, sizes, rectools_python), seed, started, as_json=as_json)


@bench.command("update")
def update(
    largest: Annotated[int, typer.Option(min=10, help="Decisions of the largest minute.")] = 10_000,
    preset: Preset = "standard",
    seed: Seed = 0,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """One minute's update: seconds and memory by decisions, catalogue and history, and where the time goes."""
    started = time.perf_counter()
    minutes = [minute for minute in GROWTH if minute.decisions <= largest]
    print_figures(bench_update(configured(preset, settings), minutes, seed), seed, started, as_json=as_json)


@bench.command("learners")
def learners(
    worlds: Annotated[str, typer.Option(help=f"Of {', '.join(WORLDS)}; the first one is tuned in.")] = "drift,noisy",
    learners: Annotated[str, typer.Option(help=f"Of {', '.join(LEARNERS)}.")] = ",".join(LEARNERS),
    staleness: Annotated[str, typer.Option(help="World minutes that a version answers.")] = "1,10",
    minutes: Annotated[int, typer.Option(min=1, help="World minutes of a run.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many seeds, from --seed on; as many others are tuned on.")] = 3,
    seed: Seed = 0,
    preset: Preset = "small",
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Where finished runs are kept; they are not made again.")] = Path("runs/learners"),
    as_json: AsJson = False,
) -> None:
    """The rules of the policy term against each other, tuned alike, served fresh and stale."""
    started = time.perf_counter()
    plan = Tournament(
        config=configured(preset, settings),
        learners=learners.split(","),
        worlds=worlds.split(","),
        staleness_minutes=_minutes(staleness),
        seeds=range(seed, seed + seeds),
        minutes=minutes,
    )
    print_figures(bench_learners(plan, out), seed, started, as_json=as_json)


@bench.command("prequential")
def prequential(
    data: Annotated[Path, typer.Option(help="Directory of KuaiRand-Pure, as published or as parquet.")],
    days: Annotated[int, typer.Option(help="Days of the log.")] = 14,
    every: Annotated[int, typer.Option(help="Minutes between two updates.")] = 10,
    history: Annotated[int, typer.Option(help="Videos of each user before the log that are remembered, at most 50.")] = 20,
    daily: Annotated[bool, typer.Option(help="Also a model trained anew every night.")] = True,
    still_users: Annotated[bool, typer.Option(help="Also with users remembered as of the first day: what memory is worth.")] = False,
    preset: Preset = "small",
    seed: Seed = 0,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Clicks of a real log, predicted, then learned: online, frozen and daily value heads beside click rates."""
    started = time.perf_counter()
    plan = PrequentialConfig(days=days, every=every, history=history, daily=daily, still_users=still_users)
    config = configured(preset, [*PREQUENTIAL, *(settings or [])])
    print_figures(bench_prequential(data, config, plan, seed), seed, started, as_json=as_json)


def _makers(models: str, leveled: Sequence[RankConfig]) -> dict[str, Maker]:
    """The models asked for, by the name they have in the report; the decoder with each of these levels, other models as the first says."""
    known = {"sasrec": sasrec_maker(leveled[0]), "sasrec-trunk": decoder_maker(leveled[0], SasrecTrunk)}
    makers: dict[str, Maker] = {}
    for name in models.split(","):
        if name == "decoder":
            for config in leveled:
                makers["decoder" if len(leveled) == 1 else f"decoder K={config.levels}"] = decoder_maker(config, Decoder)
        elif name in known:
            makers[name] = known[name]
        else:
            raise ValueError(f"--models has {name!r}; it must be of decoder, {', '.join(known)}")
    return makers


def _minutes(text: str) -> list[int]:
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise ValueError(f"--staleness is {text!r}; it must be whole minutes with commas, like 1,10") from None
