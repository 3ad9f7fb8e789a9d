"""The page's charts: Vega-Lite's, and for the timeline, whose rows and spans move together, Vega's own.

A chart names its data; the page gives it. Words that begin with `$` stand for colours of the page's theme. Names and
values of an application reach a chart as data only, never as a field, an expression or a spec.
"""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]

STEP_COLOURS = {
    "choose": "#8d949e",
    "build": "#d9922e",
    "push": "#9a63c9",
    "forward": "#2fa3b1",
    "run": "#4a86d8",
    "fetch": "#4c9a5f",
    "clean": "#a9805f",
}
OUTCOME_COLOURS = {
    "ok": "#3a9d5d",
    "failed": "#d93b3b",
    "crashed": "#a12a63",
    "incomplete": "#d9922e",
    "unknown": "#8d949e",
}
COLOURS = (
    "#4a86d8", "#dd7f33", "#3a9d5d", "#b355c4", "#b8951f", "#1f9fb0",
    "#d4497c", "#7d8794", "#8468b8", "#6f8f2f", "#a75d3d", "#4f8f8a",
)  # fmt: skip

ROW_PX = {"box": 34, "durations": 13, "arrivals": 24, "difference": 19, "links": 24}
"""The height of a row in the charts that have rows; the page multiplies it by their number."""


def charts() -> dict[str, Spec]:
    """All charts by name."""
    return {
        "timeline": timeline(),
        "box": distribution(),
        "curve": cumulative(),
        "course": course(),
        "durations": durations(),
        "arrivals": arrivals(),
        "difference": differences(),
        "links": links(),
    }


def _boxes(*, offset: str | None, colour: dict[str, Any]) -> list[Spec]:
    """Extremes as a line, quartiles as a bar, the median as a tick; `offset` puts several beside each other."""
    across = {} if offset is None else {"yOffset": {"field": offset, "sort": None}}
    # Beside others only what is so many pixels high stands in the middle of its place.
    line: Spec = {"type": "rule"} if offset is None else {"type": "bar", "height": 1.5}
    height: Any = {"band": 0.62} if offset is None else 7
    tooltip = [
        {"field": "label", "title": "of"},
        {"field": "n", "title": "values", "format": ","},
        *(
            {"field": field, "title": title, "format": ".4~g"}
            for field, title in (
                ("least", "least"), ("q1", "1st quartile"), ("median", "median"), ("q3", "3rd quartile"),
                ("most", "greatest"), ("low", "median, 95 %: from"), ("high", "to"),
            )
        ),
    ]  # fmt: skip
    return [
        {"mark": {**line, "tooltip": True, "opacity": 0.8}, "encoding": {
            **across, "x": {"field": "least"}, "x2": {"field": "most"}, "color": colour, "tooltip": tooltip}},
        {"mark": {"type": "bar", "opacity": 0.45, "height": height}, "encoding": {
            **across, "x": {"field": "q1"}, "x2": {"field": "q3"}, "color": colour, "tooltip": tooltip}},
        {"mark": {"type": "tick", "thickness": 2.5, "height": height}, "encoding": {
            **across, "x": {"field": "median"}, "color": colour, "tooltip": tooltip}},
    ]  # fmt: skip


def _value_axis(**more: Any) -> Spec:
    # Thousandths of seconds as 5m would read as minutes: below a thousand plain numbers are shown.
    return {
        "type": "quantitative",
        "scale": {"zero": False, "nice": True},
        "axis": {"labelExpr": _NUMBER, "tickCount": 6, "titleLimit": 500},
        **more,
    }


_SECONDS = "seconds since the run's start"
_SPAN = "from: format(datum.start, '.3f') + ' s', took: format(datum.end - datum.start, '.3f') + ' s'"
_NUMBER = (
    "datum.value == 0 ? '0' : abs(datum.value) >= 10000 ? format(datum.value, '.4~s') "
    ": abs(datum.value) < 0.001 ? format(datum.value, '.3~e') : format(datum.value, '.5~r')"
)


