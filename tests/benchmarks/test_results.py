"""The rows, the stored run, what the documents show of it, and the check against it."""

import json
import math

import pytest

import benchmarks.__main__ as runner
from benchmarks import bounds, report, smoke
from benchmarks.documents import Part
from benchmarks.group import format_line
from benchmarks.results import Results, folder, in_order, stored
from benchmarks.rows import GROUPS, ROW, ROWS, Figure


def figures(**changed):
    return in_order(changed.get(row.key) or Figure(row.key, 0.5, 0.6, {"b1, ms": 12.0}) for row in ROWS)


def results(processor="a processor", **changed):
    machine = {"processor": processor, "threads": "2", "date": "2026-01-01", "commit": "abc", "paddlepaddle": "3"}
    return Results(machine, 9, figures(**changed), {"layers": 3.5})


@pytest.mark.parametrize(
    ("key", "value", "reached"),
    [
        ("forward_1_resnet50", 0.60, "aim"),
        ("forward_1_resnet50", 0.61, "must"),
        ("forward_1_resnet50", 0.73, "no"),
        ("pipeline", 1.3, "aim"),
        ("pipeline", 1.0, "must"),
        ("pipeline", 0.99, "no"),
        ("imports", 0.15, "must"),
        ("imports", 0.16, "no"),
    ],
)
def test_targets_are_upper_bounds_but_where_more_is_better(key, value, reached):
    assert ROW[key].reached(value) == reached


def test_stored_runs_have_a_figure_for_every_row_and_the_documents_show_it():
    runs = [Results.read(path) for path in stored("bench.json")]
    for path, run in zip(stored("bench.json"), runs):
        assert path.parent == folder(run.machine)
        assert run.missing == []
        assert run.rounds >= 7
    assert report.PART.read(report.DOCUMENT) == report.table(runs)
    for language, readme in report.READMES.items():
        assert report.PART.read(readme) == report.summary(runs, language)


def test_stored_latencies_are_of_all_networks_in_the_picture():
    for path in stored("latency.json"):
        names = [point["name"] for point in json.loads(path.read_text())["points"]]
        assert names == [*["B1", "B2", "B3", "B4", "B5"] * 2, "ResNet-50", "ResNet-101", "Swin-T"]


def test_results_survive_their_file(tmp_path):
    results().write(tmp_path / "folder" / "bench.json")
    assert Results.read(tmp_path / "folder" / "bench.json") == results()


def test_table_has_targets_figures_and_what_was_missed():
    table = report.table(
        [results(forward_1_resnet50=Figure("forward_1_resnet50", 0.8, 0.9), imports=Figure("imports", 0.12, 0.2))]
    )
    assert "against resnet50 of paddle.vision | 0.72 | 0.60 | **0.80** (0.90) missed |" in table
    assert "| 0.15 s | 0.10 s | **0.12 s** (0.20 s) must |" in table
    assert "a processor, 2 threads, paddlepaddle 3, 2026-01-01, 9 rounds in turns, commit abc." in table
    assert "differ" not in table


def test_each_processor_has_a_column_and_what_depends_on_it_is_named():
    slower = results("another(R) Processor", cutmix=Figure("cutmix", 0.6, 0.6), mixup=Figure("mixup", 0.55, 0.6))
    table = report.table([results(), slower])
    assert "| must | aim | a processor | another |" in table
    assert f"| {ROW['cutmix'].what} | 3.00 | 2.00 | **0.50** (0.60) aim | **0.60** (0.60) aim |" in table
    assert f"differ in: {ROW['cutmix'].what}." in table
    assert "| B1 forward, batch 1, 224 px | 0.50 | 0.50 |" in report.summary([results(), slower], "en")


def test_a_row_without_a_figure_says_why_in_terminal_and_table_and_counts_as_missing():
    unknown = Figure("pipeline", math.nan, math.nan, note="no timm")
    there = results(pipeline=unknown)
    assert there.missing == ["pipeline"]
    assert "| not measured: no timm |" in report.table([there])
    assert "not measured" in format_line(unknown)
    assert "no timm" in format_line(unknown)


