"""The source project's dataset: a folder of 256x128 PNG pictures, left clean, right degraded, opened with Pillow."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from timing import Batches, main, read_pairs
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor


class PairPictures(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One picture each time; both halves as float32 (1, 128, 128), range [0, 1]."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).glob("*.png"))
        self.to_tensor = ToTensor()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = Image.open(self.paths[index])
        width, height = picture.size
        clean = picture.crop((0, 0, width // 2, height))
        degraded = picture.crop((width // 2, 0, width, height))
        return self.to_tensor(clean), self.to_tensor(degraded)


def prepare(source: Path, out: Path) -> None:
    out.mkdir(parents=True)
    for index, (clean, degraded) in enumerate(read_pairs(source)):
        picture = Image.new("L", (clean.shape[1] * 2, clean.shape[0]))
        picture.paste(Image.fromarray(clean), (0, 0))
        picture.paste(Image.fromarray(degraded), (clean.shape[1], 0))
        picture.save(out / f"{index:06d}.png")


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    loader = DataLoader(
        PairPictures(location),
        batch_size,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    while True:
        yield from loader


if __name__ == "__main__":
    main(stream, prepare)
