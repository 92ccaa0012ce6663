"""Using a trained model on one's own pictures and texts; a checkpoint is all it takes."""

from clipjax.inference.encoder import Encoder, ImageLike

__all__ = ["Encoder", "ImageLike"]
