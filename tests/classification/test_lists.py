import numpy as np
import pytest
from scipy.io import savemat

from classification import commands
from classification.data import read_class_map
from classification.lists import list_by_truth


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "map_to_1000.txt"
    path.write_text("n01440764 0\nn01443537 1\nn01484850 2\n")
    return path


def lists(capsys, *arguments):
    code = commands.main(["lists", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_training_lists_of_folders_and_of_a_flat_folder_with_a_subset_of_the_classes(tmp_path, classes, capsys):
    for synset in ("n01440764", "n01484850"):
        touch(tmp_path / "folders" / synset, f"{synset}_1.JPEG", f"{synset}_2.JPEG", "notes.txt")
    code, out, _ = lists(capsys, "--classes", classes, "--train", tmp_path / "folders", "--output", tmp_path / "a")
    assert (code, "4 images of 2 classes" in out) == (0, True)
    lines = (tmp_path / "a" / "train.txt").read_text().splitlines()
    assert lines[0] == "n01440764/n01440764_1.JPEG 0"
    assert lines[-1] == "n01484850/n01484850_2.JPEG 2"
    flat = touch(tmp_path / "flat", "n01484850_7.JPEG", "n01443537_123.JPEG")
    assert lists(capsys, "--classes", classes, "--train", flat, "--output", tmp_path / "b")[0] == 0
    assert (tmp_path / "b" / "train.txt").read_text() == "n01443537_123.JPEG 1\nn01484850_7.JPEG 2\n"
    touch(flat, "n99999999_1.JPEG")
    code, _, err = lists(capsys, "--classes", classes, "--train", flat, "--output", tmp_path / "b")
    assert code == 1
    assert "no class for n99999999" in err


def test_validation_lists(tmp_path, classes, capsys):
    val = touch(tmp_path / "val", *(f"ILSVRC2012_val_0000000{n}.JPEG" for n in (3, 1, 2)))
    truth, ids = tmp_path / "truth.txt", tmp_path / "ids.txt"
    truth.write_text("490\n361\n171\n")
    arguments = ("--classes", classes, "--val", val, "--val-truth", truth, "--output", tmp_path)
    code, _, err = lists(capsys, *arguments)
    assert code == 1
    assert "own ids" in err
    assert "--devkit-ids" in err
    ids.write_text("171 n01440764\n361 n01484850\n490 n01443537\n")
    assert lists(capsys, *arguments, "--devkit-ids", ids)[0] == 0
    expected = [(f"ILSVRC2012_val_0000000{n}.JPEG", label) for n, label in ((1, 1), (2, 2), (3, 0))]
    assert (tmp_path / "val.txt").read_text() == "".join(f"{name} {label}\n" for name, label in expected)
    truth.write_text("n01443537\nn01484850\nn01440764\n")
    table = {"n01440764": 0, "n01443537": 1, "n01484850": 2}
    assert list_by_truth(val, truth, table) == expected
    solution = tmp_path / "LOC_val_solution.csv"
    solution.write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000003,n01440764 1 2 3 4 \n"
        "ILSVRC2012_val_00000001,n01443537 1 2 3 4 n01443537 1 1 2 2 \nILSVRC2012_val_00000002,n01484850 5 6 7 8 \n"
    )
    assert list_by_truth(val, solution, table) == expected
    truth.write_text("n01443537\n")
    with pytest.raises(ValueError, match="1 entries"):
        list_by_truth(val, truth, table)


def test_the_development_kits_meta_file_gives_the_ids(tmp_path, classes):
    val = touch(tmp_path / "val", "a.JPEG", "b.JPEG", "c.JPEG")
    truth = tmp_path / "truth.txt"
    truth.write_text("2\n3\n1\n")
    fields = [("ILSVRC2012_ID", float), ("WNID", object), ("words", object)]
    rows = [(1, "n01440764", "tench"), (2, "n01443537", "goldfish"), (3, "n01484850", "great white shark")]
    savemat(tmp_path / "meta.mat", {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    table = {"n01440764": 0, "n01443537": 1, "n01484850": 2}
    found = list_by_truth(val, truth, table, devkit_ids=str(tmp_path / "meta.mat"))
    assert found == [("a.JPEG", 1), ("b.JPEG", 2), ("c.JPEG", 0)]
    truth.write_text("2\n3\n4\n")
    with pytest.raises(ValueError, match=r"meta.mat has no id '4', which .*truth.txt uses"):
        list_by_truth(val, truth, table, devkit_ids=str(tmp_path / "meta.mat"))


def test_the_class_map_has_a_thousand_lines_and_errors_name_the_line(tmp_path):
    path = tmp_path / "map_to_1000.txt"
    path.write_text("".join(f"n{10 * index:08d} {index} some words\n" for index in range(1000)))
    classes = read_class_map(path)
    assert len(classes) == 1000
    assert (classes["n00000000"], classes["n00009990"]) == (0, 999)
    for line, number in (("n00000010 7\n", 1001), ("n99999999 x\n", 1001), ("n99999999\n", 1001)):
        wrong = tmp_path / "wrong.txt"
        wrong.write_text(path.read_text() + line)
        with pytest.raises(ValueError, match=f"wrong.txt, line {number}: '{line.strip()}'"):
            read_class_map(wrong)
    path.write_text("\n")
    with pytest.raises(ValueError, match="maps no class"):
        read_class_map(path)
