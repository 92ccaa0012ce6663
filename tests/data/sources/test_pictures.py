"""Pictures by themselves: `pictures:DIR`."""

import pytest
from PIL import Image

from clipjax.data.sources import make_source


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a/c.PNG", "a/.hidden.png", "__MACOSX/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (3, 3)).save(tmp_path / name, "PNG")
    (tmp_path / "b.txt").write_text("a caption")
    (tmp_path / "notes.pdf").write_text("no picture")
    return tmp_path


def test_pictures_have_the_keys_of_a_folder_and_no_texts(folder, caplog):
    source = make_source(f"pictures:{folder}")
    assert list(source.keys()) == ["a/c.PNG", "b.png"] and source.class_names is None
    example = source[1]
    assert (example["key"], example["text"]) == ("b.png", "")
    assert example["image"] == (folder / "b.png").read_bytes()
    assert "1 .pdf" in caplog.text and "2 files are not used" in caplog.text
    before = source.fingerprint()
    assert make_source(f"pictures:{folder}").fingerprint() == before
    Image.new("RGB", (9, 9)).save(folder / "a" / "c.PNG")
    assert make_source(f"pictures:{folder}").fingerprint() != before


def test_a_folder_without_classes_and_captions_is_told_the_way(folder, tmp_path):
    (folder / "b.txt").unlink()
    with pytest.raises(ValueError, match=rf"as pictures:{folder}"):
        make_source(f"folder:{folder}")
    with pytest.raises(ValueError, match=rf"write folder:{folder}, .* or pictures:{folder}, "):
        make_source(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        make_source(f"pictures:{tmp_path}/empty")
    with pytest.raises(ValueError, match="there is no directory"):
        make_source(f"pictures:{tmp_path}/nowhere")
