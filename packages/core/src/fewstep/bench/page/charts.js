"use strict";
// Draws the figures at the width that they have; each names its points when a pointer comes near.
const shapes = [
  (x, y) => `M${x - 5},${y}a5,5 0 1,0 10,0a5,5 0 1,0 -10,0`,
  (x, y) => `M${x - 4.5},${y - 4.5}h9v9h-9z`,
  (x, y) => `M${x},${y - 6}l5.5,10h-11z`,
  (x, y) => `M${x},${y - 6}l6,6l-6,6l-6,-6z`,
  (x, y) => `M${x},${y + 6}l5.5,-10h-11z`,
  (x, y) => `M${x - 6},${y - 2}h4v-4h4v4h4v4h-4v4h-4v-4h-4z`,
];
const colour = (series, number) => (series.name === "dense" ? "var(--text)" : `var(--c${number % 6})`);
const shape = (number, x, y) => shapes[(number + Math.floor(number / 6)) % 6](x, y);  // no look comes twice in 36

function said(value, axis) {
  if (axis.unit === "%") return `${+(100 * value).toPrecision(3)} %`;
  const text = Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));
  return text + (axis.unit || "");
}

function niceTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= raw);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + 1e-9 * step; at += step) ticks.push(+at.toPrecision(12));
  return ticks;
}

function scale(axis, values, from, to, count) {
  const log = axis.log, position = log ? Math.log10 : (value) => value;
  let low = Math.min(...values.map(position)), high = Math.max(...values.map(position));
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  low = axis.zero ? 0 : low - room;
  high += room;
  let ticks = axis.ticks;
  if (!ticks && log) {
    ticks = [];
    for (let power = Math.ceil(low); power <= high; power++) ticks.push(10 ** power);
    if (ticks.length < 2) ticks = [10 ** low, 10 ** ((low + high) / 2), 10 ** high];
  }
  ticks = ticks || niceTicks(low, high, count);
  return { at: (value) => from + ((position(value) - low) / (high - low)) * (to - from), ticks };
}

function draw(plot, chart, hidden) {
  const width = plot.clientWidth, height = Math.round(Math.min(340, Math.max(230, width * 0.6)));
  if (!width) return;
  const left = 54, right = width - 14, top = 26, bottom = height - 42;
  const shown = chart.series.filter((one) => !hidden.has(one.name));
  const points = chart.series.flatMap((one) => one.points);
  const pick = (...names) => points.flatMap((point) => names.map((name) => point[name])).filter((value) => value !== undefined);
  const level = chart.level === undefined ? [] : [chart.level];
  const x = scale(chart.x, pick("x", "x0", "x1"), left, right, Math.max(3, width / 110));
  const y = scale(chart.y, [...pick("y", "y0", "y1"), ...level], bottom, top, 5);
  let out = "";
  for (const tick of y.ticks) out += `<line class="grid" x1="${left}" x2="${right}" y1="${y.at(tick)}" y2="${y.at(tick)}"/><text x="${left - 7}" y="${y.at(tick) + 4}" text-anchor="end">${said(tick, chart.y)}</text>`;
  let last = -1e9;
  for (const tick of x.ticks) {
    if (x.at(tick) - last < 46) continue;
    last = x.at(tick);
    out += `<line class="axis" x1="${last}" x2="${last}" y1="${bottom}" y2="${bottom + 4}"/><text x="${last}" y="${bottom + 18}" text-anchor="middle">${said(tick, chart.x)}</text>`;
  }
  out += `<line class="axis" x1="${left}" x2="${right}" y1="${bottom}" y2="${bottom}"/><text x="${(left + right) / 2}" y="${height - 6}" text-anchor="middle" class="x-label"></text><text x="2" y="12" class="y-label"></text>`;
  for (const value of level) out += `<line class="level" x1="${left}" x2="${right}" y1="${y.at(value)}" y2="${y.at(value)}"/>`;
  if (chart.front) out += `<polyline class="front" points="${chart.front.map(([a, b]) => `${x.at(a)},${y.at(b)}`).join(" ")}"/>`;
  const places = [], bars = points.length <= 16;  // more of them would hide the points
  for (const series of shown) {
    const number = chart.series.indexOf(series), ink = colour(series, number);
    if (series.joined) out += `<polyline fill="none" style="stroke:${ink}" stroke-width="1.6" points="${series.points.map((one) => `${x.at(one.x)},${y.at(one.y)}`).join(" ")}"/>`;
    for (const one of series.points) {
      const a = x.at(one.x), b = y.at(one.y);
      if (bars && one.x1 > one.x0) out += `<line style="stroke:${ink}" opacity=".55" x1="${x.at(one.x0)}" x2="${x.at(one.x1)}" y1="${b}" y2="${b}"/>`;
      if (bars && one.y1 > one.y0) out += `<line style="stroke:${ink}" opacity=".55" x1="${a}" x2="${a}" y1="${y.at(one.y0)}" y2="${y.at(one.y1)}"/>`;
      out += `<path style="fill:${ink}" d="${shape(number, a, b)}"/>`;
      places.push({ a, b, one });
    }
  }
  plot.querySelector("svg")?.remove();
  plot.insertAdjacentHTML("afterbegin", `<svg viewBox="0 0 ${width} ${height}" height="${height}">${out}</svg>`);
  plot.querySelector(".x-label").textContent = chart.x.label;  // names are text, never markup
  plot.querySelector(".y-label").textContent = chart.y.label;
  plot.places = places;
}

function point(plot, chart, event) {
  const box = plot.getBoundingClientRect(), tip = plot.querySelector(".tip");
  const across = event.clientX - box.left, down = event.clientY - box.top;
  const far = (place) => Math.hypot(place.a - across, place.b - down);
  const near = (plot.places || []).reduce((best, place) => (!best || far(place) < far(best) ? place : best), null);
  tip.hidden = !near || far(near) > 36;
  if (tip.hidden) return;
  tip.replaceChildren(near.one.name, document.createElement("br"), `${said(near.one.y, chart.y)} at ${said(near.one.x, chart.x)}`);
  tip.style.left = `${Math.max(0, Math.min(near.a + 10, box.width - tip.offsetWidth))}px`;
  tip.style.top = `${Math.max(0, near.b - tip.offsetHeight - 10)}px`;
}

for (const figure of document.querySelectorAll(".chart")) {
  const plot = figure.querySelector(".plot"), chart = JSON.parse(figure.querySelector("script").textContent);
  const hidden = new Set(), legend = document.createElement("div");
  legend.className = "legend";
  chart.series.forEach((series, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.innerHTML = `<svg width="14" height="14" aria-hidden="true"><path style="fill:${colour(series, number)}" d="${shape(number, 7, 7)}"/></svg>`;
    button.append(series.name);
    button.onclick = () => {
      hidden.has(series.name) ? hidden.delete(series.name) : hidden.add(series.name);
      button.setAttribute("aria-pressed", String(!hidden.has(series.name)));
      draw(plot, chart, hidden);
    };
    legend.append(button);
  });
  figure.append(legend);
  plot.insertAdjacentHTML("beforeend", '<div class="tip" hidden></div>');
  for (const kind of ["pointermove", "pointerdown"]) plot.addEventListener(kind, (event) => point(plot, chart, event));
  plot.addEventListener("pointerleave", () => { plot.querySelector(".tip").hidden = true; });
  let drawn = 0;
  new ResizeObserver(() => { if (plot.clientWidth !== drawn) draw(plot, chart, hidden), (drawn = plot.clientWidth); }).observe(plot);
}
