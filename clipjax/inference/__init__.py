"""Using a trained model on one's own pictures and texts, and in one's own loop."""

from clipjax.inference.head import ZeroShotHead, ZeroShotScores
from clipjax.inference.model import ImageLike, Model

Encoder = Model  # its name before `clipjax.load`

__all__ = ["Encoder", "ImageLike", "Model", "ZeroShotHead", "ZeroShotScores"]
