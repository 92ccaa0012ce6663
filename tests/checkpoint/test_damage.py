"""Every file of a checkpoint, damaged in every way: never a wrong value without a word."""

import json
import random
import shutil

import pytest

from clipjax.checkpoint import DamagedCheckpointError, choice, load_params, read_manifest
from clipjax.checkpoint import manifest as manifests
from clipjax.strict_json import MAX_BYTES


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def zero(path, rng):
    path.write_bytes(bytes(path.stat().st_size))


def delete(path, rng):
    path.unlink()


DAMAGES = (flip, truncate, zero, delete)


def files_of(step_dir):
    return sorted(p.relative_to(step_dir) for p in step_dir.rglob("*") if p.is_file())


def verdict(directory):
    return choice.agree_on_newest(directory, allow_unfinished=False)


def is_seen(source, work, name, damage, rng):
    """Whether a copy of step 4 with one damaged file is set aside."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source / "4", work / "4")
    damage(work / "4" / name, rng)
    if verdict(work) == choice.WAS_DAMAGED:
        return True
    # A flip may leave a manifest that says the same: 1e-05 becomes 1E-05.
    contents = [json.loads((d / "4/manifest.json").read_bytes()) for d in (source, work)]
    return name.name == "manifest.json" and contents[0] == contents[1]


def test_a_whole_checkpoint_is_taken_for_whole(four_steps):
    assert verdict(four_steps[0]) == 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_every_damage(four_steps, tmp_path, damage):
    source, rng = four_steps[0], random.Random(0)
    names = files_of(source / "4")
    assert len(names) > 10
    missed = [str(n) for n in names if not is_seen(source, tmp_path / "c", n, damage, rng)]
    assert missed == []


@pytest.mark.nightly
def test_two_thousand_flips(four_steps, tmp_path):
    source, rng = four_steps[0], random.Random(1)
    names = files_of(source / "4")
    missed = [
        str(name)
        for name in rng.choices(names, k=2000)
        if not is_seen(source, tmp_path / "c", name, flip, rng)
    ]
    assert missed == []


def test_without_the_digests_damage_passes(four_steps, tmp_path, monkeypatch):
    """Negative control: the test above can fail."""
    monkeypatch.setattr(manifests, "verify_files", lambda *_: None)
    name = next(n for n in files_of(four_steps[0] / "4") if "/d/" in str(n))
    assert not is_seen(four_steps[0], tmp_path / "c", name, flip, random.Random(0))


def test_damage_is_seen_by_those_who_load_parameters_only(saved):
    directory, states = saved
    rng = random.Random(2)
    for name in files_of(directory / "4"):
        work = directory / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(directory / "4", work)
        flip(work / name, rng)
        try:
            params = load_params(work)
        except (DamagedCheckpointError, ValueError):
            continue
        # Files that hold nothing of the parameters may be wrong; the values may not.
        kernel = states[4].params["image_encoder"]["kernel"]
        assert params["image_encoder"]["kernel"].tolist() == kernel.tolist(), name


def rewrite(step_dir, **changes):
    """Changes a manifest and signs it again, as somebody malicious would."""
    path = step_dir / "manifest.json"
    fields = json.loads(path.read_bytes()) | changes
    fields.pop("manifest_sha256")
    path.write_text(json.dumps(fields | {"manifest_sha256": manifests.digest(fields)}))


def test_a_manifest_that_names_files_outside_is_refused(saved):
    directory, _ = saved
    for path in ("/etc/passwd", "../3/state/_METADATA", "state/../../x"):
        rewrite(directory / "4", files=[{"path": path, "size": 1, "sha256": "0"}])
        with pytest.raises(DamagedCheckpointError, match="outside its folder"):
            read_manifest(directory / "4")


def test_a_newer_format_is_no_damage(saved):
    directory, _ = saved
    rewrite(directory / "4", format_version=2)
    with pytest.raises(ValueError, match=r"format version 2.*reads 1"):
        read_manifest(directory / "4")
    with pytest.raises(ValueError, match="format version 2"):
        verdict(directory)
    assert (directory / "4").is_dir()


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[" * 100_000, '{"manifest_sha256": 1}'])
def test_text_that_is_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedCheckpointError):
        read_manifest(tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**40)  # a terabyte, without a block on the disk
    with pytest.raises(DamagedCheckpointError, match=f"larger than {MAX_BYTES} bytes"):
        read_manifest(tmp_path)


def test_a_step_in_another_steps_folder_is_damage(saved):
    directory, _ = saved
    (directory / "4").rename(directory / "5")
    assert verdict(directory) == choice.WAS_DAMAGED
