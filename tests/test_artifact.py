"""A version on disk: equal numbers when read again, and refused by name when anything in it is not what was written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_generate import FEATURES, HISTORY, NUM_KINDS, Model, random_requests, rescored

from models.artifact import FORMAT, MANIFEST, Artifact, BadArtifact, digest_of, read, size_bytes, verified_manifest, weights_digest, write
from models.content import ContentRule, ItemText
from models.decoder import Decoder, DecoderConfig
from models.generate import novelty
from models.successors import SuccessorCounts
from models.tokenizer import Tokenizer, TokenizerConfig
from models.trie import Trie

FILES = ["items.safetensors", "trie.safetensors", "vocabulary.json", "weights.safetensors"]
PICKLE = b"\x80\x04cos\nsystem\n."
"""The beginning of one that would run something."""


def random_artifact(seed: int = 0, *, levels: int = 2, num_items: int = 40, version: int = 1, prefix: str = "item é") -> Artifact:
    """A version of items with titles or embeddings, some retired, under random weights."""
    random = np.random.default_rng(seed)
    items = [ItemText(f"{prefix}{n}", title=f"title {n}", embedding=(n + 1.0, 1.0) if n % 3 == 0 else ()) for n in range(num_items)]
    content = ContentRule.fitted(items, 8)
    tokenizer = Tokenizer.built(TokenizerConfig(levels=levels, codes=4, content_dim=8, iterations=3), content.vectors(items))
    torch.manual_seed(seed)
    decoder = Decoder(
        DecoderConfig(width=16, layers=1, heads=2, history=HISTORY, features=FEATURES),
        centroids=tokenizer.centroids,
        content_RC=torch.from_numpy(np.concatenate([np.zeros((1, 8), np.float32), content.vectors(items)])),
        num_kinds=NUM_KINDS,
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    retired_N = random.random(num_items) < 0.2
    followed = SuccessorCounts()
    followed.add(*random.integers(0, num_items + 1, (2, 3 * num_items)), np.ones(3 * num_items, np.float32))
    return Artifact(
        decoder=decoder.eval(),
        tokenizer=tokenizer,
        content=content,
        item_ids=tuple(item.item_id for item in items),
        retired_N=retired_N,
        trie=Trie.built(tokenizer.ids_NK, retired_N),
        followed=followed,
        facts={"policy_version": version, "trained_through_ms": 60_000},
    )


def model_of(artifact: Artifact) -> Model:
    alive_R = np.concatenate([[False], ~artifact.retired_N])
    return Model(artifact.decoder, artifact.trie, novelty(artifact.decoder, len(alive_R)), alive_R, artifact.followed.frozen(len(alive_R)))


def flip(path: Path, at: int) -> None:
    """Another byte in place of one of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def vouching_for(directory: Path, name: str) -> str:
    """The manifest, with the digest of this file as it is now."""
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"][name] = digest_of((directory / name).read_bytes())
    return json.dumps(manifest)


@pytest.mark.parametrize("levels", [1, 3])
def test_what_is_read_draws_and_scores_as_what_was_written(tmp_path: Path, levels: int) -> None:
    written = random_artifact(levels, levels=levels)
    digest = write(written, tmp_path / "v")
    found = read(tmp_path / "v")
    assert digest == digest_of((tmp_path / "v" / MANIFEST).read_bytes())
    before, after = model_of(written), model_of(found)
    requests = random_requests(1, before, batch=20, slots=5)
    drawn, again = requests.drawn_by(before.generator), requests.drawn_by(after.generator)
    assert (drawn.item_BS > 0).sum() > 20
    assert drawn.item_BS.tobytes() == again.item_BS.tobytes()
    assert drawn.logprob_BS.tobytes() == again.logprob_BS.tobytes()
    assert rescored(before, requests, drawn.item_BS).tobytes() == rescored(after, requests, drawn.item_BS).tobytes()
    assert weights_digest(found.decoder) == weights_digest(written.decoder)
    assert (found.item_ids, found.facts) == (written.item_ids, written.facts)
    assert not found.decoder.training


