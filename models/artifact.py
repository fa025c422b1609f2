"""One immutable, digested version on disk: weights, tokenizer, vocabulary and counts, as safetensors and JSON.

Knows nothing of when or why it was made, nor of who serves it. `manifest.json` is written last and holds the SHA-256 of
every other file; what does not verify is not opened, what is not safetensors is not read, and what is opened must fit together.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from models.content import ContentRule, Projection
from models.decoder import Decoder, DecoderConfig, centroids_name
from models.embeddings import capacity_for
from models.successors import SuccessorCounts
from models.tokenizer import Tokenizer, TokenizerConfig
from models.trie import Trie

FORMAT = 10
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
TENSORS = ("items", "trie", "weights")
"""Each a file `<name>.safetensors`."""
FILES = (VOCABULARY, *(f"{name}.safetensors" for name in TENSORS))
"""All that a version consists of, beside the manifest."""

Arrays = dict[str, npt.NDArray[Any]]


class BadArtifact(Exception):
    """A version directory that can't be trusted; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Artifact:
    """Everything that a probability depends on. `item_ids[i]` is item row i + 1."""

    decoder: Decoder
    tokenizer: Tokenizer
    content: ContentRule
    item_ids: tuple[str, ...]
    retired_N: npt.NDArray[np.bool_]
    trie: Trie
    """The tree of its ids."""
    followed: SuccessorCounts
    """What followed what."""
    facts: Mapping[str, Any]
    """What the maker says of it (version, times, offsets): JSON, covered by the digest."""


