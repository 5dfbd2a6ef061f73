# ruff: noqa: RUF001 - the page writes true minus and multiplication signs
"""The report: every figure of the run folder on the page, nothing fetched, nothing invented, nothing of a stranger's run."""

from __future__ import annotations

import doctest
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from run_folders import STAGES, Page, axis, make_run, read, write
from secateur.core import codec
from secateur.core.errors import SecateurError
from secateur.core.plan import Cut, keep
from secateur.report import build as page
from secateur.report import frame, summary, table, words
from secateur.report.build import build
from secateur.report.folder import read as read_record

PIECES = ["run.json", "facts.json", "plan.json", "axes.json", "history.jsonl", "recipe.toml", "small.safetensors"]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> & \"'$x_1$ {{ 7*7 }} \u0000\u202e"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("finished"))
    build(folder)
    return folder


def html(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("module", [words, frame, page])
def test_the_examples_in_docstrings_run(module) -> None:
    assert doctest.testmod(module).failed == 0


def test_every_figure_is_in_the_table_with_its_ratio(finished: Path) -> None:
    """Held against arithmetic done here, on the fixture's own numbers."""
    rows = {row[0]: row[1:] for row in Page(html(finished)).rows if len(row) == 7}
    dense = STAGES[0]
    for stage in STAGES:
        cells = rows[stage["stage"]]
        share = {key: stage[key] / dense[key] for key in stage if key != "stage"}
        ratio = {key: f"1{words.TIMES}" if stage is dense else f"{value:.3f}{words.TIMES}" for key, value in share.items()}
        assert cells[0] == f"{stage['params']:,}{ratio['params']}"
        assert cells[1] == f"{stage['macs'] / 1e6:.2f}{ratio['macs']}"
        assert cells[2] == f"{stage['bytes'] / 1e6:.2f}{ratio['bytes']}"
        assert cells[3] == f"{stage['peak_memory'] / 1e3:.2f}{ratio['peak_memory']}"
        assert cells[4] == f"{stage['latency_ms']:.2f}{ratio['latency_ms']}"
        points = "" if stage is dense else f" {words.MINUS}{100 * (dense['accuracy'] - stage['accuracy']):.2f} pt"
        assert cells[5] == f"{100 * stage['accuracy']:.2f}{ratio['accuracy']}{points}"


def test_every_figure_is_on_the_page_digit_for_digit(finished: Path) -> None:
    cells = {cell for row in Page(html(finished)).rows for cell in row}
    for stage in STAGES:
        assert {repr(value) for key, value in stage.items() if key != "stage"} <= cells


def test_the_sentence_can_be_quoted(finished: Path) -> None:
    said = (
        "ResNet-56 on CIFAR-10: the compressed network needs 2.11× fewer multiply-accumulates and 2.06× fewer parameters, "
        "takes 2.01× less disk space, runs 1.62× faster, and scores 93.06 % accuracy instead of 94.37 % (−1.31 points)."
    )
    record = read_record(finished)
    assert summary.sentence(record.run, table.headline(record.facts)) == said
    assert Page(html(finished)).text.count(said) == 1


def test_widths_reasons_and_how_to_repeat_are_there(finished: Path) -> None:
    text = Page(html(finished)).text
    assert "376 of 1,008 units remain, in 27 axes" in text
    assert "24 of 32" in text
    assert "A slice of step 2 (the option-A shortcut) moves its entries 1 axis, 16 units" in text
    assert "92.8 % of all parameters lie in tensors that can be cut" in text
    for said in ("secateur run recipes/cifar10_resnet56.toml", "Intel Xeon Platinum 8481C", "2.13.0", 'criterion = "taylor"'):
        assert said in text
    assert "epoch 38, the best on held-out images, scores 92.97 %" in text


def test_the_same_folder_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    again = make_run(tmp_path / "elsewhere")
    assert build(again).read_bytes() == (finished / "report.html").read_bytes()
    assert build(again, tmp_path / "page.html") == tmp_path / "page.html"


def test_the_page_refers_to_nothing_outside_and_its_ids_are_unique(finished: Path) -> None:
    seen = Page(html(finished))
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert seen.tags & {"script", "img", "iframe", "object", "embed", "base", "form"} == set()
    for name, value in seen.attributes:
        if name in ("href", "src", "xlink:href"):
            assert value == "data:," or value.removeprefix("#") in ids, (name, value)
        for target in re.findall(r"url\(([^)]*)\)", value):
            assert target.removeprefix("#") in ids, (name, value)
        if name == "aria-labelledby":
            assert value in ids
    assert not re.search(r"@import|url\(|https?:", re.search(r"<style>(.*?)</style>", html(finished), re.S)[1])


def test_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    text = Page(build(make_run(tmp_path, finished=False)).read_text("utf-8")).text
    assert "This run is not finished." in text
    assert "Not measured: the network after fine-tuning." in text
    assert "small.safetensors (the small network)" in text
    assert "ResNet-56 on CIFAR-10: the network after repair needs" in text
    assert "Fine-tuning: 7 epochs" in text


@pytest.mark.parametrize("gone", [*([piece] for piece in PIECES), PIECES[1:], PIECES[:1] + PIECES[2:]], ids="-".join)
def test_whatever_is_missing_is_said_and_nothing_is_made_up(tmp_path: Path, gone: list[str]) -> None:
    folder = make_run(tmp_path)
    for piece in gone:
        (folder / piece).unlink()
    text = Page(build(folder).read_text("utf-8")).text
    assert not re.search(r"\b(nan|inf|None|null|undefined)\b", text)


def test_what_is_no_finite_number_is_shown_as_not_measured(tmp_path: Path) -> None:
    folder = make_run(tmp_path, epochs=3)
    facts = read(folder, "facts.json")
    facts["stages"][1] |= {"accuracy": float("nan"), "macs": None, "params": "many", "bytes": True, "latency_ms": float("inf")}
    facts["stages"][0]["loss"] = float("nan")
    write(folder, "facts.json", facts)
    with (folder / "history.jsonl").open("a") as history:
        history.write('{"phase": "finetune", "epoch": 4, "loss": NaN, "holdout_accuracy": null, "seconds": 1}\n')
    seen = Page(build(folder).read_text("utf-8"))
    row = next(row for row in seen.rows if len(row) == 7 and row[0] == "after the cut")
    assert row[1:4] + row[5:] == ["–"] * 5
    assert not re.search(r"\b(nan|inf|None)\b", seen.text, re.IGNORECASE)


def test_strangers_text_stays_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path, epochs=2)
    run = read(folder, "run.json")
    run |= dict.fromkeys(("title", "command", "model", "data", "started", "seed"), HOSTILE)
    run |= {"versions": {HOSTILE: HOSTILE}, "hardware": {"cpu": HOSTILE, HOSTILE: 1}, "phases": {HOSTILE: {"seconds": 1}}}
    facts = read(folder, "facts.json")
    facts |= {"metric": HOSTILE, "accuracy_on": HOSTILE}
    facts["stages"][2]["stage"] = HOSTILE
    write(folder, "run.json", run)
    write(folder, "facts.json", facts)
    write(folder, "recipe.toml", HOSTILE)
    rows = [axis(f"{HOSTILE}{i}", 8 + i, HOSTILE if i % 2 else None) for i in range(30)]
    write(folder, "axes.json", {"axes": rows, "free_share": 0.5, "notes": [HOSTILE]})
    write(folder, "history.jsonl", '{"phase": "<b>", "epoch": 1, "loss": 1}\n{"phase": "<i>", "epoch": 1, "loss": 2}\n')
    text = build(folder).read_text("utf-8")
    seen = Page(text)
    assert seen.tags & {"script", "img", "b", "i"} == set()
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert "<script>alert(1)</script><img src=x onerror=alert(1)>" in seen.text
    assert "{{ 7*7 }}" in seen.text
    assert not re.search("[\x00\u202e]", text)