def test_a_version_read_again_goes_on_with_ids_and_content_as_before(tmp_path: Path) -> None:
    written = random_artifact(2)
    write(written, tmp_path / "v")
    found = read(tmp_path / "v")
    new = [ItemText("new", title="title 3 again"), ItemText("other", embedding=(1.0, 2.0))]
    assert found.content.vectors(new).tobytes() == written.content.vectors(new).tobytes()
    ids = [artifact.tokenizer.append(artifact.content.vectors(new)).tolist() for artifact in (written, found)]
    assert ids[0] == ids[1]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write(random_artifact(3), tmp_path / "a") == write(random_artifact(3), tmp_path / "b")
    assert write(random_artifact(4), tmp_path / "c") != write(random_artifact(3), tmp_path / "d")


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    write(random_artifact(), tmp_path / "7")
    size = (tmp_path / "7" / name).stat().st_size
    for at in (0, size // 2, size - 1):
        flip(tmp_path / "7" / name, at)
        with pytest.raises(BadArtifact, match=rf"7: {name} has digest [0-9a-f]{{12}}, the manifest says [0-9a-f]{{12}}"):
            read(tmp_path / "7")
        flip(tmp_path / "7" / name, at)
    read(tmp_path / "7")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_missing_is_noticed(tmp_path: Path, name: str) -> None:
    write(random_artifact(), tmp_path / "7")
    path = tmp_path / "7" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadArtifact, match=f"7: {name} has digest"):
        read(tmp_path / "7")
    path.unlink()
    with pytest.raises(BadArtifact, match=f"7: {name} is missing"):
        read(tmp_path / "7")


def test_a_version_without_a_manifest_was_never_finished(tmp_path: Path) -> None:
    write(random_artifact(), tmp_path / "7")
    (tmp_path / "7" / MANIFEST).unlink()
    with pytest.raises(BadArtifact, match=rf"7: no {MANIFEST}: it was never finished"):
        read(tmp_path / "7")
    with pytest.raises(BadArtifact, match="8: no"):
        read(tmp_path / "8")


@pytest.mark.parametrize("broken", [b"", b"{", b"\xff\xfe"])
def test_a_manifest_that_is_no_json_is_named(tmp_path: Path, broken: bytes) -> None:
    write(random_artifact(), tmp_path / "7")
    (tmp_path / "7" / MANIFEST).write_bytes(broken)
    with pytest.raises(BadArtifact, match=rf"7: {MANIFEST} is not JSON"):
        read(tmp_path / "7")


@pytest.mark.parametrize(
    ("said", "why"), [({"format": FORMAT + 1}, ": a newer program wrote it"), ({"format": "1"}, ""), ({}, ""), ([], "")]
)
def test_another_format_is_refused_before_anything_is_opened(tmp_path: Path, said: object, why: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / MANIFEST).write_text(json.dumps(said))
    with pytest.raises(BadArtifact, match=rf"7: format {said['format'] if said else None}; this program reads {FORMAT}{why}$"):
        read(tmp_path / "7")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_version_is_refused(tmp_path: Path, name: str) -> None:
    """As large as its own and whole in itself: it is the digest that tells."""
    write(random_artifact(1), tmp_path / "7")
    write(random_artifact(2, prefix="other "), tmp_path / "8")
    shutil.copy(tmp_path / "8" / name, tmp_path / "7" / name)
    with pytest.raises(BadArtifact, match=f"7: {name} has digest"):
        read(tmp_path / "7")


@pytest.mark.parametrize("name", ["model.pkl", "index.safetensors", ".hidden"])
def test_a_file_that_is_no_part_of_a_version_is_refused_whether_the_manifest_names_it_or_not(tmp_path: Path, name: str) -> None:
    write(random_artifact(), tmp_path / "7")
    (tmp_path / "7" / name).write_bytes(PICKLE)
    for manifest in ((tmp_path / "7" / MANIFEST).read_text(), vouching_for(tmp_path / "7", name)):
        (tmp_path / "7" / MANIFEST).write_text(manifest)
        with pytest.raises(BadArtifact, match=f"7: {name} is no part of a version; it must hold {MANIFEST}"):
            read(tmp_path / "7")
    (tmp_path / "7" / name).unlink()
    with pytest.raises(BadArtifact, match=f"7: {name} is no part of a version"):
        read(tmp_path / "7")


