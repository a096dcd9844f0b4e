"""The tiny world keeps its promises: exact masks, one graph over all domains, distractors, phrases and captions."""

import numpy as np
import pytest

from ldznet.tinyworld.scenes import (
    CATEGORIES,
    COLOURS,
    DOMAINS,
    PATTERNS,
    STUFF,
    VOCABULARY,
    absent_phrases,
    captions,
    distractor,
    phrases_of,
    scene,
)

SEEDS = range(40)


@pytest.fixture(scope="module")
def many():
    return [scene(seed, "cartoon") for seed in range(300)]


def words(caption):
    return caption.replace(",", " ,").split()


def test_the_names_are_those_agreed():
    assert DOMAINS == ("photo", "cartoon", "lines", "painting", "mosaic")
    assert CATEGORIES == (
        "star",
        "heart",
        "moon",
        "fish",
        "tree",
        "house",
        "car",
        "cat",
        "bird",
        "flower",
        "mushroom",
        "boat",
        "key",
        "cup",
    )
    assert len(COLOURS) == 8
    assert PATTERNS == ("plain", "striped", "dotted")
    assert set(STUFF) == {"sky", "grass", "sand", "water", "brick", "night", "snow"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_seed_gives_the_same_scene_twice(domain):
    first, second = scene(7, domain), scene(7, domain)
    assert np.array_equal(first.image, second.image)
    assert (first.caption, first.phrases) == (second.caption, second.phrases)
    assert all(np.array_equal(first.masks[phrase], second.masks[phrase]) for phrase in first.phrases)


def test_global_random_state_is_left_alone():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    scene(3)
    assert np.random.random() == expected


@pytest.mark.parametrize("seed", range(10))
def test_the_graph_is_the_same_in_every_domain(seed):
    first, *others = (scene(seed, domain) for domain in DOMAINS)
    for other in others:
        assert first.phrases == other.phrases
        assert first.kinds == other.kinds
        assert all(np.array_equal(first.masks[phrase], other.masks[phrase]) for phrase in first.phrases)
        assert [phrases_of(a) for a in first.things] == [phrases_of(b) for b in other.things]
        assert not np.array_equal(first.image, other.image)


def test_the_seed_chooses_every_domain():
    assert {scene(seed).domain for seed in SEEDS} == set(DOMAINS)


def test_the_picture_follows_the_things():
    hearts = [scene(seed, "cartoon", things=1, only=["heart"]) for seed in SEEDS]
    for one in (one for one in hearts if one.things[0].pattern == "plain"):
        mask, colour = one.things[0].mask, np.array(COLOURS[one.things[0].colour])
        near = np.abs(one.image.astype(int) - colour).max(-1) < 12
        assert near[mask].mean() > 0.3
        assert near[~mask].mean() < 0.02


def test_things_and_stuff_part_the_image(many):
    for one in many[:60]:
        parts = [thing.mask for thing in one.things]
        parts += [one.masks[phrase] for phrase in one.phrases if one.kinds[phrase] == "stuff"]
        assert np.all(np.sum(parts, axis=0) == 1)


def test_masks_are_those_of_the_things_named(many):
    for one in many[:60]:
        assert one.phrases == tuple(one.masks) == tuple(one.kinds)
        for phrase, mask in one.masks.items():
            assert mask.dtype == bool
            assert mask.shape == (128, 128)
            assert mask.any()
            if one.kinds[phrase] == "thing":
                named = [thing.mask for thing in one.things if phrase in phrases_of(thing)]
                assert np.array_equal(mask, np.any(named, axis=0))


def test_kinds_put_things_first(many):
    for one in many:
        kinds = list(one.kinds.values())
        assert kinds == sorted(kinds, reverse=True)
        assert all((phrase in STUFF) == (kind == "stuff") for phrase, kind in one.kinds.items())


def test_boxes_frame_the_visible_pixels(many):
    for one in many[:60]:
        for thing in one.things:
            y0, x0, y1, x1 = thing.box
            assert thing.mask[y0:y1, x0:x1].sum() == thing.mask.sum() >= 150
            assert all(
                edge.any() for edge in (thing.mask[y0], thing.mask[y1 - 1], thing.mask[:, x0], thing.mask[:, x1 - 1])
            )


def test_extents_lie_in_the_range(many):
    extents = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) for one in many for t in one.things]
    assert max(extents) <= 82
    assert 36 <= np.median(extents) <= 52


