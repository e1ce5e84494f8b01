"""The page of a run's report: one HTML file with its pictures inside, without a script of its own or other files.

Everything from files is escaped. Two short event handlers move the slider and sort tables; the page's Content Security
Policy allows these by their hash and nothing else that could run or be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from srcnn.restoration.figures import strongest_part
from srcnn.training.report_scores import Pair
from srcnn.training.report_style import STYLE

MAX_TEXT = 300  # characters of a value of a stranger's file
PHOTO_QUALITY = 92  # of the JPEGs in the page; details and tiles are PNG
DETAIL_PIXELS = 96  # side of the detail of a photo
TITLES = ("degraded", "restored", "clean")
MOVE = "this.parentNode.style.setProperty('--at',this.value+'%')"
SORT = ("const h=this.parentNode,n=h.cellIndex,b=h.closest('table').tBodies[0],"
        "d=h.getAttribute('aria-sort')==='descending'?1:-1,v=r=>r.cells[n].textContent;"
        "for(const o of h.parentNode.cells)o.removeAttribute('aria-sort');"
        "h.setAttribute('aria-sort',d<0?'descending':'ascending');"
        "b.append(...[...b.rows].sort((x,y)=>d*(isNaN(v(x))||isNaN(v(y))?v(x).localeCompare(v(y)):v(x)-v(y))))")


def html_page(title: str, table: str, folder: Path, body: str = "", subtitle: str = "") -> str:
    """The page: a heading, the `body` of other functions here, the Markdown `table` of all validations, and the names
    of the files in `folder`, which lie beside it.
    """
    head, *rows = [line.strip("|").split("|") for line in table.splitlines() if not line.startswith("|---")]
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".md", ".json"))
    beside = ", ".join(f"<code>{text(name)}</code>" for name in names)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
                      for code in (MOVE, SORT))
    policy = (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-hashes' {hashes}; "
              "base-uri 'none'; form-action 'none'")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{text(title)}: training report</title><style>{STYLE}</style></head><body>'
        f'<header><p class="over">Training report</p><h1>{text(title)}</h1><p class="under">{text(subtitle)}</p>'
        f"</header><main>{body}"
        f'<section><details><summary>All validations</summary>{table_of(head, rows)}</details></section></main>'
        f"<footer>{f'Beside this page: {beside}' if beside else ''}</footer></body></html>\n"
    )


def text(value: object) -> str:
    """Escaped, and cut where it is long."""
    shown = str(value)
    return html.escape(shown if len(shown) <= MAX_TEXT else shown[:MAX_TEXT] + " ...")


def section(title: str, content: str, note: str = "") -> str:
    """`content` is HTML; "" where there is none."""
    about = f'<p class="note">{text(note)}</p>' if note else ""
    return f"<section><h2>{text(title)}</h2>{about}{content}</section>" if content else ""


def cards(values: Iterable[tuple[str, str, str]]) -> str:
    """The numbers that matter, large: (title, value, remark)."""
    drawn = ""
    for title, value, remark in values:
        kind = "card loss" if remark.startswith("-") else "card"
        drawn += (f'<div class="{kind}"><p>{text(title)}</p><strong>{text(value)}</strong>'
                  f"<em>{text(remark)}</em></div>")
    return f'<div class="cards">{drawn}</div>'


def facts(title: str, values: Mapping[str, object]) -> str:
    """A list of names with values; "" where there are none."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in values.items())
    heading = f"<h3>{text(title)}</h3>" if title else ""
    return f'<div class="facts">{heading}<dl>{rows}</dl></div>' if rows else ""


def table_of(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that is sorted by a click on a heading. Numbers stand right, in the first column texts left."""
    names = "".join(f'<th scope="col"><button type="button" onclick="{html.escape(SORT)}">{text(name.strip())}</button>'
                    "</th>" for name in head)
    cells = "".join("<tr>" + "".join(f"<td>{text(str(cell).strip())}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table></div>'


def picture(pixels: np.ndarray, name: str, format: str = "PNG") -> str:
    """An <img> with the pixels in it; `name` is its alternative text."""
    buffer = io.BytesIO()
    options = {"quality": PHOTO_QUALITY, "subsampling": 0} if format == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(buffer, format, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return (f'<img alt="{text(name)}" width="{width}" height="{height}" '
            f'src="data:image/{format.lower()};base64,{data}">')


def compared(pair: Pair, title: str, psnr_in: float, psnr_out: float, width: int) -> str:
    """A photo, at most `width` pixels wide, degraded and restored under a slider, and where it changed most."""
    change = np.square(pair.restored.astype(np.float32) - pair.degraded)
    rows, columns = place = strongest_part(change, min(DETAIL_PIXELS, *change.shape[:2]))
    height_, width_ = change.shape[:2]
    box = (f"left:{100 * columns.start / width_:.2f}%;top:{100 * rows.start / height_:.2f}%;"
           f"width:{100 * (columns.stop - columns.start) / width_:.2f}%;"
           f"height:{100 * (rows.stop - rows.start) / height_:.2f}%")
    before, after = (picture(_reduced(pixels, width), f"{title}, {name}", "JPEG")
                     for pixels, name in zip(pair[:2], TITLES, strict=False))
    details = triple(Pair(*(pixels[place] for pixels in pair)))
    return (f'<figure class="photo"><figcaption><b>{text(title)}</b><span>{psnr_in:.2f} dB &rarr; {psnr_out:.2f} dB'
            f'{badge(psnr_out - psnr_in)}</span></figcaption>'
            f'<div class="slider">{after}<div class="before">{before}</div>'
            f'<i class="place" style="{box}"></i><span class="tag">degraded</span><span class="tag">restored</span>'
            f'<input type="range" min="0" max="100" value="50" aria-label="from degraded to restored" '
            f'oninput="{html.escape(MOVE)}"></div>'
            f'<p class="note">Where it changed most, the framed place:</p>{details}</figure>')


def triple(pair: Pair, title: str = "", psnr_in: float | None = None, psnr_out: float | None = None) -> str:
    """Degraded, restored and clean pixels side by side, magnified."""
    scores = ["" if value is None else f" {value:.2f} dB" for value in (psnr_in, psnr_out, None)]
    drawn = "".join(f'<div>{picture(pixels, f"{title} {name}".strip())}<small><b>{name}</b>{score}</small></div>'
                    for pixels, name, score in zip(pair, TITLES, scores, strict=True))
    gain = "" if psnr_in is None or psnr_out is None else badge(psnr_out - psnr_in)
    heading = f"<p><b>{text(title)}</b>{gain}</p>" if title else ""
    return f'<div class="triple">{heading}<div class="three">{drawn}</div></div>'


def badge(gain: float) -> str:
    """A gain in dB, coloured by its sign."""
    return f'<span class="badge{" loss" if gain < 0 else ""}">{gain:+.2f} dB</span>'


def _reduced(pixels: np.ndarray, width: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    return np.asarray(image)
