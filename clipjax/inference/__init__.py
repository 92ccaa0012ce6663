"""Using a trained model on one's own pictures and texts, and in one's own loop."""

from clipjax.inference.head import ZeroShotHead, ZeroShotScores
from clipjax.inference.model import ImageLike, Model

__all__ = ["ImageLike", "Model", "ZeroShotHead", "ZeroShotScores"]
