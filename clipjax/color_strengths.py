"""How strongly colours are jittered: one table for the host's transform and the device's layer."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from clipjax.ranges import FRACTION, STRENGTH, Ranged, Rule, Span


@dataclasses.dataclass(frozen=True)
class ColorStrengths(Ranged):
    """Fields of a colour jitter: hue, saturation, gain, offset and contrast, and how often.

    Args:
        hue: largest turn about the grey axis either way, in degrees.
        saturation: lowest and highest factor of the distance from grey.
        gain: largest relative gain of all channels together, either way.
        channel_gain: largest relative gain of each channel, either way.
        offset: largest offset of each channel either way, in values of 0..255.
        contrast: largest relative change either way of the distance from each channel's mean,
            behind all others: `tf.image.random_contrast` (torchvision: from the mean luma).
        probability: how often a picture's colours are changed at all.

    Raises:
        FieldError: names the field, what was found and what is allowed.
    """

    hue: float = 12.0
    saturation: tuple[float, float] = (0.6, 1.4)
    gain: float = 0.15
    channel_gain: float = 0.08
    offset: float = 15.0
    contrast: float = 0.0
    probability: float = 1.0

    ranges: ClassVar[Mapping[str, Rule]] = {
        "hue": STRENGTH,
        "saturation": Span(),
        "gain": STRENGTH,
        "channel_gain": STRENGTH,
        "offset": STRENGTH,
        "contrast": FRACTION,
        "probability": FRACTION,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "saturation", tuple(self.saturation))
