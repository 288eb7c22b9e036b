"""A real browser for tests: headless Chromium, spoken to through two pipes."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --hide-scrollbars "
    "--disable-background-networking --disable-component-update --remote-debugging-pipe"
)

CONTRAST = """
(() => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).map(Number);
    const [r, g, b] = parts.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const solid = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(color) && color !== "transparent") return color;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim());
    if (!own || node.closest("script, style, .tip") || node.getClientRects().length === 0) continue;
    const style = getComputedStyle(node), drawn = node instanceof SVGElement;
    const text = light(drawn ? style.fill : style.color), under = light(solid(drawn ? node.closest("div") : node));
    const ratio = (Math.max(text, under) + 0.05) / (Math.min(text, under) + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const words = node.textContent.trim().slice(0, 40);
    if (ratio < (large ? 3 : 4.5)) low.push(`${node.tagName} ${words}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
})()
"""
"""What of the text that is seen has less contrast than WCAG 2 asks for (AA: 4.5, and 3 for large text)."""

OVERFLOW = """
(() => {
  const wide = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > wide) found.push(`page: ${document.documentElement.scrollWidth}`);
  for (const node of document.querySelectorAll("main *, header *, footer *")) {
    const box = node.getBoundingClientRect();
    if (box.width && box.right > wide + 1 && !node.closest(".scroll, pre, svg, nav"))
      found.push(`${node.tagName}.${node.className} ${node.textContent.trim().slice(0, 40)}: ${box.right}`);
  }
  return found;
})()
"""
"""What reaches over the right edge, but for tables and texts that scroll by themselves."""


class Browser:
    """One page in a browser; `complaints` are the errors and warnings of its console."""

    def __init__(self, process: "subprocess.Popen[bytes]", write: int, read: int) -> None:
        self._process, self._write, self._read = process, write, read
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the browser's protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, address: str, width: int, dark: bool) -> None:
        """Open a page in a window of this width, in a light or a dark scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._loaded = False
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._next()

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def point_at(self, selector: str) -> None:
        """Move the pointer onto the middle of the first element that matches."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({found}.getBoundingClientRect())")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path) -> None:
        """Write what is seen to a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 16)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        what, about = message.get("method"), message.get("params", {})
        if what == "Page.loadEventFired":
            self._loaded = True
        elif what == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.complaints.append(str(about["args"]))
        elif what == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(about["entry"]["text"]))
        return message


def chromium() -> str | None:
    """Return where the browser is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser that keeps its files in the directory `profile`, and end it."""
    path = chromium()
    if path is None:
        raise RuntimeError("chromium is not installed")
    (their_read, our_write), (our_read, their_write) = os.pipe(), os.pipe()
    command = f'exec "$0" {FLAGS} --user-data-dir="$1" 3<&{their_read} 4>&{their_write}'
    process = subprocess.Popen(
        ["bash", "-c", command, path, str(profile)],
        pass_fds=(their_read, their_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(their_read)
    os.close(their_write)
    try:
        yield Browser(process, our_write, our_read)
    finally:
        process.terminate()
        process.wait(20)
        os.close(our_write)
        os.close(our_read)
