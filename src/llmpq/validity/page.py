"""The page of a study: its tables, and the measured loss against every predictor, as one HTML file; the assignments as CSV."""

import csv
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llmpq import artifacts
from llmpq.report.figures.base import axis, layout
from llmpq.report.palette import option_colour
from llmpq.validity.study import POOLED

# Widths from dark to light, as the palette's options of many bits and few.
STEPS = ("4", "w8a8", "8", "16")
_COLUMNS, _ROW_HEIGHT = 3, 260
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c2230}"
    "table{border-collapse:collapse;margin:.6rem 0 1.6rem}"
    "td,th{padding:.25rem .8rem .25rem 0;text-align:left;border-bottom:1px solid #dfe3ea}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}"
)


def write_page(page: str | Path, table: str | Path, document: Mapping[str, Any]) -> None:
    """Write ``page`` (HTML with plotly inside, no network) and ``table`` (CSV, a row per assignment) of a ``validity`` artifact."""
    points = document["rank"]["points"]
    predictors, texts = list(points[0]["omega"]), list(points[0]["nll"])
    rows = [
        {
            "width": point["width"],
            "stored_bytes": point["stored_bytes"],
            **{f"omega {name}": point["omega"][name] for name in predictors},
            **{f"nll {text}": point["nll"][text] for text in texts},
            "options": " ".join(point["options"]),
        }
        for point in points
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    artifacts.write_text(table, stream.getvalue())
    artifacts.write_text(page, _page(document, predictors, texts))


def terminal(document: Mapping[str, Any]) -> str:
    """The ranks over all widths and the comparisons, as text."""
    lines = [f"{'predictor':16} {'text':14} {'width':10} Spearman (95 % interval)"]
    for row in document["rank"]["rows"]:
        interval = f"{row['value']:6.3f} ({row['low']:.3f} to {row['high']:.3f})"
        lines.append(f"{row['predictor']:16} {row['text']:14} {row['width']:10} {interval}")
    lines.append("")
    lines += [_sentence(row) for row in document["compare"]]
    lines.append("")
    for row in document["stability"]:
        same = f"{100 * row['same_share']:.0f} % of the layers at the same option, omega × {row['omega_ratio']:.3f}"
        lines.append(f"Calibrated as {row['quantizer']}, {row['size']}: {same}")
    return "\n".join(lines)


def _sentence(row: Mapping[str, Any]) -> str:
    difference = row["difference"]
    verdict = "better" if difference["high"] < 0 else "worse" if difference["low"] > 0 else "no different"
    return (
        f"Against {row['rival']} on {row['text']}: {verdict}, {difference['value']:+.4f} nats a token "
        f"({difference['low']:+.4f} to {difference['high']:+.4f}, {row['windows']} windows)."
    )


def _page(document: Mapping[str, Any], predictors: Sequence[str], texts: Sequence[str]) -> str:
    widths = list(dict.fromkeys(row["width"] for row in document["rank"]["rows"]))
    found = {(row["predictor"], row["text"], row["width"]): row for row in document["rank"]["rows"]}
    ranks = [
        [name, text, *(_interval(found[name, text, width]) for width in widths)] for name in [*predictors, "stored bytes"] for text in texts
    ]
    pairs = document["pairs"]
    over = [
        [row["option"], f"{row['layers'][0]} and {row['layers'][1]}", row["text"], f"{row['sum_of_both']:.5f}", f"{row['together']:.5f}"]
        for row in pairs
    ]
    figures = "".join(
        _scatter(document, [*predictors, "stored bytes"], text).to_html(
            full_html=False, include_plotlyjs="inline" if index == 0 else False, config={"displayModeBar": False}
        )
        for index, text in enumerate(texts)
    )
    return "\n".join(
        [
            f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{html.escape(document['name'])}: do indicators work?</title>",
            f"<style>{_STYLE}</style><h1>Do the indicators tell what options do?</h1>",
            f"<p>Study {html.escape(document['name'])} of {html.escape(str(document['settings']['model']))}, measured through the serving "
            "kernels. Spearman's rank correlation of each predictor, summed over the layers, with the mean loss of random assignments "
            "(95 % interval); “stored bytes” predicts that smaller is worse and knows nothing else.</p>",
            _table(["predictor", "text", *widths], ranks),
            f"<h2>The best assignment by {html.escape(str(document['settings']['indicator']))} against others of its size</h2><ul>",
            *(f"<li>{html.escape(_sentence(row))}</li>" for row in document["compare"]),
            "</ul>",
            _table(["beside", "text", "layers by option", "nats a token", "its layers", "its nats a token"], _comparisons(document)),
            "<h2>Measured loss against each predictor</h2>",
            figures,
            "<h2>Two layers together, and the sum of each alone</h2><p>Added loss in nats a token, all other layers at 16 bits.</p>",
            _table(["option", "layers", "text", "sum of both", "together"], over),
            "<h2>Other calibrations</h2><p>What the same indicator chooses after another calibration, beside its choice after the study's "
            "own: layers with the same option, the study's own omega of that choice over its own choice's, and the measured difference "
            "(nats a token, above 0: worse).</p>",
            _table(["quantizer", "size", "same option", "bits apart", "omega", *texts], _calibrations(document, texts)),
            "</html>",
        ]
    )


def _comparisons(document: Mapping[str, Any]) -> list[list[str]]:
    def layers(options: Sequence[str]) -> str:
        return ", ".join(f"{count} at {option}" for option, count in Counter(options).most_common())

    return [
        [row["rival"], row["text"], layers(row["options"]), f"{row['nll']:.4f}", layers(row["rival_options"]), f"{row['rival_nll']:.4f}"]
        for row in document["compare"]
    ]


def _calibrations(document: Mapping[str, Any], texts: Sequence[str]) -> list[list[str]]:
    def differs(found: Mapping[str, float]) -> str:
        return f"{found['value']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"

    return [
        [
            row["quantizer"], row["size"], f"{100 * row['same_share']:.0f} %", f"{row['mean_bits_apart']:.2f}",
            f"× {row['omega_ratio']:.3f}", *(differs(row["difference"][text]) for text in texts),
        ]
        for row in document["stability"]
    ]  # fmt: skip


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    return "<table>" + cells("th", head) + "".join(cells("td", row) for row in rows) + "</table>"


def _scatter(document: Mapping[str, Any], predictors: Sequence[str], text: str) -> go.Figure:
    points = document["rank"]["points"]
    found = {row["predictor"]: row for row in document["rank"]["rows"] if row["text"] == text and row["width"] == POOLED}
    lines = -(-len(predictors) // _COLUMNS)
    titles = [f"{name}: {found[name]['value']:.2f}" for name in predictors]
    figure = make_subplots(lines, _COLUMNS, subplot_titles=titles, vertical_spacing=0.09)
    widths = list(dict.fromkeys(point["width"] for point in points))
    for number, name in enumerate(predictors):
        for index, width in enumerate(widths):
            own = [point for point in points if point["width"] == width]
            figure.add_scatter(
                x=[point["stored_bytes"] / 2**20 if name == "stored bytes" else point["omega"][name] for point in own],
                y=[point["nll"][text] for point in own],
                mode="markers", name=width, legendgroup=width, showlegend=number == 0,
                marker={"size": 6, "color": option_colour(STEPS[index % 4])},
                row=number // _COLUMNS + 1, col=number % _COLUMNS + 1,
            )  # fmt: skip
    figure.update_layout(
        layout(lines * _ROW_HEIGHT, legend={"orientation": "h", "x": 0, "y": 1.12}, margin={"l": 50, "r": 10, "t": 60, "b": 40})
    )
    figure.update_xaxes(axis())
    figure.update_yaxes(axis(title=f"nats a token, {text}"), col=1)
    return figure