def test_a_users_own_metric_is_no_percentage(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    facts = read(folder, "facts.json") | {"metric": "/home/me/own.py:mean_error"}
    for stage, value in zip(facts["stages"], (-12.5, -90.0, -31.0, -12.25), strict=True):
        stage["accuracy"] = value
    write(folder, "facts.json", facts)
    text = Page(build(folder).read_text("utf-8")).text
    assert "−12.25 mean_error instead of −12.50 (+0.25)" in text
    assert "own.py" not in text


@pytest.mark.parametrize("count", [1, 16, 17, 96, 300])
def test_any_number_of_axes_has_a_chart(tmp_path: Path, count: int) -> None:
    folder = make_run(tmp_path, epochs=1)
    names = [f"block.{i}" for i in range(count)]
    write(folder, "axes.json", {"axes": [axis(name, 8, None) for name in names], "free_share": 1.0, "notes": []})
    write(
        folder, "plan.json", codec.dumps(keep({}, [Cut(name, 8, tuple(range(1 + i % 8)), ()) for i, name in enumerate(names)]))
    )
    seen = Page(build(folder).read_text("utf-8"))
    assert f"in {words.plural(count, 'axis')}" in seen.text
    assert f"block.{count - 1}" in seen.text


DAMAGED = [
    ("facts.json", "{"),
    ("facts.json", "[1]"),
    ("facts.json", '{"stages": 3}'),
    ("run.json", '{"format": 2}'),
    ("run.json", "[" * 100_000),
    ("axes.json", "not json"),
    ("plan.json", '{"format": 99}'),
    ("history.jsonl", 'broken\n{"phase": "train", "epoch": 1}\n'),
]


@pytest.mark.parametrize("case", DAMAGED, ids=lambda case: f"{case[0]}-{case[1][:12]}")
def test_a_damaged_folder_is_one_sentence_and_the_old_page_stays(tmp_path: Path, case: tuple[str, str]) -> None:
    folder = make_run(tmp_path, epochs=1)
    before = build(folder).read_bytes()
    write(folder, *case)
    with pytest.raises(SecateurError, match="found"):
        build(folder)
    assert (folder / "report.html").read_bytes() == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"neither run\.json nor facts\.json"):
        build(tmp_path)
    with pytest.raises(SecateurError, match="no such folder"):
        build(tmp_path / "nowhere")