def test_picture_is_drawn_from_the_points(tmp_path):
    from PIL import Image

    data = report.newest_latencies()
    report.draw(data, tmp_path / "a.png")
    data["points"][0]["ms"] *= 2
    report.draw(data, tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").size[0] >= 900
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_part_is_replaced_between_its_markers_only(tmp_path):
    part, document = Part("a table", "make it"), tmp_path / "README.md"
    document.write_text(f"before\n{part.begin}\nold\n{part.end}\nafter\n")
    part.write(document, "new\nlines")
    assert part.read(document) == "new\nlines"
    assert document.read_text() == f"before\n{part.begin}\nnew\nlines\n{part.end}\nafter\n"
    document.write_text("no markers\n")
    with pytest.raises(ValueError, match=r"README\.md needs the lines"):
        part.write(document, "new")


def test_smoke_tries_three_times_and_one_good_try_is_enough(capsys):
    tries = iter([0.9, 0.8, 0.62])
    assert smoke.too_slow(results(), {"forward_1_resnet50": lambda: next(tries)}) == []
    assert "0.900, 0.800, 0.620; stored 0.500, at most 0.625: ok" in capsys.readouterr().out


def test_smoke_names_what_is_too_slow_in_all_tries(capsys):
    calls = []
    checks = {"forward_1_resnet50": lambda: calls.append(1) or 0.63, "cyclefc_forward_64": lambda: 0.6}
    assert smoke.too_slow(results(), checks) == ["forward_1_resnet50"]
    assert len(calls) == 3
    assert "TOO SLOW" in capsys.readouterr().out


@pytest.mark.parametrize(("processor", "status"), [("a processor", 1), ("another", 0)])
def test_smoke_compares_with_figures_of_the_same_processor_only(monkeypatch, tmp_path, capsys, processor, status):
    monkeypatch.setattr("benchmarks.results.RESULTS", tmp_path)
    results().write(folder(results().machine) / "bench.json")
    monkeypatch.setattr(smoke, "start_again_with", lambda _: None)
    monkeypatch.setattr(smoke, "CHECKS", {"forward_1_resnet50": lambda: 9.0})
    monkeypatch.setattr(smoke, "describe_machine", lambda: {"processor": processor})
    assert smoke.main() == status
    assert ("no figures of this processor, another" in capsys.readouterr().out) == (status == 0)


def test_smoke_checks_the_network_and_every_width_of_the_layer():
    assert list(smoke.CHECKS) == ["forward_1_resnet50", *(f"cyclefc_forward_{c}" for c in (64, 128, 320, 512))]


def run_all(monkeypatch, tmp_path, arguments, missing=()):
    machine = results().machine
    by_group = dict.fromkeys(GROUPS, ())
    by_group["layers"] = tuple(figure for figure in figures() if figure.key not in missing)
    monkeypatch.setattr("benchmarks.results.RESULTS", tmp_path)
    monkeypatch.setattr(runner, "describe_machine", lambda: machine)
    monkeypatch.setattr(runner, "run_group", lambda group, rounds: by_group[group])
    monkeypatch.setattr(runner, "start_again_with", lambda wanted: None)
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    return runner.main(), tmp_path / "a-processor" / "bench.json"


def test_a_whole_run_is_stored(monkeypatch, tmp_path, capsys):
    code, path = run_all(monkeypatch, tmp_path, [])
    assert code == 0
    assert Results.read(path).missing == []
    assert capsys.readouterr().out.count(" must ") >= len(ROWS)


@pytest.mark.parametrize("arguments", [["--groups", "layers"], []])
def test_a_part_of_a_run_is_not_stored(monkeypatch, tmp_path, capsys, arguments):
    code, path = run_all(monkeypatch, tmp_path, arguments, missing=[] if arguments else ["onnx"])
    assert code == (0 if arguments else 1)
    assert not path.exists()
    output = capsys.readouterr()
    assert "nothing is stored" in output.out
    assert ("onnx" in output.err) == (not arguments)


def test_document_of_bounds_shows_the_stored_ones():
    assert bounds.PART.read(bounds.DOCUMENT) == bounds.tables() != ""


def test_operators_are_products_or_others_and_what_no_profile_shows_is_said():
    operators = {"Gemm": 5.0, "Conv": 1.0, "Gelu": 2.0, "Concat": 3.0}
    row = {"whole": 20.0, "operators": operators}
    machine = results().machine
    layer = dict.fromkeys(bounds.LAYER_PARTS, 1.5)
    text = bounds.render({"machine": machine, "rounds": 9, "layers": {"64": layer}, "exported": {"b1": row}})
    assert "| b1 | 20.0 | 6.0 | Concat 3.0, Gelu 2.0; not in the profile 9.0 |" in text
    assert "| 64 | 1.50 |" in text


def test_onednn_lines_are_summed_by_primitive():
    output = "\n".join(
        [
            "onednn_verbose,v1,info,oneDNN v3.6",
            "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul,undef,src:f32,,,4x4:4x4,0.5",
            "onednn_verbose,v1,primitive,create:cache_hit,cpu,matmul,brg_matmul,undef,src:f32,,,4x4:4x4,9",
            "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul,undef,src:f32,,,4x4:4x4,1.5",
            "onednn_verbose,v1,primitive,exec,cpu,reorder,simple,undef,src:f32,,,4x4,3.0",
        ]
    )
    assert bounds.parse_verbose(output, 2) == {"matmul": 1.0, "reorder": 1.5}
