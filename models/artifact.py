"""One immutable, digested version on disk: weights, tokenizer, vocabulary and counts, as safetensors and JSON.

Knows nothing of when or why it was made, nor of who serves it. `manifest.json` is written last and holds the SHA-256 of
every other file; what does not verify is not opened.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from models.content import ContentRule, FloatArray
from models.decoder import Decoder, DecoderConfig
from models.tokenizer import Tokenizer, TokenizerConfig
from models.trie import Trie

FORMAT = 1
MANIFEST = "manifest.json"


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
    exposures_R: FloatArray
    """How often each item row was shown by this variant; row 0 is unused."""
    facts: Mapping[str, Any]
    """What the maker says of it (version, times, offsets): JSON, covered by the digest."""

    def trie(self) -> Trie:
        """The tree of its ids."""
        return Trie.built(self.tokenizer.ids_NK, self.retired_N)


def write(artifact: Artifact, directory: Path) -> str:
    """Write into an empty directory, files synced, manifest last; returns the digest (SHA-256 of the manifest)."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: _numpy(tensor) for name, tensor in artifact.decoder.state_dict().items()}
    arrays = {
        "ids": artifact.tokenizer.ids_NK,
        "retired": artifact.retired_N,
        "exposures": artifact.exposures_R,
        "text_mean": artifact.content.text_mean,
        "embedding_mean": artifact.content.embedding_mean,
    }
    arrays |= {f"centroids.{level}": centroids for level, centroids in enumerate(artifact.tokenizer.centroids)}
    save_file(weights, directory / "weights.safetensors")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / "items.safetensors")
    (directory / "vocabulary.json").write_text(json.dumps(artifact.item_ids, ensure_ascii=False))
    manifest = {
        "format": FORMAT,
        "decoder": asdict(artifact.decoder.config) | {"codes": artifact.decoder.codes, "num_kinds": artifact.decoder.num_kinds},
        "tokenizer": asdict(artifact.tokenizer.config),
        "facts": dict(artifact.facts),
        "files": {path.name: digest_of(path.read_bytes()) for path in sorted(directory.iterdir())},
    }
    text = json.dumps(manifest, sort_keys=True, indent=1)
    (directory / MANIFEST).write_text(text)
    return digest_of(text.encode())


def read(directory: Path) -> Artifact:
    """Verify and load. BadArtifact when a file is missing, changed or of a newer format."""
    manifest = verified_manifest(directory)
    arrays = load_file(directory / "items.safetensors")
    tokenizer_config = TokenizerConfig(**manifest["tokenizer"])
    centroids = [arrays[f"centroids.{level}"] for level in range(tokenizer_config.levels - 1)]
    sizes = dict(manifest["decoder"])
    codes, num_kinds = sizes.pop("codes"), sizes.pop("num_kinds")
    weights = {name: torch.from_numpy(array) for name, array in load_file(directory / "weights.safetensors").items()}
    decoder = Decoder(DecoderConfig(**sizes), codes=codes, content_RC=weights["content_RC"], num_kinds=num_kinds)
    decoder.load_state_dict(weights)
    return Artifact(
        decoder=decoder.eval(),
        tokenizer=Tokenizer(tokenizer_config, centroids, arrays["ids"]),
        content=ContentRule(arrays["text_mean"], arrays["embedding_mean"]),
        item_ids=tuple(json.loads((directory / "vocabulary.json").read_text())),
        retired_N=arrays["retired"],
        exposures_R=arrays["exposures"],
        facts=manifest["facts"],
    )


def verified_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, after every file it names was found with the digest it names."""
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        raise BadArtifact(f"{directory.name}: no {MANIFEST}: it was never finished") from None
    except ValueError as error:
        raise BadArtifact(f"{directory.name}: {MANIFEST} is not JSON: {error}") from None
    if manifest.get("format") != FORMAT:
        raise BadArtifact(f"{directory.name}: format {manifest.get('format')}; this program reads {FORMAT}")
    for name, digest in manifest["files"].items():
        try:
            found = digest_of((directory / name).read_bytes())
        except FileNotFoundError:
            raise BadArtifact(f"{directory.name}: {name} is missing") from None
        if found != digest:
            raise BadArtifact(f"{directory.name}: {name} has digest {found[:12]}, the manifest says {digest[:12]}")
    return manifest


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


def _numpy(tensor: Tensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
