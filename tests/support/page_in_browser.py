#!/usr/bin/env python3
"""Opens a page in a headless Chromium and prints what is there, as JSON.

  tests/support/page_in_browser.py FILE

Found are the messages of the console, what the page asked to load, the numbers of its tables and of its charts, whether
every chart was painted in the light and in the dark style and on paper, and what is read out where arrow keys go
through the values of the first chart, and the record that the page carries. Exit code 77: no Chromium.
"""
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
NO_BROWSER = 77

CELLS = "[...document.querySelectorAll('[data-value]')].map((cell) => Number(cell.dataset.value))"
# A canvas that was painted has pixels that differ.
CHARTS = """[...document.querySelectorAll('canvas')].map((canvas) => {
  const chart = Chart.getChart(canvas);
  const copy = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
  const context = copy.getContext('2d', {willReadFrequently: true});
  context.drawImage(canvas, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer);
  return {labels: chart.data.labels, type: chart.config.type, width: canvas.width, num_colours: new Set(pixels).size,
          text_colour: chart.options.scales.x.ticks.color,
          first_colour: chart.getDatasetMeta(0).data[0]?.options.backgroundColor,
          series: chart.data.datasets.map((set) => ({name: set.label, values: set.cells ?? set.data}))};
})"""
NEXT_FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
READING = "document.querySelector('.reading').textContent"
RECORD = "JSON.parse(document.getElementById('record')?.textContent ?? 'null')"
KEYS = ("ArrowRight", "ArrowRight", "ArrowDown", "Escape")


class Browser:
    """Speaks the DevTools protocol over two pipes."""

    def __init__(self, program, profile):
        to_browser, self.output = os.pipe()
        self.input, from_browser = os.pipe()
        # The protocol expects descriptors 3 and 4.
        command = (f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}')
        self.process = subprocess.Popen(
            ["bash", "-c", command, program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
             f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.numbers = itertools.count(1)
        self.buffer = b""
        self.events = []
        self.session = None

    def read(self):
        while b"\0" not in self.buffer:
            data = os.read(self.input, 1 << 16)
            if not data:
                raise RuntimeError("the browser has ended")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method):
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self.read())

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    def close(self):
        self.call("Browser.close")
        self.process.wait()


def key(browser, name):
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name)
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name)


def charts_in(browser, scheme):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.value(NEXT_FRAME)  # when the page is told of it
    return browser.value(CHARTS)


def look_at(browser, url):
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser.call(f"{domain}.enable")
    browser.call("Page.navigate", url=url)
    browser.wait_for("Page.loadEventFired")
    found = {"cells": browser.value(CELLS), "light": charts_in(browser, "light"), "dark": charts_in(browser, "dark")}
    found["record"] = browser.value(RECORD)
    browser.value("document.querySelector('canvas').focus()")
    found["readings"] = []
    for name in KEYS:
        key(browser, name)
        found["readings"].append(browser.value(READING))
    browser.value("dispatchEvent(new Event('beforeprint'))")
    found["paper"] = browser.value(CHARTS)
    found["folded_on_paper"] = browser.value("[...document.querySelectorAll('details')].filter((d) => !d.open).length")
    browser.value("dispatchEvent(new Event('afterprint'))")
    found["unnamed"] = browser.value(
        "[...document.querySelectorAll('canvas, [role=region]')].filter((e) => !e.ariaLabel || e.tabIndex < 0).length")
    # All events so far have arrived when this call has its answer.
    browser.call("Page.getNavigationHistory")
    events = [event for event in browser.events if event.get("sessionId") == browser.session]
    found["console"] = [event["params"] for event in events
                        if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")]
    found["requests"] = [event["params"]["request"]["url"] for event in events
                         if event["method"] == "Network.requestWillBeSent"]
    browser.session = None
    return found


def main():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        print("none of " + ", ".join(BROWSERS) + " is installed", file=sys.stderr)
        return NO_BROWSER
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, profile)
        print(json.dumps(look_at(browser, Path(sys.argv[1]).resolve().as_uri())))
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
