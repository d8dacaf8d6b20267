"""VecNormalize's statistics: read from arrays, never from a pickle."""

import io
import pickle
import shlex
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from foreign import Bomb, convert, statistics, trained
from hypothesis import given
from hypothesis import strategies as st

from dpd.config import BadInput
from dpd.vecnormalize import conversion, read_statistics

OBS = 3
GOOD = {
    "mean": np.arange(3.0),
    "var": np.array([0.0, 1.0, 4.0]),
    "count": np.float64(50.5),
    "epsilon": np.float64(1e-6),
    "clip_obs": np.float64(5.0),
    "norm_obs": np.True_,
}


def write(path, **changes):
    """Write statistics, with changes; None leaves one out."""
    np.savez(path, **{k: v for k, v in (GOOD | changes).items() if v is not None})
    return path


def refused(path, limit=200):
    """Read what must be refused; return what was said."""
    with pytest.raises(BadInput) as caught:
        read_statistics(path, OBS)
    said = str(caught.value)
    assert str(path) in said and len(said) < len(str(path)) + limit
    return said


def test_statistics_are_read(tmp_path):
    found = read_statistics(write(tmp_path / "v.npz"), OBS)
    assert found is not None
    assert found.mean.tolist() == [0, 1, 2] and found.var.tolist() == [0, 1, 4]
    assert (found.n_samples, found.epsilon, found.clip_obs) == (50.5, 1e-6, 5.0)
    # 1 / sqrt(0 + 1e-6) = 1000
    np.testing.assert_allclose(found.scale, [1000, (1 + 1e-6) ** -0.5, (4 + 1e-6) ** -0.5])


def test_what_is_left_out_is_as_sb3_has_it(tmp_path):
    path = write(tmp_path / "v.npz", epsilon=None, clip_obs=None, norm_obs=None)
    found = read_statistics(path, OBS)
    assert found is not None and (found.epsilon, found.clip_obs) == (1e-8, 10.0)
    found = read_statistics(write(path, clip_obs=np.inf), OBS)
    assert found is not None and found.clip_obs > 1e38  # no clipping


def test_without_normalised_observations_there_are_no_statistics(tmp_path):
    path = write(tmp_path / "v.npz", norm_obs=False, mean=None, var=None, count=None)
    assert read_statistics(path, OBS) is None


def test_the_conversion_that_is_shown_converts(tmp_path):
    folder = tmp_path / 'it\'s a "folder" of $HOME é'
    folder.mkdir()
    _, _, norm = trained(tmp_path, normalise=True)
    norm.save(str(folder / "v.pkl"))
    command = conversion(folder / "v.pkl")
    assert command in refused(folder / "v.pkl", limit=1500)
    words = shlex.split(command)  # as a shell takes it apart
    assert words[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *words[1:]], check=True)
    found, rms = read_statistics(folder / "v.npz", OBS), norm.obs_rms
    assert found is not None
    assert (found.mean == rms.mean).all() and (found.var == rms.var).all()
    assert found[2:] == (rms.count, norm.epsilon, norm.clip_obs)
    theirs, ours = np.load(folder / "v.npz"), np.load(statistics(norm, tmp_path / "w.npz"))
    assert set(theirs.files) == set(ours.files)  # so that other tests' files are like it


def test_the_conversion_without_statistics_says_that_there_are_none(tmp_path):
    _, _, norm = trained(tmp_path, normalise=True)
    norm.norm_obs = False
    del norm.obs_rms
    norm.save(str(tmp_path / "v.pkl"))
    assert read_statistics(convert(tmp_path / "v.pkl"), OBS) is None


@pytest.mark.parametrize("name", ["v.pkl", "v.npz"])
def test_a_pickle_is_never_run(tmp_path, name):
    trap = tmp_path / "trap"
    for protocol in (2, 5):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(trap), protocol))
        said = refused(tmp_path / name, limit=1500)
        assert "is a pickle, which can run any program" in said and "python -c '" in said
    for member in (pickle.dumps(Bomb(trap)), npy("|O", (3,), pickle.dumps(Bomb(trap)))):
        with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
            archive.writestr("mean.npy", member)
        refused(tmp_path / "w.npz")
    assert not trap.exists()


def npy(descr, shape, rest=b""):
    """Return an array file with any header."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + rest


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"\x93NUMPY",
        npy("<f8", (2**50,)),  # petabytes
        npy("<f8", (-1,), bytes(8)),
        npy("<f8", (3, 1), bytes(24)),
        npy("<f8", (2,), bytes(24)),
        npy("<U4", (3,), bytes(48)),
        npy("<c16", (3,), bytes(48)),
        npy([("a", "<f8")], (3,), bytes(24)),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x03\x00\x10\x00" + b"x" * 16,
    ],
)
def test_an_array_that_is_no_vector_of_numbers_is_refused(tmp_path, member):
    path = tmp_path / "v.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mean.npy", member)
    assert "holds no VecNormalize statistics" in refused(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mean": np.zeros(4)}, "mean has shape (4,); the policy reads 3"),
        ({"var": np.float64(1)}, "var has shape ()"),
        ({"count": None}, "count is missing"),
        ({"epsilon": np.zeros(2)}, "epsilon is no number"),
        ({"mean": np.array([0, np.nan, 0])}, "not finite and positive"),
        ({"var": np.array([1, -1.0, 1])}, "not finite and positive"),
        ({"epsilon": 0.0}, "not finite and positive"),  # with a variance of 0
        ({"clip_obs": np.nan}, "not finite and positive"),
        ({"clip_obs": 0.0}, "not finite and positive"),
        ({"count": -1.0}, "not finite and positive"),
    ],
)
def test_statistics_that_make_no_sense_are_refused(tmp_path, changes, says):
    assert says in refused(write(tmp_path / "v.npz", **changes))


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "v.npz"
    assert "no such file" in refused(path)
    refused(tmp_path)
    for content in (b"", b"x" * 99, b"PK\x03\x04"):
        path.write_bytes(content)
        assert "holds no VecNormalize statistics" in refused(path)
    with path.open("r+b") as file:
        file.truncate(2**40)
    assert "over 16777216 bytes" in refused(path)


@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    cut=st.floats(0.9, 1) | st.just(1.0),
)
def test_no_damage_makes_anything_but_statistics_or_a_refusal(tmp_path_factory, edits, cut):
    path = tmp_path_factory.mktemp("fuzz") / "v.npz"
    raw = bytearray(write(path).read_bytes())
    for place, byte in edits:
        raw[int(place * len(raw))] = byte
    path.write_bytes(raw[: int(cut * len(raw))])
    try:
        read_statistics(path, OBS)
    except BadInput as error:
        assert str(path) in str(error)