def test_absent_phrases_are_absent(many):
    rng = np.random.default_rng(0)
    for one in many[:80]:
        chosen = absent_phrases(one, rng, 6)
        assert len(set(chosen)) == 6
        assert not set(chosen) & set(one.phrases)
        colours, categories = {t.colour for t in one.things}, {t.category for t in one.things}
        near = [p for p in chosen if set(p.split()) & (colours | categories)]
        assert len(near) == 3


def test_about_half_of_the_thing_phrases_have_a_distractor(many):
    found = [distractor(one, phrase) for one in many for phrase in one.phrases if one.kinds[phrase] == "thing"]
    assert 0.4 < np.mean(found) < 0.65


def test_a_single_thing_and_stuff_have_no_distractor():
    alone = scene(0, "photo", things=1)
    assert not any(distractor(alone, phrase) for phrase in (*alone.phrases, *STUFF))


def test_a_quarter_of_the_scenes_hold_one_thing(many):
    counts = np.array([len(one.things) for one in many])
    assert 0.17 < np.mean(counts == 1) < 0.33
    assert counts.max() == 4


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_number_of_things_can_be_forced(count):
    assert all(len(scene(seed, "cartoon", things=count).things) == count for seed in SEEDS)


def test_only_limits_the_categories():
    seen = {thing.category for seed in SEEDS for thing in scene(seed, "lines", only={"cat", "key"}).things}
    assert seen == {"cat", "key"}
    assert {thing.category for thing in scene(2, "lines", things=3, only=["cup"]).things} == {"cup"}


def test_captions_keep_to_the_vocabulary(many):
    rng = np.random.default_rng(1)
    for one in many:
        for caption in (one.caption, captions(one, rng)):
            assert set(words(caption)) <= VOCABULARY
            assert caption == caption.lower().strip()


def test_captions_vary_and_tell_the_truth(many):
    rng, one = np.random.default_rng(2), next(one for one in many if len(one.things) == 3)
    drawn = [captions(one, rng) for _ in range(40)]
    present = {word for phrase in one.phrases for word in phrase.split()}
    names = {*CATEGORIES, *COLOURS, *PATTERNS[1:], *STUFF}
    assert len(set(drawn)) > 10
    assert all(set(words(caption)) & names <= present for caption in drawn)
    assert 0.4 < np.mean([caption.startswith("a cartoon of") for caption in drawn]) < 0.9


def test_articles_follow_the_next_word():
    texts = [phrase for seed in SEEDS for phrase in scene(seed, "cartoon").phrases]
    assert any(text.startswith("an orange") for text in texts)
    assert not any(text.startswith(("a orange", "an striped")) for text in texts)


def test_other_sizes_scale_the_scene():
    large = scene(5, "photo", size=192)
    assert large.image.shape == (192, 192, 3)
    assert large.image.dtype == np.uint8
    assert all(mask.shape == (192, 192) for mask in large.masks.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed of 0 or more, got -1"),
        ({"seed": 0, "domain": "etching"}, "photo, cartoon.*got 'etching'"),
        ({"seed": 0, "size": 100}, "multiple of 8.*got 100"),
        ({"seed": 0, "things": 0}, "1 to 6 things, got 0"),
        ({"seed": 0, "only": []}, "collection of categories"),
        ({"seed": 0, "only": ["dog"]}, "dog"),
        ({"seed": 0, "only": "cat"}, "got 'cat'"),
    ],
)
def test_bad_arguments_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        scene(**arguments)


def test_too_many_absent_phrases_are_refused():
    with pytest.raises(ValueError, match="between 0 and 24, got 25"):
        absent_phrases(scene(0, "photo"), np.random.default_rng(0), 25)
