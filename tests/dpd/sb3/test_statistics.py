"""VecNormalize's statistics: read from arrays, or from its pickle, which is never run."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from dpd.errors import BadInput
from dpd.sb3.statistics import read_statistics
from tests.toy.zips import Bomb, statistics, trained

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


@pytest.fixture(scope="module")
def norm(tmp_path_factory):
    """A VecNormalize after a moment of training."""
    return trained(tmp_path_factory.mktemp("norm"), normalise=True)[2]


def twin(norm, **changes):
    """Return a VecNormalize with other attributes."""
    other = object.__new__(VecNormalize)
    vars(other).update(vars(norm) | changes)
    return other


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_vecnormalizes_own_file_is_read_without_running_it(norm, tmp_path, protocol):
    path = tmp_path / "v.pkl"
    path.write_bytes(pickle.dumps(norm, protocol))
    found, rms = read_statistics(path, OBS), norm.obs_rms
    assert found is not None
    assert (found.mean == rms.mean).all() and (found.var == rms.var).all()
    assert found[2:] == (rms.count, norm.epsilon, norm.clip_obs)


def test_the_file_that_sb3_saves_says_what_the_npz_of_its_numbers_says(norm, tmp_path):
    norm.save(str(tmp_path / "v.pkl"))
    found = read_statistics(tmp_path / "v.pkl", OBS)
    same = read_statistics(statistics(norm, tmp_path / "v.npz"), OBS)
    assert found is not None and same is not None
    assert (found.mean == same.mean).all() and (found.var == same.var).all()
    assert found[2:] == same[2:]


def test_a_file_of_the_public_zoo_names_packages_that_are_not_installed(norm, tmp_path):
    # as gym 0.21 and NumPy 1 wrote it; protocol 2 names classes in plain text
    raw = pickle.dumps(norm, 2)
    for new, old in ((b"gymnasium.", b"gym."), (b"numpy._core", b"numpy.core")):
        assert new in raw
        raw = raw.replace(new, old)
    path = tmp_path / "v.pkl"
    path.write_bytes(raw)
    with pytest.raises(ModuleNotFoundError, match="gym"):
        pickle.loads(raw)
    found = read_statistics(path, OBS)
    assert found is not None and (found.mean == norm.obs_rms.mean).all()


def test_a_vecnormalize_of_rewards_alone_has_no_statistics(norm, tmp_path):
    twin(norm, norm_obs=False, obs_rms=None).save(str(tmp_path / "v.pkl"))
    assert read_statistics(tmp_path / "v.pkl", OBS) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"obs_rms": {"a": RunningMeanStd()}}, "the pickle holds no RunningMeanStd"),
        ({"obs_rms": [1.0, 2.0]}, "the pickle holds no RunningMeanStd"),
        ({"clip_obs": "ten"}, "clip_obs is not an array of numbers"),
        ({"epsilon": 10**400}, "epsilon is too large"),
        ({"obs_rms": RunningMeanStd(shape=(4,))}, "mean has shape (4,)"),
    ],
)
def test_a_vecnormalize_of_something_else_is_refused(norm, tmp_path, changes, says):
    twin(norm, **changes).save(str(tmp_path / "v.pkl"))
    assert says in refused(tmp_path / "v.pkl")


@pytest.mark.parametrize("name", ["v.pkl", "v.npz"])
def test_a_pickle_is_never_run(tmp_path, name):
    trap = tmp_path / "trap"
    for protocol in (2, 5):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(trap), protocol))
        assert "the pickle holds a" in refused(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(trap), 0))
    refused(tmp_path / name)
    for member in (pickle.dumps(Bomb(trap)), npy("|O", (3,), pickle.dumps(Bomb(trap)))):
        with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
            archive.writestr("mean.npy", member)
        refused(tmp_path / "w.npz")
    assert not trap.exists()


def test_a_pickle_inside_of_a_vecnormalize_is_never_run_either(norm, tmp_path):
    trap = tmp_path / "trap"
    twin(norm, gamma=Bomb(trap), old_obs=Bomb(trap)).save(str(tmp_path / "v.pkl"))
    found = read_statistics(tmp_path / "v.pkl", OBS)  # what is needed of it is good
    assert found is not None and (found.mean == norm.obs_rms.mean).all()
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
        ({"epsilon": np.zeros(2)}, "epsilon is not a number"),
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
