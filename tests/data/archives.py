"""Tar archives for tests, and what an archive may suffer."""

import io
import tarfile

from PIL import Image


def png(number):
    out = io.BytesIO()
    Image.new("RGB", (3, 3), (number % 256, number // 256, 0)).save(out, "PNG")
    return out.getvalue()


def tar(path, members, fmt=tarfile.GNU_FORMAT):
    path.write_bytes(tar_bytes(members, fmt))
    return path


def tar_bytes(members, fmt=tarfile.GNU_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                archive.addfile(info)
    return out.getvalue()


def pairs(count, start=0):
    for i in range(start, start + count):
        yield f"{i:05d}.png", png(i)
        yield f"{i:05d}.txt", f"picture {i}".encode()
