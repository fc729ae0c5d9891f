"""The top n is that of a full sort, whatever the blocks, and an inverted file says what it misses."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.errors import ConfigError, ContractError, ModelError
from lakerec.generators.nearest import FAISS, Approximate, Catalogue, Exact, recall

ITEMS, TARGET = 20_000, 0.98
BLOCKS = [(1, 1), (2, 3), (3, 64), (128, 2**17)]


def full_sort(vectors, biases, allowed, users, n, known):
    """Every score, every item, one sort: what `search` promises."""
    scores = (users.astype(np.float64) @ vectors.T.astype(np.float64) + biases).astype(np.float32)
    mask = np.broadcast_to(allowed, scores.shape).copy()
    mask[known] = False
    items, found = np.full((len(users), n), -1), np.full((len(users), n), -np.inf, dtype=np.float32)
    for row in range(len(users)):
        codes = np.flatnonzero(mask[row])
        best = codes[np.argsort(-scores[row, codes], kind="stable")][:n]
        items[row, : len(best)], found[row, : len(best)] = best, scores[row, best]
    return items, found


@st.composite
def cases(draw):
    """Small integers, so that ties are many and every order of summation gives the same; some near 0 or far off."""
    items, users, size = draw(st.integers(0, 70)), draw(st.integers(0, 6)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    wide = draw(st.integers(0, 3))
    scale = draw(st.sampled_from([1.0, 2.0**-70, 2.0**40]))
    vectors, people, biases = (
        (rng.integers(-wide, wide + 1, shape) * scale).astype(np.float32)
        for shape in ((items, size), (users, size), items)
    )
    allowed = rng.random(items) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    count = draw(st.integers(0, 2 * items)) if items and users else 0
    known = rng.integers(0, max(users, 1), count), rng.integers(0, max(items, 1), count)
    return vectors, biases, allowed, people, draw(st.integers(1, 80)), known


@settings(deadline=None, max_examples=200)
@given(cases(), st.sampled_from(BLOCKS))
def test_exact_is_the_full_sort_with_ties_by_item_masks_and_more_asked_for_than_there_is(case, block):
    vectors, biases, allowed, users, n, known = case
    items, scores = Exact(Catalogue.of(vectors, biases, allowed), block).search(users, n, known)
    truth = full_sort(vectors, biases, allowed, users, n, known)
    assert items.dtype == np.int64 and scores.dtype == np.float32
    np.testing.assert_array_equal(items, truth[0])
    np.testing.assert_array_equal(scores, truth[1])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 33), st.integers(1, 40), st.integers(1, 300))
def test_exact_does_not_depend_on_the_blocks_to_the_last_bit(seed, size, step, width):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(300, size)).astype(np.float32)
    vectors[150:] = vectors[:150] * np.float32(1 + 1e-7)  # less apart than a float32 product errs
    biases, users = np.zeros(300, dtype=np.float32), rng.normal(size=(40, size)).astype(np.float32)
    catalogue = Catalogue.of(vectors, biases)
    whole, blocks = Exact(catalogue).search(users, 7), Exact(catalogue, (step, width)).search(users, 7)
    alone = [Exact(catalogue).search(users[row : row + 1], 7) for row in range(len(users))]
    for side in (0, 1):
        np.testing.assert_array_equal(whole[side], blocks[side])
        np.testing.assert_array_equal(whole[side], np.concatenate([found[side] for found in alone]))
    np.testing.assert_array_equal(whole[0], full_sort(vectors, biases, True, users, 7, ([], []))[0])


def test_exact_selects_by_groups_where_items_are_many():
    vectors, biases, users = clustered(3000, 20)
    known = np.repeat(np.arange(20), 50), np.random.default_rng(1).integers(0, 3000, 1000)
    allowed = np.arange(3000) % 3 > 0
    found = Exact(Catalogue.of(vectors, biases, allowed), (8, 1024)).search(users, 10, known)
    np.testing.assert_array_equal(found[0], full_sort(vectors, biases, allowed, users, 10, known)[0])


def test_a_user_of_whom_nothing_is_known_gets_the_items_by_bias():
    biases = np.array([0, 2, 2, 1], dtype=np.float32)
    items, scores = Exact(Catalogue.of(np.ones((4, 3), dtype=np.float32), biases)).search(np.zeros((1, 3)), 3)
    assert items.tolist() == [[1, 2, 3]] and scores.tolist() == [[2, 2, 1]]


def clustered(items, users, seed=0, size=16, clusters=100):
    """Items around centres, popular ones with a bias, and users around the same centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, size))
    rows = [centres[rng.integers(clusters, size=n)] + 0.6 * rng.normal(size=(n, size)) for n in (items, users)]
    return rows[0].astype(np.float32), rng.exponential(size=items).astype(np.float32), rows[1].astype(np.float32)


@pytest.fixture(scope="module")
def many():
    """20,000 clustered items, biases, 600 users of whom 200 are the sample, and the inverted file."""
    vectors, biases, users = clustered(ITEMS, 600)
    found, line = Approximate.built(Catalogue.of(vectors, biases), users[:200], n=50, target=TARGET)
    return vectors, biases, users, found, line


