"""Areas of a drawing in layers: what its lines enclose, which are its outline, what is hair."""

import numpy as np
from scipy import ndimage

_TOUCHING = np.ones((3, 3), int)  # pixels touch by a side or a corner


def areas_of(fills: np.ndarray, lines: np.ndarray, hair: np.ndarray) -> np.ndarray:
    """Finds the holes of a drawing, its outline and its hair.

    Args:
        fills: the drawing without its lines, u8 `[side, side, 4]`.
        lines: these alone.
        hair: the hair alone, which a hat or a face in `fills` may hide.

    Returns:
        u8 `[side, side, 4]`: which hole, from 1 (an empty area that lines enclose, out to the
        middle of these lines; 0 is none); 255 where a line meets the outside, directly or through
        other lines; 255 where hair is seen; and nothing.
    """
    fill, line = fills[..., 3], lines[..., 3]
    labels, count = ndimage.label(np.maximum(fill, line) < 128)
    is_hole = np.ones(count + 1, bool)
    is_hole[0] = False
    is_hole[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    outside = (labels > 0) & ~is_hole[labels]
    holes = np.minimum(np.cumsum(is_hole) * is_hole, 255)[labels]
    parts, count = ndimage.label(line >= 32, _TOUCHING)
    meets = np.zeros(count + 1, bool)
    meets[parts[_grown(outside)]] = True
    meets[0] = False
    differs = np.abs(fills[..., :3].astype(int) - hair[..., :3]).max(axis=-1)
    out = np.zeros((*fill.shape, 4), np.uint8)
    out[..., 0] = np.where(fill < 128, _grown(holes), 0)
    out[..., 1] = 255 * meets[parts]
    out[..., 2] = 255 * ((hair[..., 3] >= 128) & (fill >= 128) & (differs < 24))
    return out


def _grown(areas: np.ndarray) -> np.ndarray:
    """Areas by number, or yes and no, one pixel larger to each side."""
    return ndimage.grey_dilation(areas, footprint=ndimage.generate_binary_structure(2, 1))