def test_labels_keep_order_distance_and_place() -> None:
    draw = random.Random(0)
    for _ in range(500):
        wanted = [draw.uniform(-20, 220) for _ in range(draw.randint(0, 8))]
        placed = frame.spread(wanted, 0, 200, 14)
        ordered = [place for _, place in sorted(zip(wanted, placed, strict=True))]
        assert all(b - a >= 14 - 1e-9 for a, b in pairwise(ordered)), wanted
        assert all(-1e-9 <= place <= 200 + 1e-9 for place in placed), wanted
    assert frame.spread([50, 100, 150], 0, 200, 14) == [50, 100, 150]


def test_labels_stay_off_the_line_of_the_dense_network() -> None:
    _, plot = frame.frame(250, left=40, right=12, top=32, bottom=38)
    frame.ranges(plot, (0, 1), (20, 100))
    pixels = plot.get_window_extent().height / 80
    placed = frame.beside(plot, [94.4, 27, 93.9, 94.1], 14, 94.2)
    assert placed[0] > 94.2 > max(placed[1:])
    assert min(abs(place - 94.2) for place in placed) * pixels >= 7
    assert min(b - a for a, b in pairwise(sorted(placed))) * pixels >= 14 - 1e-9


def test_the_terminal_table_fits_80_columns_of_ascii(finished: Path) -> None:
    shown = Console(width=80, no_color=True)
    with shown.capture() as captured:
        shown.print(table.to_rich(table.headline(read(finished, "facts.json"))))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(line for line in lines if "─" not in line)
    assert text.isascii()
    for said in ("after fine-tuning", "414,937", "0.486x", "59.47", "1.74", "7.30", "93.06", "-1.31 pt", "test, 10,000 images"):
        assert said in text


def test_the_table_as_json_holds_the_values_themselves(finished: Path) -> None:
    rows = table.to_json(table.headline(read(finished, "facts.json")))["stages"]
    assert [row["stage"] for row in rows] == [stage["stage"] for stage in STAGES]
    assert rows[3]["macs"] == {"value": 59474176, "ratio": round(59474176 / 125485706, 6)}


def luminance(colour: str) -> float:
    """Relative luminance. WCAG 2.2, definition of "relative luminance"."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_that_of_wcag_aa_in_light_and_dark() -> None:
    css = (Path(page.__file__).parent / "page.css").read_text("utf-8")
    schemes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)]
    schemes = [scheme for scheme in schemes if scheme]
    assert len(schemes) == 2
    for scheme in schemes:
        pairs = [(text, ground, 4.5) for text in ("ink", "muted", "accent", "warm") for ground in ("paper",)]
        pairs += [("ink", "wash", 4.5), ("ink", "notice", 4.5), ("accent", "track", 3.0)]
        for text, ground, least in pairs:
            high, low = sorted((luminance(scheme[text]), luminance(scheme[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (text, ground, scheme)