def test_the_inverted_file_reaches_its_target_on_the_sample_and_on_others(many):
    vectors, biases, users, found, line = many
    assert found.probes < found.lists / 2
    truth = Exact(Catalogue.of(vectors, biases)).search(users, 50)
    items, scores = found.search(users, 50)
    reached = recall(items[:200], truth[0][:200])
    assert reached >= TARGET and recall(items[200:], truth[0][200:]) > TARGET - 0.01
    assert f"recall@50 {reached:.4f} on 200 users" in line and f"{found.probes} of {found.lists} lists" in line
    same = items == truth[0]
    np.testing.assert_array_equal(scores[same], truth[1][same])


def test_the_inverted_file_leaves_out_the_known_and_still_fills_the_list(many):
    vectors, biases, users, found, _ = many
    counts = np.array([0, 1, 50, 3000, ITEMS - 20, ITEMS])
    best = Exact(Catalogue.of(vectors, biases)).search(users[:6], ITEMS)[0]
    known = np.repeat(np.arange(6), counts), np.concatenate([best[row, :n] for row, n in enumerate(counts)])
    items, scores = found.search(users[:6], 50, known)
    assert [(items[row] >= 0).sum() for row in range(6)] == [50, 50, 50, 50, 20, 0]
    assert all(not np.isin(items[row], best[row, : counts[row]]).any() for row in range(6))
    assert (scores[:, 1:] <= scores[:, :-1]).all() and np.isneginf(scores[items < 0]).all()
    np.testing.assert_array_equal(items[4, :20], best[4, -20:])


def test_the_inverted_file_knows_only_what_is_allowed():
    vectors, biases, users = clustered(2000, 50)
    allowed = np.arange(2000) % 2 == 1
    found, _ = Approximate.built(Catalogue.of(vectors, biases, allowed), users, n=10)
    items, _ = found.search(users, 10)
    assert (items % 2 == 1).all()
    assert recall(items, full_sort(vectors, biases, allowed, users, 10, ([], []))[0]) >= TARGET


def test_a_second_build_finds_the_same(many):
    vectors, biases, users, found, line = many
    again, told = Approximate.built(Catalogue.of(vectors, biases), users[:200], n=50, target=TARGET)
    assert told == line
    for mine, theirs in zip(again.search(users, 50), found.search(users, 50), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_is_read_from_a_file_finds_the_same(many, tmp_path):
    vectors, biases, users, found, _ = many
    found.save(tmp_path / "x.faiss")
    assert [file.name for file in tmp_path.iterdir()] == ["x.faiss"]
    again = Approximate.load(tmp_path / "x.faiss", Catalogue.of(vectors, biases))
    assert (again.probes, again.lists) == (found.probes, found.lists)
    for mine, theirs in zip(again.search(users, 50), found.search(users, 50), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ContractError, match=f"of {ITEMS} items for {ITEMS - 1}: build it again"):
        Approximate.load(tmp_path / "x.faiss", Catalogue.of(vectors[1:], biases[1:]))
    (tmp_path / "y.faiss").write_bytes((tmp_path / "x.faiss").read_bytes()[:1000])
    for name in ("y.faiss", "z.faiss"):
        with pytest.raises(ModelError, match=f"{name}: no inverted file"):
            Approximate.load(tmp_path / name, Catalogue.of(vectors, biases))


def test_recall_is_the_mean_part_of_what_there_is():
    assert recall(np.array([[1, 2], [3, -1], [5, 6]]), np.array([[2, 7], [3, -1], [-1, -1]])) == 0.75
    assert np.isnan(recall(np.zeros((1, 0)), np.zeros((1, 0))))


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    vectors, biases, users = clustered(100, 5)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"install faiss-cpu==.* or raise `candidates.exact_items`"):
        Approximate.built(Catalogue.of(vectors, biases), users)


def test_the_version_that_is_named_is_the_pinned_one(request):
    for name in ("jobs", "dev"):
        assert FAISS in (request.config.rootpath / "requirements" / f"{name}.txt").read_text().splitlines()


def test_what_does_not_fit_is_refused():
    vectors, biases, users = clustered(50, 3)
    search = Exact(Catalogue.of(vectors, biases)).search
    broken = vectors.copy()
    broken[7, 1] = np.nan
    one = np.array([0])
    for fault, error, message in (
        (lambda: Catalogue.of(vectors, biases[:-1]), ContractError, "biases"),
        (lambda: Catalogue.of(vectors, biases, np.ones(49, dtype=bool)), ContractError, "allowed"),
        (lambda: Catalogue.of(broken, biases), ModelError, "no number"),
        (lambda: search(users[:, :-1], 5), ContractError, "are expected"),
        (lambda: search(users, 0), ContractError, "n = 0"),
        (lambda: search(users * np.inf, 5), ModelError, "user vectors"),
        (lambda: search(np.full_like(users, 1e38), 5), ModelError, "overflow"),
        (lambda: search(users, 5, (np.array([3]), one)), ContractError, "beyond"),
        (lambda: search(users, 5, (one, np.array([50]))), ContractError, "beyond"),
        (lambda: search(users, 5, (one, np.array([1, 2]))), ContractError, "unequal"),
        (lambda: Approximate.built(Catalogue.of(vectors, biases), users[:0]), ContractError, "sample"),
    ):
        with pytest.raises(error, match=message):
            fault()
