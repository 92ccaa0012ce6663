"""Areas of a drawing in fill and lines: what the lines enclose, and which are its outline."""

import numpy as np
from scipy import ndimage

_TOUCHING = np.ones((3, 3), int)  # pixels touch by a side or a corner


def areas_of(fill: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Finds the holes of a drawing and its outline.

    Args:
        fill: alpha of the drawing without its lines, u8 `[side, side]`.
        line: alpha of the lines.

    Returns:
        u8 `[side, side, 4]`: which hole, from 1 (an empty area that lines enclose, out to the
        middle of these lines; 0 is none); 255 where a line meets the outside, directly or through
        other lines; and twice nothing.
    """
    labels, count = ndimage.label(np.maximum(fill, line) < 128)
    is_hole = np.ones(count + 1, bool)
    is_hole[0] = False
    is_hole[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    outside = (labels > 0) & ~is_hole[labels]
    holes = np.minimum(np.cumsum(is_hole) * is_hole, 255)[labels]
    lines, count = ndimage.label(line >= 32, _TOUCHING)
    meets = np.zeros(count + 1, bool)
    meets[lines[_grown(outside)]] = True
    meets[0] = False
    out = np.zeros((*fill.shape, 4), np.uint8)
    out[..., 0] = np.where(fill < 128, _grown(holes), 0)
    out[..., 1] = 255 * meets[lines]
    return out


def _grown(areas: np.ndarray) -> np.ndarray:
    """Areas by number, or yes and no, one pixel larger to each side."""
    return ndimage.grey_dilation(areas, footprint=ndimage.generate_binary_structure(2, 1))