def distribution() -> Spec:
    """Boxes of each label, and the dots of single instances behind them."""
    label = {"field": "label", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 180}}
    colour = {"field": "label", "type": "nominal", "legend": None, "sort": None}
    dots = {
        "data": {"name": "dots"},
        "transform": [{"calculate": "(random() - 0.5) * 8", "as": "jitter"}],
        "mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.4},
        "encoding": {
            "x": {"field": "value", "type": "quantitative"},
            "yOffset": {"field": "jitter", "type": "quantitative", "scale": {"domain": [-9, 9]}},
            "color": colour,
            "tooltip": [
                {"field": "name", "title": "instance"},
                {"field": "host", "title": "host"},
                {"field": "value", "title": "its value", "format": ".5~g"},
            ],
        },
    }
    return {
        "data": {"name": "boxes"},
        "height": ROW_PX["box"],
        "resolve": {"scale": {"yOffset": "independent"}},
        "encoding": {"y": label, "x": _value_axis(field="median", title="$title")},
        "layer": [dots, *_boxes(offset=None, colour=colour)],
    }


def cumulative() -> Spec:
    """The share of values up to each value, a line for each group."""
    return {
        "data": {"name": "curves"},
        "height": 190,
        "mark": {"type": "line", "interpolate": "linear", "tooltip": True},
        "encoding": {
            "x": _value_axis(field="value", title="$title"),
            "y": {
                "field": "fraction",
                "type": "quantitative",
                "title": "share of values up to it",
                "axis": {"format": "%", "tickCount": 5},
            },
            "order": {"field": "fraction", "type": "quantitative"},
            "color": _labels_colour("stroke"),
            "tooltip": [
                {"field": "label", "title": "of"},
                {"field": "fraction", "title": "share", "format": ".1%"},
                {"field": "value", "title": "up to", "format": ".5~g"},
            ],
        },
    }


def _labels_colour(symbol: str) -> Spec:
    legend = {"orient": "top", "title": None, "columns": 6, "labelLimit": 160, "symbolType": symbol}
    # Without an opacity of its own a symbol would have that of the chart's first layer.
    legend |= {"symbolStrokeWidth": 2, "symbolOpacity": 1}
    return {"field": "label", "type": "nominal", "sort": None, "legend": legend}


def course() -> Spec:
    """Medians over time, with the span that holds the middle eight tenths."""
    seconds = {
        "field": "t",
        "type": "quantitative",
        "title": _SECONDS,
        "axis": {"tickCount": 10},
    }
    return {
        "data": {"name": "courses"},
        "height": 190,
        "encoding": {"x": {**seconds, "scale": {"nice": False}}, "color": _labels_colour("stroke")},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.18},
                "encoding": {"y": _value_axis(field="low", title="$title"), "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "point": {"size": 14}, "strokeWidth": 1.6},
                "encoding": {
                    "y": _value_axis(field="median", title="$title"),
                    "tooltip": [
                        {"field": "label", "title": "of"},
                        {"field": "t", "title": "s", "format": ".2f"},
                        {"field": "median", "title": "median", "format": ".5~g"},
                        {"field": "low", "title": "a tenth below", "format": ".5~g"},
                        {"field": "high", "title": "a tenth above", "format": ".5~g"},
                        {"field": "n", "title": "values"},
                    ],
                },
            },
        ],
    }


def durations() -> Spec:
    """How long each step took, on all hosts or host by host."""
    return {
        "data": {"name": "durations"},
        "height": ROW_PX["durations"],
        "encoding": {
            "y": {"field": "step", "type": "nominal", "sort": list(STEP_COLOURS), "title": None},
            "x": _value_axis(field="median", title="seconds"),
        },
        "layer": _boxes(offset="label", colour=_labels_colour("square")),
    }


