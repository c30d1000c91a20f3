"""The terminal's table, the model card and the page of a run, with names of any kind and with nothing to show."""

import io
import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from markdown_it import MarkdownIt
from rich.console import Console
from rich.table import Table

from exfuse.data.classes import MAX_CLASS_NAME, voc_palette
from exfuse.drawing import one_line
from exfuse.evaluation import report as page
from exfuse.evaluation.bootstrap import Interval
from exfuse.evaluation.evaluate import EvaluationReport
from exfuse.metrics import ConfusionMatrix
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained
from support.nasty import NASTY_NAMES

LINES = [one_line(name) for name in NASTY_NAMES]


def report_of(names: Sequence[str], counted: bool = True, split: str = "val") -> EvaluationReport:
    matrix = ConfusionMatrix(len(names))
    if counted:
        matrix.counts += torch.from_numpy(np.random.default_rng(0).integers(1, 99, (len(names), len(names))))
        matrix.counts[-1] = 0  # absent
    protocol = {"data": split, "split": split, "images": 2, "ignore_index": 255, "mean_iou": "mean", "scales": [1.0],
                "flip": False, "versions": {split: "1"}, "step": 3}  # fmt: skip
    interval = Interval(0.1, 0.2) if counted else Interval(math.nan, math.nan)
    return EvaluationReport(matrix, tuple(names), protocol, interval, {"boundary_iou": {"mean": None, "classes": []}})


def info_of(report: EvaluationReport) -> ModelMetadata:
    return ModelMetadata(
        name="exfuse_tiny",
        options=options_of("exfuse_tiny", {"decoder": "stride4"}),
        class_names=report.class_names,
        palette=voc_palette(len(report.class_names)),
        ignore_index=255,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
        metrics=json.loads(json.dumps(report.to_json())),
    )


def printed(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200_000, color_system=None)
    console.print(table)
    return console.file.getvalue()


def write_page(folder: Path, report: EvaluationReport, record: dict[str, Any]) -> str:
    info = info_of(report)
    save_pretrained(folder / "model", build_model(info), info.to_json(), page.model_card(info, report, chosen=True))
    classes = SimpleNamespace(names=info.class_names, palette=info.palette)
    samples = [SimpleNamespace(image=np.zeros((32, 40, 3), np.uint8), mask=np.full((32, 40), 255, np.uint8))] * 2

    class Split(list):
        split = report.protocol["split"]

    dataset = Split(samples)
    dataset.classes = classes
    return page.run_report(folder, dataset, [record])


class PageReader(HTMLParser):
    """What a browser sees: the tags, and the text of each table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_the_terminal_shows_names_as_they_are() -> None:
    for split in NASTY_NAMES:
        text = printed(page.scores_table(report_of(("road", split), split=split)))
        assert f"{one_line(split)}: 2 images" in text
        assert re.search(rf"absent.*: {re.escape(one_line(split))}", text)
    text = printed(page.scores_table(report_of(NASTY_NAMES)))
    for line in LINES:
        assert line in text
    assert not {letter for letter in text if not letter.isprintable()} - {"\n"}


def test_the_model_card_shows_names_as_they_are() -> None:
    for split in (NASTY_NAMES[0], "<b>|`x`\n# y"):
        report = report_of(NASTY_NAMES, split=split)
        _, front, body = page.model_card(info_of(report), report, chosen=False).split("---\n", 2)
        assert yaml.safe_load(front) == {"library_name": "exfuse", "pipeline_tag": "image-segmentation"}
        body.encode()
        tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
        assert "html_block" not in {token.type for token in tokens}
        # The code in the paragraph is the architecture's name, which is one of ours.
        cells = [token for place, token in enumerate(tokens) if tokens[place - 1].type in ("td_open", "th_open")]
        kinds = {child.type for token in cells for child in token.children}
        assert kinds <= {"text", "text_special"}, kinds
        shown = ["".join(child.content for child in token.children) for token in cells]
        assert shown[3 : 3 + 3 * len(LINES) : 3] == LINES
        headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
        assert len(headings) == 3
        assert "$" not in body.replace("\\$", "")
        assert "https://e" not in body, "GitHub makes a link of it"
        assert "www.e" not in body


def test_a_run_s_page_shows_names_as_they_are(tmp_path: Path) -> None:
    names = [name for name in NASTY_NAMES if name.strip() and len(name) <= MAX_CLASS_NAME and "\ud800" not in name]
    report = report_of(names, split="<i>val</i>\x1b")
    record = {"kind": "val", "epoch": 1, "mean_iou": 0.5}
    reader = PageReader(write_page(tmp_path / "<u>run $x$", report, record))
    ours = ("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "img", "table", "tr", "td", "th")
    assert reader.tags == set(ours)
    assert reader.attributes == {"lang", "charset", "alt", "src"}
    assert reader.cells[4 : 4 + 4 * len(names) : 4] == [one_line(name) for name in names]


def test_the_confusion_matrix_names_its_classes_literally() -> None:
    figure = page._confusion(report_of(NASTY_NAMES))
    figure.savefig(io.BytesIO(), format="png")
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        shown = [label.get_text() for label in labels]
        assert shown[0] == r"$\frac{$"
        assert shown[1] == "$x$"
        assert shown[NASTY_NAMES.index("中文")] == "□□", "no font of ours has them"
        assert max(map(len, shown)) == 40
        assert not any(label.get_parse_math() for label in labels)
    assert max(figure.get_size_inches()) < 20


def test_a_split_without_a_label_has_dashes(tmp_path: Path) -> None:
    report = report_of(("road", "sky"), counted=False)
    text = printed(page.scores_table(report))
    assert re.search("absent.*: road, sky", text)
    assert "nan" not in text.lower()
    assert "-" in printed(page.measures_table(report))
    card = page.model_card(info_of(report), report, chosen=True)
    assert "Mean IoU -, pixel accuracy -." in card
    for score in (None, math.nan):
        text = write_page(tmp_path / f"run_{score is None}", report, {"kind": "val", "epoch": 1, "mean_iou": score})
        assert "mean IoU <b>-</b> (- to - at 95 %)" in text
        assert "nan" not in text.partition("data:image")[0].lower()
