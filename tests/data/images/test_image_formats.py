"""Formats of pictures: each is read from folders, tars, tables and Parquet, or counted by name."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import tar
from broken_pictures import (
    avif_bombs,
    codestream,
    grey_tiff,
    jpeg_2000_bombs,
    originals,
    other_bombs,
    scanned_jpeg,
    tiff_bombs,
    tiles_in_boxes,
)
from data_command import run
from PIL import ExifTags, Image, ImageOps

from clipjax.data import Preprocess, SampleError, decode_image, make_source
from clipjax.data.images import avif as image_avif
from clipjax.data.images import formats as image_formats
from clipjax.data.images import preprocess as module
from clipjax.data.images.formats import FORMATS, format_of
from clipjax.data.packing.packer import Packing, pack

pytestmark = pytest.mark.usefixtures("cache")
SIDE = 8


def picture():
    y, x = np.mgrid[:30, :40]
    return Image.fromarray(np.stack([6 * x, 8 * y, 3 * (x + y)], -1).astype(np.uint8))


def encoded(form, image=None, **options):
    out = io.BytesIO()
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}, "AVIF": {"quality": 100}}
    (image or picture()).save(out, form, **lossless.get(form, {}), **options)
    return out.getvalue()


def reason_of(data):
    with pytest.raises(SampleError) as caught:
        decode_image(data)
    assert caught.value.message
    return caught.value.reason


@pytest.mark.parametrize("form", [form.name for form in FORMATS])
def test_pixels_of_each_format(form):
    data = encoded(form)
    assert format_of(data).name == form
    away = np.asarray(decode_image(data)).astype(int) - np.asarray(picture())
    allowed = {"GIF": 40, "JPEG": 25, "AVIF": 25}.get(form, 0)
    assert np.abs(away).max() <= allowed and np.abs(away).mean() <= allowed / 4


def test_every_extension_is_read_wherever_pictures_stand(tmp_path, caplog):
    files = {ext: encoded(form.name) for form in FORMATS for ext in form.extensions}
    assert {"jfif", "tif", "tiff", "avif", "jp2", "ppm", "pgm"} <= files.keys()
    folder = tmp_path / "folder"
    folder.mkdir()
    members = []
    for ext, content in files.items():
        (folder / f"{ext}.{ext.upper()}").write_bytes(content)
        (folder / f"{ext}.txt").write_text(ext)
        members += [(f"{ext}.{ext.upper()}", content), (f"{ext}.txt", ext.encode())]
    tar(tmp_path / "a.tar", members)
    rows = "".join(f"{ext}.{ext.upper()},{ext}\n" for ext in files)
    (folder / "a.csv").write_text(f"image,text\n{rows}")
    table = {"image": list(files.values()), "text": list(files)}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    list(pack(make_source(f"csv:{folder}/a.csv"), tmp_path / "out", Packing(), workers=1))
    for spec in (
        f"folder:{folder}",
        f"tar:{tmp_path}/a.tar",
        f"csv:{folder}/a.csv",
        f"parquet:{tmp_path}/a.parquet",
        f"tar:{tmp_path}/out/*.tar",
    ):
        source = make_source(spec)
        found = {source[i]["text"]: source[i]["image"] for i in range(len(source))}
        assert found == files, spec
    assert all(Preprocess(SIDE)(content).shape == (SIDE, SIDE, 3) for content in files.values())
    assert "not used: 1 .csv" in caplog.text  # and no picture among them


@pytest.mark.parametrize("missing", ["AVIF", "JPEG2000", "TIFF"])
def test_a_format_that_this_pillow_lacks_is_counted_by_its_name(
    tmp_path, monkeypatch, missing, capsys
):
    (tmp_path / "1.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "2.png").write_bytes(encoded(missing))  # whatever it is called
    (tmp_path / "3.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for number in (1, 2, 3):
        (tmp_path / f"{number}.txt").write_text("x")
    feature = next(form.feature for form in FORMATS if form.name == missing)
    there = image_formats.features.get_supported()
    assert feature in there
    monkeypatch.setattr(
        image_formats.features, "get_supported", lambda: [f for f in there if f != feature]
    )
    image_formats.is_readable.cache_clear()
    try:
        assert run("check", f"folder:{tmp_path}", "--decode") == 1
    finally:
        image_formats.is_readable.cache_clear()
    told = capsys.readouterr().out
    assert "2 of 3 examples are unusable [image_no_decoder]: 2.png" in told
    assert f"the image is {missing}, which Pillow" in told and "pip install -U pillow" in told


def test_what_no_pillow_reads_is_named():
    for data, name in (
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a123", "JPEG XL"),
        (b"II+\0\x08\0\0\0", "BigTIFF"),
    ):
        with pytest.raises(
            SampleError, match=f"is {name}: convert it to one of JPEG, PNG"
        ) as caught:
            decode_image(data)
        assert caught.value.reason == "image_no_decoder"
    assert format_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf").name == "AVIF"


@pytest.mark.parametrize("form", ["TIFF", "AVIF"])
def test_pictures_are_turned_once(form):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        expected = np.asarray(ImageOps.exif_transpose(with_exif(exif))).astype(int)
        found = np.asarray(decode_image(encoded(form, exif=exif))).astype(int)
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 6, orientation


def with_exif(exif):
    image = picture()
    image.getexif().update(exif)
    return image


def test_modes_of_tiff_and_jpeg_2000():
    grey = np.asarray(picture().convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 99)
    for form in ("TIFF", "JPEG2000", "PPM"):
        assert (np.asarray(decode_image(encoded(form, deep)))[..., 0] == grey).all(), form
    ink = Image.new("CMYK", (5, 5), (0, 255, 255, 0))
    assert decode_image(encoded("TIFF", ink)).getpixel((2, 2)) == (255, 0, 0)
    alpha = picture()
    alpha.putalpha(77)
    for form in ("TIFF", "JPEG2000", "AVIF"):
        assert decode_image(encoded(form, alpha)).getpixel((9, 9))[3] == 77, form
    for mode, options in (("F", {}), ("I", {}), ("RGB", {"compression": "lzma"})):
        assert reason_of(encoded("TIFF", picture().convert(mode), **options)) == "image_format"
    tags = [bytes((6, 1, 3, 0, 1, 0, 0, 0, white)) for white in (1, 0)]  # which number is white
    assert tags[0] in (data := encoded("TIFF", deep))
    assert reason_of(data.replace(*tags)) == "image_format"
    light = decode_image(encoded("TIFF", picture().convert("L")).replace(*tags))
    assert (np.asarray(light)[..., 0] == 255 - grey).all()


def test_masks_beside_pictures_are_ignored_or_named(tmp_path, capsys):
    jpeg, mask = encoded("JPEG"), encoded("TIFF")
    tar(tmp_path / "a.tar", [("1.jpg", jpeg), ("1.tif", mask), ("1.txt", b"x")])
    source = make_source(f"tar:{tmp_path}/a.tar?ignore=tif")
    assert source[0]["image"] == jpeg
    with pytest.raises(SampleError, match=r"\.jpg and \.tif: .*\?ignore=tif") as caught:
        make_source(f"tar:{tmp_path}/a.tar")[0]
    assert caught.value.reason == "several_images"
    tar(tmp_path / "b.tar", [("1.jpg", jpeg), ("1.tif", b"II*\0broken"), ("1.txt", b"x")])
    assert run("check", f"tar:{tmp_path}/b.tar?ignore=tif", "--decode") == 0
    assert run("check", f"tar:{tmp_path}/b.tar", "--decode") == 1
    assert "unusable [several_images]: 1" in capsys.readouterr().out


# What may be refused without a decoder: nothing of it is opened, or none of its pixels decoded.


def opened_and_loaded(data, monkeypatch):
    """Says what of a picture was begun: "opened", "decoded"."""
    begun = []
    plain_open = Image.open

    def opened(*args, **kwargs):
        begun.append("opened")
        image = plain_open(*args, **kwargs)
        load = image.load

        def decoded():
            begun.append("decoded")
            return load()

        image.load = decoded
        return image

    with monkeypatch.context() as patch:
        patch.setattr(module.Image, "open", opened)
        try:
            decode_image(data)
            reason = None
        except SampleError as error:
            reason = error.reason
    return reason, begun


def test_bombs_are_refused_before_a_decoder_begins(monkeypatch):
    found = {**avif_bombs(), **tiff_bombs(), **jpeg_2000_bombs(), **other_bombs()}
    refused = {
        name: opened_and_loaded(data, monkeypatch)
        for name, (data, reasons) in found.items()
        if reasons & {"image_parts", "image_pixels"} or name.startswith("avif")
    }
    assert len(refused) > 30
    for name, (reason, begun) in refused.items():
        assert {reason} == found[name][1], name
        assert "decoded" not in begun and (reason != "image_parts" or not begun), name
        assert not (begun and name.startswith("avif")), name


def test_without_the_check_a_decoder_would_begin(monkeypatch):
    """Negative control."""
    tags, tiles = tiff_bombs()["tiff, a tag twice"][0], codestream((65, 65), tile=(1, 1))
    for data in (tags, tiles, *tiles_in_boxes().values()):
        assert opened_and_loaded(data, monkeypatch) == ("image_parts", [])
        with monkeypatch.context() as patch:
            patch.setattr(module, "check_parts", lambda name, data: None)
            assert "decoded" in opened_and_loaded(data, monkeypatch)[1]


def test_libtiff_counts_the_scans_of_a_jpeg_in_a_tiff():
    for scans, found in ((90, None), (150, "image_undecodable")):
        data = grey_tiff((80, 80), scanned_jpeg(80, scans), compression=7)
        assert (reason_of(data) if found else decode_image(data).size) == (found or (80, 80))


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (500, 3), (129, 257)])
def test_the_size_that_codes_of_avif_say(size, monkeypatch):
    """Pillow's encoder is the reference: one pixel less than it wrote is not allowed."""
    image = Image.new("RGBA", size, (9, 200, 30, 99))
    moving = {"save_all": True, "append_images": [image.rotate(180)]}
    for options in ({}, {"speed": 10, "subsampling": "4:4:4"}, moving):
        data = encoded("AVIF", image, **options)
        monkeypatch.setattr(image_avif, "MAX_PIXELS", size[0] * size[1])
        assert decode_image(data).size == size
        monkeypatch.setattr(image_avif, "MAX_PIXELS", size[0] * size[1] - 1)
        assert reason_of(data) == "image_pixels"


def test_boxes_that_say_less_than_the_codes():
    data = bytearray(encoded("AVIF"))
    place = data.index(b"ispe") + 8
    data[place : place + 8] = b"\0\0\0\5" * 2
    assert decode_image(bytes(data)).size == (5, 5)  # the decoder shrinks what it decoded
    assert image_avif.pixels_of(*image_avif.codes_of(bytes(data))) == (1200, 1)


def test_what_programs_write_is_far_from_the_limits():
    image = Image.new("RGB", (1200, 900))
    for form, options in (
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"strip_size": 1}),  # a row a strip
        ("JPEG2000", {"tile_size": (64, 64)}),
        ("JPEG2000", {"precinct_size": (128, 128), "quality_layers": [80, 40, 20, 10]}),
        ("JPEG2000", {"codeblock_size": (16, 16), "progression": "RPCL"}),
    ):
        assert decode_image(encoded(form, image, **options)).size == (1200, 900)
    assert all(decode_image(data).size for data in originals().values())
