# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A plan as one page that needs nothing beside itself: text, SVG, no script, no other file."""

from __future__ import annotations

from html import escape

from k2_megatron.planner.layout_table import layout_table
from k2_megatron.planner.pictures import SEGMENTS, memory_picture
from k2_megatron.planner.plan import Plan
from k2_megatron.planner.schedule_picture import schedule_picture
from k2_megatron.planner.text import (
    activation_table,
    estimate_text,
    fullest,
    head_text,
    memory_table,
    muon_text,
    traffic_table,
    verdict,
)
from k2_megatron.planner.update_rules import rules_table

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2733; background: #fff;
       max-width: 1060px; margin: 24px auto; padding: 0 20px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; }
pre { font: 13px/1.4 ui-monospace, monospace; background: #f5f7f9; padding: 12px;
      overflow-x: auto; border-radius: 4px; }
.verdict { padding: 10px 14px; border-left: 5px solid; white-space: pre-line; }
.yes { border-color: #2e8b57; background: #eef8f1; }
.no { border-color: #c0392b; background: #fcefed; }
.key { display: inline-block; margin-right: 18px; }
.key i { display: inline-block; width: 13px; height: 13px; margin-right: 6px;
         vertical-align: -2px; }
svg { width: 100%; height: auto; } p.note { color: #55616d; margin: 4px 0; }
"""


def plan_page(plan: Plan, phases: str = "") -> str:
    """HTML of the whole plan; `phases` is a section about them."""
    name = escape(plan.job.config.run.name)
    keys = "".join(
        f'<span class="key"><i style="background:{color}"></i>{label}</span>'
        for label, color in SEGMENTS
    )
    kind = "yes" if plan.fits else "no"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Plan of {name}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>Plan of {name}</h1>",
        f"<pre>{escape(head_text(plan))}</pre>",
        f'<div class="verdict {kind}">{escape(verdict(plan))}</div>',
        phases,
        "<h2>Device memory by pipeline rank</h2>",
        f"<p>{keys}</p>",
        memory_picture(plan),
        '<p class="note">Each bar is the fullest GPU of a pipeline rank at its fullest moment. '
        "Work: what is needed for moments only.</p>",
        f"<pre>{escape(memory_table(plan))}</pre>",
        f"<h2>Activations of pipeline rank {fullest(plan).pipeline_rank}</h2>",
        f"<pre>{escape(activation_table(plan))}</pre>",
        "<h2>Schedule</h2>",
        schedule_picture(plan),
    ]
    if plan.job.degrees.pipeline > 1:
        parts.append(_pre(layout_table(plan)))
    if plan.traffic:
        parts += ["<h2>Sent by each GPU in a step</h2>", _pre(traffic_table(plan))]
    if plan.muon:
        parts += ["<h2>Newton-Schulz</h2>", _pre(muon_text(plan))]
        parts += ["<h2>Update rules</h2>", _pre(rules_table(plan.job.config))]
    parts += ["<h2>Time of a step</h2>", _pre(estimate_text(plan)), "</body></html>", ""]
    return "\n".join(parts)


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
