import pytest

from cyclemlp_backbones.cli import main
from cyclemlp_backbones.digits import DemoSettings, is_complete


def test_writes_what_the_flags_say_and_sums_it_up(tmp_path, capsys):
    folder = tmp_path / "scenes"
    flags = ["--format", "coco", "--train", "4", "--val", "3", "--size", "48", "--seed", "9", "--max-digits", "2"]
    assert main(["demo-data", str(folder), *flags, "--workers", "3"]) == 0
    assert is_complete(folder, DemoSettings("coco", train=4, val=3, size=48, seed=9, max_digits=2))
    output = capsys.readouterr()
    assert "4 training and 3 held-out scenes, 10 classes, 48 x 48 pixels, seed 9, as coco" in output.out
    assert "7/7" in output.err  # the progress bar


def test_a_folder_in_use_is_left_alone_unless_forced(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    command = ["demo-data", str(tmp_path), "--format", "seg", "--train", "2", "--val", "1", "--size", "32"]
    assert main(command) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert main([*command, "--force"]) == 0
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "val.txt").read_text() == "images/val/000000.png annotations/val/000000.png\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train", "0"], "train is 0; it takes an integer from 1 to 100000"),
        (["--size", "8"], "size is 8; it takes an integer from 32 to 1024"),
        (["--workers", "0"], "workers is 0; it takes an integer from 1 to 64"),
        (["--seed", "-4"], "seed is -4"),
    ],
)
def test_a_bad_number_is_a_short_error_and_writes_nothing(tmp_path, capsys, flags, message):
    folder = tmp_path / "new"
    assert main(["demo-data", str(folder), "--format", "seg", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 3
    assert not folder.exists()


def test_an_unknown_format_is_a_wrong_call(tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        main(["demo-data", str(tmp_path / "new"), "--format", "voc"])
    assert status.value.code == 2
    assert "invalid choice: 'voc'" in capsys.readouterr().err
