# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The style sheet of the page, for light and dark screens and for paper."""

__all__ = ["STYLE"]

STYLE = """
:root{--ink:#1c2128;--soft:#5b6470;--line:#d9dee5;--faint:#eef1f5;--back:#fff;--warn:#b35900}
@media (prefers-color-scheme:dark){
:root{--ink:#e6e9ee;--soft:#a3adba;--line:#3a424d;--faint:#262c35;--back:#171b21;--warn:#ffb057}}
body{margin:0 auto;max-width:880px;padding:28px 20px 60px;background:var(--back);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.6em;line-height:1.25;margin:0 0 .2em;overflow-wrap:anywhere}
h2{font-size:1.2em;margin:2.2em 0 .5em;padding-top:.5em;border-top:1px solid var(--line)}
h3{font-size:1em;margin:1.6em 0 .4em}
p{margin:.4em 0 .7em}
.soft{color:var(--soft);font-size:.9em}
.verdict h3{font-size:1.15em;margin:.4em 0}
summary{cursor:pointer;color:var(--soft)}
.verdict{padding:6px 18px;border-left:5px solid #0072b2;background:var(--faint)}
.verdict.warn{border-color:var(--warn)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9em;margin:.6em 0;font-variant-numeric:tabular-nums}
th,td{padding:3px 14px 3px 0;text-align:right;border-bottom:1px solid var(--line);
vertical-align:top}
tbody th,thead th:first-child{text-align:left}
tbody th{font-weight:400}
thead th{color:var(--soft);font-weight:600}
.facts td{text-align:left;overflow-wrap:anywhere}
tr.strong th,tr.strong td{font-weight:700}
svg{display:block;width:100%;height:auto;margin:.8em 0;
font:13px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
svg text{fill:var(--ink)}
svg .small{font-size:12px;fill:var(--soft)}
svg .strong{font-weight:700}
svg .figure{font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--line)}
svg .zero{stroke:var(--ink);stroke-width:1.4}
svg .mark{stroke:var(--warn);stroke-dasharray:2 4}
ul.findings{list-style:none;padding:0;margin:.6em 0}
ul.findings li{padding:8px 0 4px 14px;border-left:4px solid var(--line);margin:0 0 10px}
ul.findings li.warn{border-color:var(--warn)}
ul.findings p{margin:0 0 .15em;overflow-wrap:anywhere}
.advice::before{content:"\\2192\\00a0"}
.advice{font-weight:600}
"""
