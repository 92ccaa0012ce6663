"""IDX files, as MNIST is published."""

import gzip


def idx(array):
    """The bytes of a file: two zeros, the type, the dimensions, their sizes, the numbers."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def write_idx(folder, images, labels, prefix="train", packed=True):
    """Pictures uint8 `[n, height, width]` and their classes `[n]`; gives the folder."""
    pack, end = (gzip.compress, ".gz") if packed else (bytes, "")
    (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(idx(images)))
    (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels)))
    return folder