@pytest.mark.parametrize("name", ["items.safetensors", "trie.safetensors", "weights.safetensors"])
@pytest.mark.parametrize("broken", [PICKLE, b"", b"\xff" * 64])
def test_what_is_no_safetensors_is_refused_though_the_manifest_vouches_for_it(tmp_path: Path, name: str, broken: bytes) -> None:
    write(random_artifact(), tmp_path / "7")
    (tmp_path / "7" / name).write_bytes(broken)
    with pytest.raises(BadArtifact, match=f"7: {name} has digest"):
        read(tmp_path / "7")
    (tmp_path / "7" / MANIFEST).write_text(vouching_for(tmp_path / "7", name))
    with pytest.raises(BadArtifact, match=f"7: {name} is no safetensors file"):
        read(tmp_path / "7")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("items", lambda a: a | {"ids": a["ids"][:-1]}, r"shape of ids is \(39, 2\); 40 items in the vocabulary.* make it \(40, 2\)"),
        ("items", lambda a: a | {"ids": a["ids"][:, :1]}, r"shape of ids is \(40, 1\)"),
        ("items", lambda a: a | {"ids": a["ids"] + [[4, 0]]}, "ids hold codes outside"),
        ("items", lambda a: a | {"ids": a["ids"] - [[0, 1]]}, "ids hold codes outside"),
        ("items", lambda a: a | {"retired": a["retired"][1:]}, "number of retired is 39"),
        ("weights", lambda a: a | {"centroids_0": a["centroids_0"][1:]}, r"number of centroids is \[3\]"),
        ("items", lambda a: {key: a[key] for key in a if key != "text_mean"}, "text_mean"),
        ("trie", lambda a: a | {"codes.0": a["codes.0"][::-1]}, "the trie is of another version"),
        ("trie", lambda a: a | {"item_of_leaf": a["item_of_leaf"][::-1]}, "the trie is of another version"),
        ("trie", lambda a: {key: a[key] for key in a if key != "alive"}, "alive"),
        ("weights", lambda a: a | {"content_RC": np.concatenate([a["content_RC"]] * 2)}, "rows of the weights is 2048; .* make it 1024"),
        ("weights", lambda a: a | {"leaf_bias": a["leaf_bias"][1:]}, "leaf_bias"),
        ("weights", lambda a: {key: a[key] for key in a if key != "nothing"}, "nothing"),
    ],
)
def test_files_that_speak_of_other_items_are_refused(
    tmp_path: Path, name: str, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], message: str
) -> None:
    write(random_artifact(), tmp_path / "7")
    path = tmp_path / "7" / f"{name}.safetensors"
    save_file({key: np.ascontiguousarray(array) for key, array in change(load_file(path)).items()}, path)
    (tmp_path / "7" / MANIFEST).write_text(vouching_for(tmp_path / "7", path.name))
    with pytest.raises(BadArtifact, match=f"7: its files do not fit together: .*{message}"):
        read(tmp_path / "7")


def test_a_catalogue_that_grew_beyond_the_first_table_is_read(tmp_path: Path) -> None:
    written = random_artifact(num_items=1_023)
    assert len(written.decoder.content_RC) == 1_024
    more = random_artifact(num_items=1_024)
    assert len(more.decoder.content_RC) == 2_048
    for name, artifact in (("7", written), ("8", more)):
        write(artifact, tmp_path / name)
        assert weights_digest(read(tmp_path / name).decoder) == weights_digest(artifact.decoder)


def test_sizes_are_those_of_all_files(tmp_path: Path) -> None:
    write(random_artifact(), tmp_path / "7")
    assert size_bytes(tmp_path / "7") == {path.name: len(path.read_bytes()) for path in (tmp_path / "7").iterdir()}


def test_the_manifest_names_every_other_file(tmp_path: Path) -> None:
    write(random_artifact(), tmp_path / "7")
    named = verified_manifest(tmp_path / "7")["files"]
    assert sorted(named) == FILES
    assert sorted(path.name for path in (tmp_path / "7").iterdir()) == sorted([*FILES, MANIFEST])


def test_the_digest_of_weights_tells_one_number_from_another() -> None:
    decoder = random_artifact(5).decoder
    before = weights_digest(decoder)
    assert before == weights_digest(random_artifact(5).decoder)
    with torch.no_grad():
        decoder.leaf_bias[3] += 1e-6
    assert weights_digest(decoder) != before