def arrivals() -> Spec:
    """When each client came to each state; the last one is whom the others waited for."""
    return {
        "data": {"name": "signals"},
        "height": ROW_PX["arrivals"],
        "mark": {"type": "tick", "thickness": 1.5, "height": {"band": 0.75}},
        "encoding": {
            "x": {
                "field": "at",
                "type": "quantitative",
                "title": _SECONDS,
                "axis": {"tickCount": 10},
                "scale": {"domain": [0, {"expr": "duration"}], "nice": False},
            },
            "y": {"field": "state", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 180}},
            "color": {
                "condition": {"test": "datum.is_last == 1", "value": OUTCOME_COLOURS["failed"]},
                "value": COLOURS[0],
            },
            "tooltip": [
                {"field": "client", "title": "who"},
                {"field": "state", "title": "state"},
                {"field": "seq", "title": "as number"},
                {"field": "at", "title": "at, s", "format": ".3f"},
            ],
        },
        "params": [{"name": "duration", "value": 1}],
    }


def differences() -> Spec:
    """How much each measure differs from the first variant, in per cent of it, with its interval."""
    scale = {"field": "verdict", "type": "nominal", "scale": {
        "domain": ["more than noise", "within noise", "too few values to tell"],
        "range": ["#d93b3b", "#4a86d8", "#8d949e"]}, "legend": {"orient": "top", "title": None}}  # fmt: skip
    shape = {**scale, "scale": {"domain": scale["scale"]["domain"], "range": ["diamond", "circle", "cross"]}}  # type: ignore[index]
    y = {"field": "what", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 320}}
    axis = {"format": "+~r", "tickCount": 10}
    x = {"type": "quantitative", "title": "difference from the first, per cent of it", "axis": axis}
    tooltip = [
        {"field": "what", "title": "of"},
        {"field": "variant", "title": "variant"},
        {"field": "percent", "title": "%", "format": "+.3~g"},
        {"field": "low_percent", "title": "from %", "format": "+.3~g"},
        {"field": "high_percent", "title": "to %", "format": "+.3~g"},
        {"field": "verdict", "title": "that is"},
    ]
    across = {"yOffset": {"field": "variant", "sort": None}}
    return {
        "data": {"name": "differences"},
        "height": ROW_PX["difference"],
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [3, 3], "color": "$soft"}, "encoding": {"x": {"datum": 0, **x}}},
            {
                "mark": {"type": "rule", "strokeWidth": 2, "clip": True},
                "encoding": {
                    "y": y, **across, "x": {"field": "low_percent", **x}, "x2": {"field": "high_percent"},
                    "color": scale, "tooltip": tooltip,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "clip": True},
                "encoding": {
                    "y": y, **across, "x": {"field": "percent", **x}, "color": scale, "shape": shape,
                    "tooltip": tooltip,
                },
            },
        ],
    }  # fmt: skip


def links() -> Spec:
    """From each host (a row) to each other (a column): the shade grows with the value, ✕ marks what has none."""
    band = {"type": "nominal", "sort": None, "scale": {"paddingInner": 0.06}}
    return {
        "data": {"name": "links"},
        "height": ROW_PX["links"],
        "encoding": {
            "y": {**band, "field": "source", "title": "from", "axis": {"labelLimit": 180}},
            "x": {**band, "field": "target", "title": "to", "axis": {"orient": "top", "labelLimit": 90}},
            "tooltip": [
                {"field": "source", "title": "from"},
                {"field": "target", "title": "to"},
                {"field": "address", "title": "at"},
                {"field": "trip", "title": "round trip, median"},
                {"field": "slow", "title": "nine tenths up to"},
                {"field": "rate", "title": "throughput"},
                {"field": "problem", "title": "problem"},
            ],
        },
        "layer": [
            {
                "mark": {"type": "rect", "color": COLOURS[0]},
                "encoding": {
                    "opacity": {
                        "field": "value",
                        "type": "quantitative",
                        "scale": {"range": [0.12, 0.7], "zero": True},
                        "legend": None,
                    }
                },
            },
            {
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {
                    "text": {"field": "words"},
                    "color": {"condition": {"test": "datum.problem != ''", "value": "$bad"}, "value": "$text"},
                },
            },
        ],
    }


