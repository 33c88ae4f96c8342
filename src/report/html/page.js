"use strict";
// Draws the charts of the page from its element "charts", in the colours of the style sheet, and lets arrow keys go
// through their values.
(() => {
  const NUM_COLOURS = 6;
  const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
  const POINTS = ["circle", "rect", "triangle", "rectRot", "cross", "star"];
  const BAND_OPACITY = 0.18;
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const drawn = [];

  // Read after every change of style.
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const seriesColour = (idx) => colour("series-" + (idx % NUM_COLOURS));
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const withOpacity = (hex, opacity) => "rgba(" + channels(hex).join(",") + "," + opacity + ")";
  const mixed = (from, to, share) => {
    const ends = [channels(from), channels(to)];
    return "rgb(" + ends[0].map((c, at) => Math.round(c + (ends[1][at] - c) * share)).join(",") + ")";
  };
  const shown = (value) =>
    value === null || value === undefined ? "no value" : Number(value.toPrecision(5)).toLocaleString("en");

  // ---- What Chart.js is given -------------------------------------------------------------------------------------

  const lineSets = (spec) =>
    spec.series.flatMap((series, idx) => {
      const line = {
        label: series.name, data: series.values, series: idx, tension: 0, spanGaps: true,
        borderDash: DASHES[idx % DASHES.length], pointStyle: POINTS[idx % POINTS.length], pointRadius: 4, borderWidth: 2,
      };
      if (!series.low) return [line];
      const edge = { series: idx, edge: true, pointRadius: 0, borderWidth: 0, spanGaps: true };
      return [line, { ...edge, label: series.name + ", from", data: series.low },
        { ...edge, label: series.name + ", to", data: series.high, fill: "-1" }];
    });

  const barSets = (spec) =>
    spec.series.map((series, idx) => ({
      label: series.name, data: series.values, series: idx, borderWidth: 1,
      stack: spec.kind === "stacked" ? "all" : undefined,
      ...(spec.kind === "histogram" ? { barPercentage: 1, categoryPercentage: 1 } : {}),
    }));

  // Cells are stacked bars of height one: their colour says the value.
  const heatSets = (spec) =>
    spec.series.map((series, idx) => ({
      label: series.name, data: spec.labels.map(() => 1), cells: series.values, series: idx, borderWidth: 1,
      barPercentage: 1, categoryPercentage: 1, stack: "all",
    }));

  const rangeOf = (spec) => {
    const values = spec.series.flatMap((series) => series.values).filter((value) => value !== null);
    return { least: Math.min(...values), most: Math.max(...values) };
  };

  const valueAxis = (spec) => {
    if (spec.kind === "heat") {
      return {
        stacked: true, reverse: true, min: 0, max: spec.series.length, title: { display: false },
        afterBuildTicks: (axis) => { axis.ticks = spec.series.map((_, idx) => ({ value: idx + 0.5 })); },
        ticks: { callback: (value) => spec.series[Math.floor(value)]?.name ?? "" }, grid: { display: false },
      };
    }
    return {
      stacked: spec.kind === "stacked", type: spec.logarithmic ? "logarithmic" : "linear", beginAtZero: !spec.logarithmic,
      title: { display: true, text: spec.value_title },
    };
  };

  const config = (spec) => ({
    type: spec.kind === "line" ? "line" : "bar",
    data: {
      labels: spec.labels,
      datasets: spec.kind === "line" ? lineSets(spec) : spec.kind === "heat" ? heatSets(spec) : barSets(spec),
    },
    options: {
      animation: false, responsive: true, maintainAspectRatio: false,
      interaction: { mode: "nearest", intersect: false },
      scales: {
        x: { stacked: spec.kind === "stacked" || spec.kind === "heat", title: { display: true, text: spec.label_title } },
        y: valueAxis(spec),
      },
      plugins: {
        legend: {
          display: spec.kind !== "heat" && spec.kind !== "histogram",
          labels: { usePointStyle: spec.kind === "line", filter: (item, data) => !data.datasets[item.datasetIndex].edge },
        },
        tooltip: {
          filter: (item) => !item.dataset.edge,
          callbacks: { label: (item) => reading(spec, item.datasetIndex, item.dataIndex, item.chart) },
        },
      },
    },
  });

  // "direct: 12.3"
  const reading = (spec, setIdx, idx, chart) => {
    const series = spec.series[chart.data.datasets[setIdx].series];
    const band = series.low ? " (" + shown(series.low[idx]) + " to " + shown(series.high[idx]) + ")" : "";
    return series.name + ": " + shown(series.values[idx]) + band;
  };

  // ---- Colours ----------------------------------------------------------------------------------------------------

  const colourSets = (spec, datasets) => {
    const { least, most } = rangeOf(spec);
    for (const set of datasets) {
      const own = seriesColour(set.series);
      set.borderColor = own;
      set.backgroundColor = set.edge ? withOpacity(own, BAND_OPACITY) : own;
      if (spec.kind !== "heat") continue;
      set.borderColor = colour("ground");
      set.backgroundColor = set.cells.map((value) => value === null ? "transparent" :
        mixed(colour("heat-low"), colour("heat-high"), most > least ? (value - least) / (most - least) : 1));
    }
  };

  const colourFrame = (options) => {
    for (const axis of Object.values(options.scales)) {
      axis.ticks = { ...axis.ticks, color: colour("faint") };
      axis.title = { ...axis.title, color: colour("faint") };
      axis.grid = { ...axis.grid, color: colour("line") };
    }
    options.plugins.legend.labels.color = colour("text");
  };

  const coloured = (spec, { type, data, options }) => {
    colourSets(spec, data.datasets);
    colourFrame(options);
    return { type, data, options };
  };

  const paint = ({ chart, spec }) => {
    colourSets(spec, chart.data.datasets);
    colourFrame(chart.options);
    chart.update();
  };
  const paintAll = () => drawn.forEach(paint);

  // ---- Keys -------------------------------------------------------------------------------------------------------

  const sets = (chart) => chart.data.datasets.map((set, idx) => idx).filter((idx) => !chart.data.datasets[idx].edge);

  const listen = ({ canvas, chart, spec, text }) => {
    const at = { set: 0, idx: -1 };
    const show = () => {
      const active = at.idx < 0 ? [] : [{ datasetIndex: sets(chart)[at.set], index: at.idx }];
      chart.setActiveElements(active);
      chart.tooltip.setActiveElements(active, { x: 0, y: 0 });
      chart.update();
      text.textContent =
        at.idx < 0 ? "" : spec.labels[at.idx] + ", " + reading(spec, active[0].datasetIndex, at.idx, chart);
    };
    const moves = {
      ArrowRight: () => { at.idx = Math.min(at.idx + 1, spec.labels.length - 1); },
      ArrowLeft: () => { at.idx = Math.max(at.idx - 1, 0); },
      ArrowDown: () => { at.set = Math.min(at.set + 1, sets(chart).length - 1); at.idx = Math.max(at.idx, 0); },
      ArrowUp: () => { at.set = Math.max(at.set - 1, 0); at.idx = Math.max(at.idx, 0); },
      Home: () => { at.idx = 0; },
      End: () => { at.idx = spec.labels.length - 1; },
      Escape: () => { at.idx = -1; },
    };
    canvas.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (!move || spec.labels.length === 0 || spec.series.length === 0) return;
      event.preventDefault();
      move();
      show();
    });
    canvas.addEventListener("blur", () => { at.idx = -1; show(); });
  };

  // ---- The page ---------------------------------------------------------------------------------------------------

  const addScale = (figure, spec) => {
    const { least, most } = rangeOf(spec);
    const scale = document.createElement("p");
    scale.className = "scale";
    scale.append(shown(least), document.createElement("i"), shown(most) + " " + spec.value_title);
    figure.querySelector(".plot").after(scale);
  };

  const draw = (spec, idx) => {
    const figure = document.querySelector('[data-chart="' + idx + '"]');
    const canvas = figure.querySelector("canvas");
    const one = { canvas, spec, text: figure.querySelector(".reading"), chart: null };
    one.chart = new Chart(canvas, coloured(spec, config(spec)));
    if (spec.kind === "heat") addScale(figure, spec);
    listen(one);
    drawn.push(one);
  };

  // Paper has another width and other colours, and cannot open what is folded.
  const print = (begins) => {
    root.classList.toggle("printing", begins);
    for (const details of document.querySelectorAll("details")) {
      if (begins) details.dataset.open = details.open;
      details.open = begins || details.dataset.open === "true";
    }
    paintAll();
    for (const { chart } of drawn) chart.resize();
  };

  const save = () => {
    const text = document.getElementById("record").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "record.json";
    link.click();
    URL.revokeObjectURL(link.href);
  };

  Chart.defaults.font.family = "system-ui, sans-serif";
  specs.forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAll);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  document.getElementById("save-record")?.addEventListener("click", save);
  root.dataset.charts = drawn.length;
})();
