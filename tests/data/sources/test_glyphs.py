import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from krscale.config import DataConfig, GlyphsConfig
from krscale.data import describe_data, prepare_data
from krscale.data.sources import glyphs as glyphs_module
from krscale.data.sources.faces import FACE_SETS, draw_shapes
from krscale.data.sources.glyphs import Glyphs, hold_out
from krscale.data.sources.rendering import Renderer
from krscale.errors import UserError


def config(**fields):
    sizes = {"num_classes": 10, "image_size": 12, "num_train": 60, "num_val": 30, "num_test": 20}
    return GlyphsConfig(**{**sizes, **fields})


def renderer(split=0, **fields):
    shapes = draw_shapes(["DejaVuSans", "DejaVuSerif"], "0123456789", 24)
    return Renderer(config(**fields), split, shapes)


def silent(done, total):
    pass


def read(**fields):
    return Glyphs(DataConfig(source="glyphs", glyphs=config(**fields))).read(silent)


@pytest.mark.parametrize("face_set", FACE_SETS)
def test_one_face_of_each_family_is_held_out_for_each_split(face_set):
    faces = hold_out(face_set, seed=3)
    everything = [face for family in face_set.families.values() for face in family]
    assert sorted(faces["train"] + faces["val"] + faces["test"]) == sorted(everything)
    for family in face_set.families.values():
        assert len(set(family) & set(faces["val"])) == 1
        assert len(set(family) & set(faces["test"])) == 1


def test_seeds_hold_out_different_faces():
    assert len({hold_out(FACE_SETS[0], seed)["test"] for seed in range(10)}) > 3


def test_an_image_depends_on_its_number_alone():
    render = renderer()
    whole = render.images(torch.arange(40))
    assert whole.shape == (40, 1, 12, 12)
    assert whole.dtype == torch.uint8
    some = torch.tensor([7, 39, 0, 7])
    assert torch.equal(render.images(some), whole[some])


def test_images_do_not_depend_on_how_many_are_rendered_at_once(monkeypatch):
    whole = read().splits
    monkeypatch.setattr(glyphs_module, "_CHUNK", 25)
    for name, split in read().splits.items():
        assert np.array_equal(split.images, whole[name].images)
        assert np.array_equal(split.labels, whole[name].labels)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"warp": 0.4}, {"noise": 0.4}, {"split": 1}])
def test_what_changes_every_image(changed):
    numbers = torch.arange(40)
    before, after = renderer().images(numbers), renderer(**changed).images(numbers)
    assert (before != after).flatten(1).any(dim=1).all()


def test_images_differ_from_one_another():
    assert len(torch.unique(renderer().images(torch.arange(500)).flatten(1), dim=0)) == 500


def test_without_noise_the_background_is_plain():
    images = renderer(noise=0.0).images(torch.arange(200))
    levels = torch.tensor([len(image.unique()) for image in images])
    background = torch.stack(
        [(image == image.mode().values.mode().values).sum() for image in images[:, 0]]
    )
    assert (background > 30).all()
    assert (levels > 2).all()


def test_pixel_noise_is_nearly_normal():
    noise = renderer()._pixel_noise(torch.arange(500), 12)
    assert noise.shape == (500, 1, 12, 12)
    deviation = 1 / noise.numel() ** 0.5
    assert abs(noise.mean()) < 5 * deviation
    assert abs(noise.var() - 1) < 10 * deviation
    assert noise.abs().max() <= 3.01
    assert abs((noise[:, :, :, 1:] * noise[:, :, :, :-1]).mean()) < 5 * deviation


def test_labels_say_which_character_is_shown():
    """Nearest neighbours in other faces predict the character far above chance (0.1)."""
    data = read(noise=0.0, warp=0.0, num_train=1500, num_test=300)

    def features(split):
        flat = split.images.reshape(len(split), -1).astype(np.float64)
        corner = flat[:, :1]
        return np.abs(flat - corner) / np.abs(flat - corner).max(axis=1, keepdims=True)

    model = KNeighborsClassifier(3)
    model.fit(features(data.splits["train"]), data.splits["train"].labels)
    right = model.predict(features(data.splits["test"])) == data.splits["test"].labels
    assert right.mean() > 0.6


def test_classes_are_balanced():
    data = read(num_train=64)
    assert sorted(np.bincount(data.splits["train"].labels)) == [6] * 6 + [7] * 4
    assert data.classes == tuple("0123456789")


def test_several_processes_render_the_same_images(monkeypatch):
    alone = read(num_train=1200)
    monkeypatch.setattr(glyphs_module, "_num_cores", lambda: 2)
    monkeypatch.setattr(glyphs_module, "_PIXELS_PER_PROCESS", 1)
    done = []
    source = Glyphs(DataConfig(source="glyphs", glyphs=config(num_train=1200)))
    together = source.read(lambda *progress: done.append(progress))
    for name, split in alone.splits.items():
        assert np.array_equal(split.images, together.splits[name].images)
        assert np.array_equal(split.labels, together.splits[name].labels)
    assert done == [(512, 1250), (1024, 1250), (1200, 1250), (1230, 1250), (1250, 1250)]


def test_prepared_as_arrow_with_the_splits_of_the_source(tmp_path):
    whole = DataConfig(source="glyphs", glyphs=config())
    dataset = prepare_data(whole, tmp_path)
    assert dataset.num_samples == {"train": 60, "val": 30, "test": 20}
    assert dataset.image_shape == (1, 12, 12)
    expected = Glyphs(whole).read(silent)
    for name, split in expected.splits.items():
        assert np.array_equal(dataset.split(name).images, split.images)
    assert prepare_data(whole.model_copy(update={"seed": 5}), tmp_path).path == dataset.path


def test_settings_and_libraries_are_its_identity():
    first, second = (
        Glyphs(DataConfig(source="glyphs", glyphs=config(noise=noise))).identity()
        for noise in (0.1, 0.2)
    )
    assert first != second
    assert {"matplotlib", "freetype", "rendering"} <= set(first)


def test_description_needs_no_rendering(tmp_path, monkeypatch):
    monkeypatch.setattr(Glyphs, "read", None)
    description = describe_data(DataConfig(source="glyphs", glyphs=config()), tmp_path)
    assert (description.num_classes, description.image_shape) == (10, (1, 12, 12))
    assert description.num_train == 60


def test_fewer_images_than_classes():
    with pytest.raises(UserError, match=r"num_train: 9 images cannot show each of 10 classes"):
        Glyphs(DataConfig(source="glyphs", glyphs=config(num_train=9)))


def test_a_path_is_refused():
    with pytest.raises(UserError, match=r"data\.path: the source 'glyphs' reads no file"):
        Glyphs(DataConfig(source="glyphs", path="fonts"))
