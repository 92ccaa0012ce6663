"""Exact contrastive losses at any batch size: dense references and tiled layouts over a mesh."""

from clipjax.losses.clip import clip_loss
from clipjax.losses.make_loss import LOSSES, PAIR_RULES, choose_layout, make_loss
from clipjax.losses.siglip import siglip_loss

__all__ = ["LOSSES", "PAIR_RULES", "choose_layout", "clip_loss", "make_loss", "siglip_loss"]
