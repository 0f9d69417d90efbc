"""JPEG frames decoded where the encoder computes: workers only read files, a GPU unpacks, resizes and crops them.

Through torchvision: nvJPEG on a GPU, libjpeg-turbo on a CPU, whose pixels differ from each other's and from Pillow's by
a few levels. Which decoder made a store is therefore a param of the encoder and not a machine's setting.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from framefold.data.decoding import Decoded, Files
from framefold.data.frames import FrameError, decode_jpeg
from framefold.data.images import Preprocess
from framefold.data.workers import batched

# of the device, not of an image: memory, a broken kernel (the latter has a type of its own in newer versions only)
DEVICE_ERRORS = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
VIDEOS_AT_ONCE = 8  # decoded by one call: enough images for a GPU's decoders


class JpegDecoder:
    """Files of videos to pixels on `device`, fitted as `Preprocess.pixels` does it. Holds a few videos at a time."""

    def __init__(self, preprocess: Preprocess, device: torch.device):
        self.preprocess, self.device = preprocess, device

    def decode(self, videos: Iterable[Files]) -> Iterator[Decoded]:
        """Yield one Decoded per video, in order; its pixels are a tensor on the device."""
        for some in batched(videos, VIDEOS_AT_ONCE):
            decoded = iter(self._images([data for video in some for _, data in video.images]))
            for video in some:
                yield self._fitted(video, [next(decoded) for _ in video.images])

    def _fitted(self, video: Files, decoded: Sequence[Tensor | None]) -> Decoded:
        broken = [
            (member, "not a whole image")
            for (member, _), image in zip(video.images, decoded, strict=True)
            if image is None
        ]
        size = self.preprocess.image_size
        images = [self.fit(image) for image in decoded if image is not None]
        empty = torch.empty((0, size, size, 3), dtype=torch.uint8, device=self.device)
        return Decoded(torch.stack(images) if images else empty, [*video.problems, *broken])

    def _images(self, files: list[bytes]) -> list[Tensor | None]:
        """uint8 [3, H, W] of each file; None for a broken one. One bad file fails a call, so then each has its own."""
        try:
            return list(self._decode(files)) if files else []
        except DEVICE_ERRORS:
            raise
        except RuntimeError:
            return [self._one(data) for data in files]

    def _one(self, data: bytes) -> Tensor | None:
        """What torchvision can't decode, Pillow may: only what neither can is broken."""
        try:
            return self._decode([data])[0]
        except DEVICE_ERRORS:
            raise
        except RuntimeError:
            pass
        try:
            image = np.array(decode_jpeg(data, self.preprocess.image_size))
        except FrameError:
            return None
        return torch.from_numpy(image).permute(2, 0, 1).to(self.device)

    def _decode(self, files: list[bytes]) -> list[Tensor]:
        from torchvision.io import ImageReadMode
        from torchvision.io import decode_jpeg as decode_on_device

        tensors = [torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for data in files]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision announces its successor
            images: list[Tensor] = decode_on_device(tensors, mode=ImageReadMode.RGB, device=self.device)
        return images

    def fit(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W] to [image_size, image_size, 3]: to the sizes and with the crop of `Preprocess.fit`."""
        (width, height), (left, top) = self.preprocess.geometry(image.shape[2], image.shape[1])
        size, mode = self.preprocess.image_size, self.preprocess.interpolation
        resized = torch.nn.functional.interpolate(image[None].float(), (height, width), mode=mode, antialias=True)
        cropped = resized[0, :, top : top + size, left : left + size]
        return cropped.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
