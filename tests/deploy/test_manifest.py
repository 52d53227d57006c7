"""`cyclemlp.yml` gives back what was written; anything else is refused by a ManifestError."""

import copy
import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cyclemlp_backbones.deploy import manifest as module
from cyclemlp_backbones.deploy.manifest import Manifest, ManifestError, Preprocessing, read_manifest, write_manifest
from tests.properties import examples

FINITE = st.floats(-1e6, 1e6)
SIDES = st.integers(1, module._LARGEST_SIDE)
THREE = st.tuples(FINITE, FINITE, FINITE)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
COLOURS = st.tuples(*[st.integers(0, 255)] * 3)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=5)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


@st.composite
def preprocessings(draw):
    resize, count = draw(st.sampled_from([("none", 0), ("short", 1), ("within", 2), ("exact", 2)]))
    return Preprocessing(
        mean=draw(THREE),
        std=draw(THREE.filter(all)),
        resize=resize,
        size=tuple(draw(SIDES) for _ in range(count)),
        interpolation=draw(st.sampled_from(module.INTERPOLATIONS)),
        antialias=draw(st.booleans()),
        crop=draw(st.none() | SIDES),
        pad_to=draw(st.integers(1, module._LARGEST_PADDING)),
        least=draw(SIDES),
        input_range=draw(st.tuples(FINITE, FINITE).filter(lambda pair: pair[0] < pair[1])),
        channel_order=draw(st.sampled_from(module.CHANNEL_ORDERS)),
    )


@st.composite
def manifests(draw):
    task = draw(st.sampled_from(module.TASKS))
    count = 0 if task == "features" else draw(st.integers(1, 4))
    nms = {name: draw(FINITE) for name in module.NMS} if task == "det" and draw(st.booleans()) else None
    forms = module._FORMS["det with nms" if nms else task] or [(("image",), ("map0", "map1"))]
    inputs, outputs = draw(st.sampled_from(forms))
    return Manifest(
        task=task,
        format=draw(st.sampled_from(module.FORMATS)),
        architecture=draw(TEXTS),
        variant=draw(st.none() | TEXTS),
        inputs=inputs,
        outputs=outputs,
        preprocessing=draw(preprocessings()),
        classes=tuple(draw(TEXTS) for _ in range(count)),
        palette=tuple(draw(COLOURS) for _ in range(count * draw(st.booleans()))),
        category_ids=tuple(range(7, 7 + count)) if task == "det" else (),
        nms=nms,
        quantization=draw(st.none() | TEXTS),
        versions=draw(st.dictionaries(TEXTS, TEXTS, max_size=2)),
    )


def write(folder, manifest):
    names = ["model.onnx"] if manifest.format == "onnx" else ["model.json", "model.pdiparams"]
    for name in names:
        (folder / name).write_bytes(name.encode())
    return write_manifest(folder, manifest, names)


@examples
@given(manifest=manifests())
def test_a_manifest_reads_as_it_was_written(tmp_path, manifest):
    written = write(tmp_path, manifest)
    assert dataclasses.replace(written, files={}) == manifest
    assert read_manifest(tmp_path) == written


@pytest.mark.parametrize("name", ["a\x85b", "\x85", "a\u2028b", "\ufeffa", "a\nb", " a ", "né", "no", "1e3", "~", ""])
def test_names_of_classes_stay_as_they_are(tmp_path, name):
    forms = {"inputs": ("image",), "outputs": ("logits",), "preprocessing": Preprocessing()}
    manifest = Manifest(task="cls", format="onnx", architecture="x", variant=None, classes=(name,), **forms)
    write(tmp_path, manifest)
    assert read_manifest(tmp_path).classes == (name,)


@examples
@given(manifest=manifests(), data=st.data())
def test_a_changed_entry_is_read_as_it_stands_or_refused(tmp_path, manifest, data):
    written = write(tmp_path, manifest)
    path = tmp_path / "cyclemlp.yml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = copy.deepcopy(tree)
    where = changed["preprocessing"] if data.draw(st.booleans()) else changed
    key = data.draw(st.sampled_from([*where, "more"]))
    if data.draw(st.booleans()):
        where.pop(key, None)
    else:
        where[key] = data.draw(TREES)
    path.write_text(yaml.safe_dump(changed, allow_unicode=True), encoding="utf-8")
    try:
        read = read_manifest(tmp_path)
    except ManifestError:
        assert changed != tree
        return
    plain = module._plain(dataclasses.asdict(read))
    for name, value in changed.items():
        assert plain[name] == (value if name != "preprocessing" else {**plain[name], **value})
    assert "more" not in changed
    assert read == written or changed != tree


@examples
@given(text=st.text(st.characters(codec="utf-8")) | TREES.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)))
def test_text_of_any_kind_is_no_other_error(tmp_path, text):
    (tmp_path / "cyclemlp.yml").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match="damaged"):
        read_manifest(tmp_path)
