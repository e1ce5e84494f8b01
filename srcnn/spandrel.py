"""Makes the networks of this package known to spandrel, by which chaiNNer, ComfyUI and others load models.

    import spandrel, srcnn.spandrel
    srcnn.spandrel.install()
    spandrel.ModelLoader().load_from_file("srcnn-915-q20.safetensors")
"""

from __future__ import annotations

from pathlib import Path

import torch

from srcnn.models.base import Network
from srcnn.models.export import PhotoNetwork
from srcnn.models.srcnn import SRCNN
from srcnn.models.unet import UNet
from srcnn.models.wrapped import OUR_IDS
from srcnn.runtime.extras import extra

KEYS = {  # of the tensors that tell which network a file is of
    SRCNN: ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "conv3.weight", "conv3.bias"),
    UNet: ("head.weight", "tail.weight", "bottom.0.conv1.weight", "bottom.0.conv2.weight"),
}


def install() -> None:
    """Registers SRCNN and U-Net in `spandrel.MAIN_REGISTRY`; a second call changes nothing.

    They take and give RGB, as `srcnn.models.export.PhotoNetwork` does, whatever they were trained for: (N, 3, H, W) in
    [0, 1]. A JPEG's quality, which a conditioned network can be told, is unknown to them, and weights for
    super-resolution expect a photo that is enlarged already. Files are told by their tensors alone: of networks with a
    residual connection or in YCbCr, those written before `Network.saved_state` gave them a mark are taken for networks
    without; load such a file here and save it again.

    Raises:
        UserError: the package spandrel is missing.
    """
    with extra("models"):
        import spandrel

    class Ours(spandrel.Architecture[PhotoNetwork]):  # type: ignore[misc]
        """The networks of one class of this package."""

        def __init__(self, kind: type[Network]) -> None:
            keys, name = set(KEYS[kind]), kind.__name__
            super().__init__(id=f"{OUR_IDS}{name}", name=name, detect=lambda state: keys <= state.keys())
            self.kind = kind

        def load(self, state_dict: dict[str, torch.Tensor]) -> spandrel.ImageModelDescriptor[PhotoNetwork]:
            state = {name: tensor.float() for name, tensor in state_dict.items()}
            network = self.kind.from_state(state, {}, Path("these weights"))
            model = PhotoNetwork(network)
            size = spandrel.SizeRequirements(minimum=network.min_pixels)
            return spandrel.ImageModelDescriptor(
                model, model.state_dict(), self, "Restoration", [network.name, network.summary], supports_half=True,
                supports_bfloat16=False, scale=1, input_channels=3, output_channels=3, size_requirements=size)

    for kind in KEYS:
        spandrel.MAIN_REGISTRY.add(spandrel.ArchSupport.from_architecture(Ours(kind)), ignore_duplicates=True)
