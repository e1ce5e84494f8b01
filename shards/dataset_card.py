"""The dataset card, README.md beside the splits, by which Hugging Face datasets and hub read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml

from srcnn.data.manifest import Manifest
from srcnn.runtime.storage import Storage

CARD = "README.md"
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
         (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
CARD_TEXT = """---
{header}---

# Tiles of photographs, clean{and_degraded}

{count} of {shape} pixels, uint8, as WebDataset shards made by `python -m shards`. Samples have the members {members}.
The photographs, and what may be done with them: to be filled in, here and in `license` above.

| split | samples | photos | shards | MB | PSNR of the degraded tiles, dB | hash of the manifest |
|---|---:|---:|---:|---:|---:|---|
{rows}

How they were made; Pillow {versions[pillow]}, libjpeg {versions[libjpeg]}:

```yaml
{settings}```

`manifest.json`, `index.npy` and `photos.jsonl` in each folder hold the hash of every shard, sample and photo;
`srcnn verify-shards FOLDER` checks them.

```python
datasets.load_dataset(FOLDER)                             # streaming=True reads without a copy{other}
srcnn.PairStream(f"{{FOLDER}}/train", batch_size=64)        # shuffled, resumed exactly
srcnn.ShardDataset(f"{{FOLDER}}/train")[0]
```
"""


def make_dataset_card(manifests: Iterable[Manifest]) -> str:
    """The Markdown of the card of all splits that have samples, with the hub's YAML header."""
    splits = [manifest for manifest in manifests if manifest.num_samples]
    files = {manifest.split: {"split": manifest.split, "path": f"{manifest.split}/*.tar"} for manifest in splits}
    names: dict[tuple[str, ...], str] = {}  # of the configs; the splits of a config have equal members
    for manifest in splits:
        names.setdefault(manifest.members, manifest.split if names else "default")
    configs = [{"config_name": name, "data_files": [files[each.split] for each in splits if each.members == members]}
               for members, name in names.items()]
    total = sum(manifest.num_samples for manifest in splits)
    header = {
        "license": "unknown", "task_categories": ["image-to-image"],
        "tags": ["image-restoration", "webdataset", "srcnn"],
        "size_categories": [next((name for limit, name in SIZES if total < limit), "n>1T")], "configs": configs}
    is_config = len(names) > 1
    largest = max(splits, key=lambda manifest: len(manifest.members))
    return CARD_TEXT.format(
        header=yaml.safe_dump(header, sort_keys=False), and_degraded="" if largest.is_clean_only else " and degraded",
        count=f"{total:,} {'samples' if is_config else 'tiles' if largest.is_clean_only else 'pairs of tiles'}",
        shape="x".join(map(str, largest.tile_shape)), versions=largest.versions,
        members="; ".join(f"`{'`, `'.join(members)}`" + (f" ({name})" if is_config else "")
                          for members, name in names.items()),
        other="".join(f'\ndatasets.load_dataset(FOLDER, "{name}")' for name in [*names.values()][1:]),
        rows="\n".join(map(_row, splits)), settings=yaml.safe_dump(largest.config))


def _row(manifest: Manifest) -> str:
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    psnr = "" if manifest.is_clean_only else f"{manifest.degraded_psnr:.2f}"
    photos = manifest.photos.num_photos if manifest.photos else ""
    return (f"| {manifest.split} | {manifest.num_samples:,} | {photos} | {len(manifest.shards)} | {size:,.1f} | {psnr} "
            f"| {manifest.hash()} |")


def write_dataset_card(out: Storage, manifests: Mapping[str, Manifest]) -> bool:
    """Writes the card if there is none; returns whether the card there tells the hashes of these manifests."""
    hashes = [manifest.hash() for manifest in manifests.values() if manifest.num_samples]
    if not hashes:
        return True
    if CARD not in out.names():
        with out.create(CARD) as file:
            file.write(make_dataset_card(manifests.values()).encode())
    text = out.read(CARD).decode(errors="replace")
    return all(each in text for each in hashes)
