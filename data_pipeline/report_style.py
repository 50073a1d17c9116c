"""What does report.html look like? It has no script and may load nothing: its policy says so to the browser."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light dark;--ink:#1c2127;--soft:#5d6671;--line:#dfe3e8;--page:#fff;--panel:#f6f7f9;--blue:#3b6fb6;--pale:#c3d5ee;
--red:#c2573f;--green:#3d8a5f;--del:#fbe0da;--ins:#d9f0e1}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--soft:#98a2ad;--line:#353b43;--page:#15181c;--panel:#1d2126;--blue:#6f9fe0;
--pale:#2d4468;--red:#e08a73;--green:#6dbf92;--del:#5a2c22;--ins:#1f4a33}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI","Noto Sans","PingFang SC","Microsoft YaHei",
"Noto Sans CJK SC",sans-serif}
main{max-width:1040px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:44px 0 8px;padding-top:10px;border-top:1px solid var(--line)}
p{margin:6px 0}.soft,figcaption{color:var(--soft);font-size:13.5px}a{color:var(--blue)}
.choice{float:right;font-size:13.5px}.choice label{cursor:pointer;margin-left:10px}
body:has(#zh:checked) .en,body:not(:has(#zh:checked)) .zh{display:none}
.numbers{display:flex;flex-wrap:wrap;gap:10px;margin:18px 0}
.numbers div{background:var(--panel);border-radius:8px;padding:10px 16px;min-width:132px}
.numbers b{display:block;font-size:21px;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13.5px;margin:8px 0}
th{font-weight:600;text-align:left;color:var(--soft)}th,td{padding:5px 10px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
.r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{background:var(--pale);height:9px;border-radius:3px;min-width:1px;margin-top:6px}
code,.text{font:13px/1.5 ui-monospace,Menlo,Consolas,"Noto Sans Mono CJK SC",monospace}code{overflow-wrap:anywhere}
.text{display:block;background:var(--panel);border-radius:6px;padding:7px 10px;margin:3px 0 9px;white-space:pre-wrap;overflow-wrap:anywhere}
del{background:var(--del);text-decoration:none;border-radius:2px}ins{background:var(--ins);text-decoration:none;border-radius:2px}
details{margin:2px 0}summary{cursor:pointer}details>div{padding:4px 0 4px 18px}
svg{display:block;width:100%;height:auto;margin:10px 0}svg text{fill:var(--ink);font-size:12.5px}svg .n,svg .tick{fill:var(--soft)}svg .tick{font-size:11px}
svg .strong{font-weight:600}.trunk{fill:var(--pale)}.gone{fill:var(--red);opacity:.55}.end{fill:var(--green);opacity:.6}
.s0{fill:var(--blue)}.s1{fill:var(--red);opacity:.75}.s2{fill:var(--green)}.axis{stroke:var(--line);fill:none}
.key i{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 5px 0 14px}
.k0{background:var(--blue)}.k1{background:var(--red)}.k2{background:var(--green)}
"""
