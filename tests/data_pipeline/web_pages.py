"""Pages and web archives for tests, written byte by byte."""

import base64
import hashlib

WORDS = "The town opened a new library by the river on Monday, and most people who came liked the quiet rooms."
CHINESE = "镇上的新图书馆星期一在河边开门，来的人大多喜欢安静的阅览室，孩子们在窗边看书，老人在院子里下棋。"
MENU = "<nav><ul>" + "".join(f'<li><a href="/{i}">Section {i}</a></li>' for i in range(8)) + "</ul></nav>"


def page(text, charset="", menu=MENU):
    meta = f'<meta http-equiv="Content-Type" content="text/html; charset={charset}">' if charset else ""
    paragraphs = "".join(f"<p>{part}</p>\n" for part in text.split("\n"))
    return (
        f"<!DOCTYPE html><html><head>{meta}<title>A page</title><script>if (a < b) go('<div>')</script></head>"
        f"<body>{menu}<article><h1>News</h1>{paragraphs}</article><footer>Copyright</footer></body></html>"
    )


def sha1(content):
    return "sha1:" + base64.b32encode(hashlib.sha1(content).digest()).decode()


def response(body, media="text/html; charset=utf-8", status="200 OK", headers=()):
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {media}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def warc_record(content, kind="response", url="http://news.example/1", length=None, headers=()):
    lines = [
        "WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", "WARC-Date: 2024-01-01T00:00:00Z", *headers,
        f"Content-Length: {len(content) if length is None else length}", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + content + b"\r\n\r\n"