def write(artifact: Artifact, directory: Path) -> str:
    """Write into an empty directory, manifest last; returns the digest (SHA-256 of the manifest)."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        "items": _item_arrays(artifact),
        "trie": artifact.trie.tensors(),
        "weights": {name: _numpy(tensor) for name, tensor in artifact.decoder.state_dict().items()},
    }
    for name in TENSORS:
        save_arrays(tensors[name], directory / f"{name}.safetensors")
    (directory / VOCABULARY).write_text(json.dumps(artifact.item_ids, ensure_ascii=False))
    decoder = artifact.decoder
    manifest = {
        "format": FORMAT,
        "decoder": asdict(decoder.config) | {"codes": decoder.codes, "num_kinds": decoder.num_kinds, "against": decoder.affinity.against},
        "tokenizer": asdict(artifact.tokenizer.config),
        "facts": dict(artifact.facts),
        "files": {name: _file_digest(directory / name) for name in FILES},
    }
    text = json.dumps(manifest, sort_keys=True, indent=1)
    (directory / MANIFEST).write_text(text)
    return digest_of(text.encode())


def save_arrays(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Write a safetensors file. OSError when the disk doesn't take it."""
    try:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def read(directory: Path) -> Artifact:
    """Verify, then open. BadArtifact when a file is missing, changed or too many, is no safetensors, or speaks of other items."""
    manifest = verified_manifest(directory)
    tensors = {name: _opened(directory / f"{name}.safetensors") for name in TENSORS}
    try:
        item_ids = tuple(json.loads((directory / VOCABULARY).read_text()))
        return _assembled(manifest, item_ids, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadArtifact(f"{directory.name}: its files do not fit together: {' '.join(str(error).split())}") from error


def verified_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, after the directory was found to hold the files of a version and no others, with the digests it names."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        raise BadArtifact(f"{directory.name}: no {MANIFEST}: it was never finished") from None
    except ValueError as error:
        raise BadArtifact(f"{directory.name}: {MANIFEST} is not JSON: {error}") from None
    _refuse_other_formats(directory, manifest)
    there, named = {path.name for path in directory.iterdir()}, manifest.get("files")
    if not isinstance(named, dict) or not isinstance(manifest.get("facts"), dict):
        raise BadArtifact(f"{directory.name}: {MANIFEST} does not say what its files and facts are")
    for name in FILES:
        if name not in there:
            raise BadArtifact(f"{directory.name}: {name} is missing")
        found, said = _file_digest(directory / name), str(named.get(name))
        if found != said:
            raise BadArtifact(f"{directory.name}: {name} has digest {found[:12]}, the manifest says {said[:12]}")
    unexpected = sorted(there.union(named) - {MANIFEST, *FILES})
    if unexpected:
        raise BadArtifact(f"{directory.name}: {unexpected[0]} is no part of a version; it must hold {MANIFEST}, {', '.join(FILES)} only")
    return manifest


def size_bytes(directory: Path) -> dict[str, int]:
    """The size of each file of a version, by name."""
    return {name: (directory / name).stat().st_size for name in sorted((MANIFEST, *FILES))}


def digest_of(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def weights_digest(decoder: Decoder) -> str:
    """SHA-256 over the names and bytes of all weights, in order of name."""
    total = hashlib.sha256()
    for name, tensor in sorted(decoder.state_dict().items()):
        total.update(name.encode())
        total.update(_numpy(tensor).tobytes())
    return total.hexdigest()


def _item_arrays(artifact: Artifact) -> Arrays:
    return {
        "ids": artifact.tokenizer.ids_NK,
        "retired": artifact.retired_N,
        "followed": artifact.followed.key_P,
        "followed_counts": artifact.followed.count_P,
        "text_mean": artifact.content.text.mean_G,
        "text_basis": artifact.content.text.basis_GC,
        "embedding_mean": artifact.content.embedding.mean_G,
        "embedding_basis": artifact.content.embedding.basis_GC,
    }


def _refuse_other_formats(directory: Path, manifest: Any) -> None:
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found == FORMAT:
        return
    newer = isinstance(found, int) and found > FORMAT
    raise BadArtifact(f"{directory.name}: format {found}; this program reads {FORMAT}{': a newer program wrote it' if newer else ''}")


def _assembled(manifest: Mapping[str, Any], item_ids: tuple[str, ...], files: Mapping[str, Arrays]) -> Artifact:
    items, weights = files["items"], files["weights"]
    config, sizes = TokenizerConfig(**manifest["tokenizer"]), dict(manifest["decoder"])
    codes, num_kinds, against = (sizes.pop(name) for name in ("codes", "num_kinds", "against"))
    centroids = [weights[centroids_name(level)] for level in range(config.levels - 1)]
    _refuse_misfits(items, weights, (len(item_ids), config.levels), codes)
    trie = Trie.of_tensors(files["trie"], config.levels)
    if not trie.is_of(items["ids"]):
        raise ValueError("the trie is of another version: its leaves are not the ids")
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    decoder = Decoder(DecoderConfig(**sizes), centroids=centroids, content_RC=tensors["content_RC"], num_kinds=num_kinds, against=against)
    decoder.load_state_dict(tensors)
    return Artifact(
        decoder=decoder.eval(),
        tokenizer=Tokenizer(config, centroids, items["ids"]),
        content=ContentRule(
            Projection(items["text_mean"], items["text_basis"]), Projection(items["embedding_mean"], items["embedding_basis"])
        ),
        item_ids=item_ids,
        retired_N=items["retired"],
        trie=trie,
        followed=SuccessorCounts(items["followed"], items["followed_counts"]),
        facts=manifest["facts"],
    )


def _refuse_misfits(items: Arrays, weights: Arrays, shape: tuple[int, int], codes: Sequence[int]) -> None:
    """ValueError when the files, each whole, speak of other numbers of items or codes; `shape` is (N, K)."""
    num_items, _ = shape
    found_and_needed = {
        "shape of ids": (items["ids"].shape, shape),
        "number of retired": (len(items["retired"]), num_items),
        "rows of the weights": (len(weights["content_RC"]), capacity_for(num_items + 1)),
        "number of centroids": ([len(weights[centroids_name(level)]) for level in range(len(codes))], list(codes)),
    }
    for name, (found, needed) in found_and_needed.items():
        if found != needed:
            raise ValueError(
                f"{name} is {found}; {num_items} items in the vocabulary, {shape[1]} levels and codes {list(codes)} make it {needed}"
            )
    if (items["ids"] < 0).any() or (items["ids"][:, :-1] >= np.array(codes, np.int64)).any():
        raise ValueError(f"ids hold codes outside 0..{list(codes)}")


def _opened(path: Path) -> Arrays:
    try:
        arrays: Arrays = load_file(path)
    except SafetensorError as error:
        raise BadArtifact(f"{path.parent.name}: {path.name} is no safetensors file: {error}") from error
    return arrays


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numpy(tensor: Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