def timeline() -> Spec:
    """A row for each instance: steps as bars, stages and waits on them, failures as crosses. In Vega."""
    row = "height / (y1 - y0)"
    visible = f"{row} >= 9"
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "padding": 5,
        "autosize": {"type": "none"},
        "signals": [
            {"name": "left", "value": 190},
            {"name": "x0", "value": 0},
            {"name": "x1", "value": 1},
            {"name": "y0", "value": 0},
            {"name": "y1", "value": 1},
        ],
        "data": [{"name": name} for name in ("rows", "bands", "bars", "stages", "waits", "arrivals", "failures")],
        "scales": [
            {"name": "x", "type": "linear", "domain": {"signal": "[x0, x1]"}, "range": {"signal": "[left, width]"},
             "zero": False, "nice": False},
            {"name": "y", "type": "linear", "domain": {"signal": "[y0, y1]"}, "range": {"signal": "[0, height - 40]"},
             "zero": False, "nice": False},
            {"name": "step", "type": "ordinal", "domain": list(STEP_COLOURS), "range": list(STEP_COLOURS.values())},
        ],
        "marks": [
            {
                "type": "group", "clip": True,
                "encode": {"update": {"width": {"signal": "width"}, "height": {"signal": "height - 40"}}},
                "marks": [
                    {"type": "rect", "from": {"data": "bands"}, "interactive": False, "encode": {"update": {
                        "x": {"value": 0}, "x2": {"signal": "width"},
                        "y": {"scale": "y", "field": "first"}, "y2": {"scale": "y", "field": "end"},
                        "fill": {"signal": "datum.odd ? '$band' : 'transparent'"}}}},
                    {"type": "text", "from": {"data": "bands"}, "encode": {"update": {
                        "x": {"value": 4}, "limit": {"signal": "left - 84"}, "baseline": {"value": "middle"},
                        "y": {"signal": "max(scale('y', datum.first), 0) + 9"}, "text": {"field": "host"},
                        "fontWeight": {"value": 600}, "fill": {"value": "$text"}, "fontSize": {"value": 11},
                        "opacity": {"signal": "scale('y', datum.end) - scale('y', datum.first) >= 8 "
                                              "&& scale('y', datum.end) > 12 ? 1 : 0"}}}},
                    {"type": "text", "from": {"data": "rows"}, "encode": {"update": {
                        "x": {"signal": "left - 6"}, "align": {"value": "right"}, "baseline": {"value": "middle"},
                        "y": {"scale": "y", "signal": "datum.pos + 0.5"}, "limit": {"value": 76},
                        "text": {"signal": "datum.outcome == 'ok' ? datum.name : '✕ ' + datum.name"},
                        "fill": {"signal": "datum.outcome == 'ok' ? '$soft' : '$bad'"},
                        "fontSize": {"signal": f"min(11, max(8, {row} - 1))"},
                        "opacity": {"signal": f"{visible} ? 1 : 0"},
                        "tooltip": {"signal": "{title: datum.name, host: datum.host, group: datum.group, "
                                              "outcome: datum.outcome, reason: datum.reason}"}}}},
                ],
            },
            {
                "type": "group", "clip": True,
                "encode": {"update": {"x": {"signal": "left"}, "width": {"signal": "width - left"},
                                      "height": {"signal": "height - 40"}}},
                "scales": [{"name": "x", "type": "linear", "domain": {"signal": "[x0, x1]"},
                            "range": {"signal": "[0, width - left]"}, "zero": False, "nice": False}],
                "axes": [{"orient": "bottom", "scale": "x", "grid": True, "domain": False, "ticks": False,
                          "labels": False, "gridOpacity": 0.5, "tickCount": {"signal": "ceil(width / 90)"}}],
                "marks": [
                    _bar("bars", 0.10, 0.90, fill={"scale": "step", "field": "step"},
                         opacity={"signal": "datum.failed ? 0.55 : 0.92"},
                         tooltip="{title: datum.name + ': ' + datum.step, host: datum.host, " + _SPAN
                                 + ", detail: datum.detail}"),
                    _bar("stages", 0.55, 0.90, fill={"value": "$stage"}, opacity={"value": 0.75},
                         tooltip="{title: datum.name + ': stage ' + datum.stage, host: datum.host, " + _SPAN
                                 + ", ended: datum.failed ? 'no' : 'yes'}"),
                    _bar("waits", 0.30, 0.55, fill={"value": "$wait"}, opacity={"value": 0.6},
                         tooltip="{title: datum.name + ' waits for ' + datum.state, target: datum.target, " + _SPAN
                                 + ", 'the last to come': datum.last || 'none, it was never met'}"),
                    {"type": "text", "from": {"data": "stages"}, "interactive": False, "encode": {"update": {
                        "x": {"scale": "x", "field": "start", "offset": 3}, "baseline": {"value": "middle"},
                        "y": {"scale": "y", "signal": "datum.pos + 0.73"}, "text": {"field": "stage"},
                        "fill": {"value": "#ffffff"}, "fontSize": {"value": 8},
                        "limit": {"signal": "scale('x', datum.end) - scale('x', datum.start) - 5"},
                        "opacity": {"signal": f"{row} >= 22 && scale('x', datum.end) - scale('x', datum.start) > 24 "
                                              "? 1 : 0"}}}},
                    {"type": "symbol", "from": {"data": "arrivals"}, "encode": {"update": {
                        "x": {"scale": "x", "field": "at"}, "y": {"scale": "y", "signal": "datum.pos + 0.5"},
                        "shape": {"value": "triangle-right"}, "fill": {"value": "$text"},
                        "size": {"signal": f"min(60, max(8, {row} * 3))"},
                        "tooltip": {"signal": "{title: datum.name + ' came to ' + datum.state, 'as number': datum.seq, "
                                              "at: format(datum.at, '.3f') + ' s'}"}}}},
                    {"type": "symbol", "from": {"data": "failures"}, "encode": {"update": {
                        "x": {"scale": "x", "field": "end"}, "y": {"scale": "y", "signal": "datum.pos + 0.5"},
                        "shape": {"value": "M-1,-1L1,1M-1,1L1,-1"}, "stroke": {"value": "$bad"},
                        "strokeWidth": {"value": 2.2}, "size": {"signal": f"min(90, max(30, {row} * 5))"},
                        "tooltip": {"signal": "{title: datum.name + ': ' + datum.outcome, host: datum.host, "
                                              "reason: datum.reason}"}}}},
                ],
            },
            {"type": "rule", "interactive": False, "encode": {"update": {
                "x": {"signal": "left"}, "x2": {"signal": "left"}, "y": {"value": 0},
                "y2": {"signal": "height - 40"}, "stroke": {"value": "$line"}}}},
            {
                "type": "group",
                "encode": {"update": {"y": {"signal": "height - 40"}, "width": {"signal": "width"}}},
                "axes": [{"orient": "top", "scale": "x", "offset": -22, "domain": False, "ticks": False,
                          "title": None, "tickCount": {"signal": "ceil(width / 90)"}}],
                "marks": [{"type": "text", "encode": {"update": {
                    "x": {"signal": "(left + width) / 2"}, "y": {"value": 32}, "align": {"value": "center"},
                    "text": {"value": _SECONDS}, "fill": {"value": "$soft"},
                    "fontSize": {"value": 11}}}}],
            },
        ],
    }  # fmt: skip


def _bar(data: str, above: float, below: float, *, fill: Spec, opacity: Spec, tooltip: str) -> Spec:
    """A span of time in its row, at least a pixel wide."""
    return {
        "type": "rect",
        "from": {"data": data},
        "encode": {
            "update": {
                "x": {"scale": "x", "field": "start"},
                "width": {"signal": "max(1, scale('x', datum.end) - scale('x', datum.start))"},
                "y": {"scale": "y", "signal": f"datum.pos + {above}"},
                "height": {"signal": f"max(0.6, (height - 40) / (y1 - y0) * {below - above:.2f})"},
                "fill": fill,
                "opacity": opacity,
                "tooltip": {"signal": tooltip},
            }
        },
    }
