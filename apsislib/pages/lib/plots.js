// Small plots as SVG. Each has a text for those who do not see it; colours come from classes.

import { svg } from "./dom.js";

const most = (values) => Math.max(1e-9, ...values);

/** Values in order of time as thin bars; `classes[n]` (a state, say) goes to data-state of bar n. */
export function bars(values, { width = 120, height = 24, label, states = [], titles = [] } = {}) {
  const step = width / Math.max(1, values.length);
  const top = most(values);
  return svg("svg", { class: "plot", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}`, width, height },
    values.map((value, n) => {
      const tall = Math.max(1.5, (value / top) * height);
      return svg("rect", { x: (n * step).toFixed(2), y: (height - tall).toFixed(2), width: Math.max(0.5, step - Math.min(1, step / 4)).toFixed(2),
        height: tall.toFixed(2), "data-state": states[n] ?? null, class: "bar" }, titles[n] ? svg("title", {}, titles[n]) : null);
    }));
}

/** Values in order as a line, the last one marked. */
export function sparkline(values, { width = 96, height = 22, label } = {}) {
  const top = most(values);
  const x = (n) => (values.length < 2 ? width / 2 : 2 + (n / (values.length - 1)) * (width - 4));
  const y = (value) => height - 2 - (value / top) * (height - 4);
  const points = values.map((value, n) => `${x(n).toFixed(1)},${y(value).toFixed(1)}`);
  return svg("svg", { class: "plot", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}`, width, height },
    values.length > 1 ? svg("polyline", { points: points.join(" "), class: "line" }) : null,
    values.length ? svg("circle", { cx: x(values.length - 1), cy: y(values.at(-1)), r: 1.8, class: "dot" }) : null);
}

/** [[x, y]] as a filled line over axes with a few marks. `showX`, `showY` make texts of values. */
export function linePlot(points, { width = 420, height = 120, label, showX = String, showY = String } = {}) {
  const [left, bottom, top, right] = [52, 18, 8, 8];
  const xs = points.map(([x]) => x);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const y1 = niceCeiling(most(points.map(([, y]) => y)));
  const x = (value) => left + ((value - x0) / Math.max(1e-9, x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - (value / y1) * (height - bottom - top);
  const line = points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ");
  const marks = [0, y1 / 2, y1];
  return svg("svg", { class: "plot", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" },
    marks.map((value) => [
      svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }),
      svg("text", { x: left - 6, y: y(value) + 3.5, class: "mark end" }, showY(value))]),
    points.length ? [
      svg("polygon", { points: `${left},${y(0)} ${line} ${x(x1).toFixed(1)},${y(0)}`, class: "area" }),
      svg("polyline", { points: line, class: "line" }),
      svg("text", { x: left, y: height - 4, class: "mark" }, showX(x0)),
      svg("text", { x: width - right, y: height - 4, class: "mark end" }, showX(x1))] : null);
}

/** The next of 1, 2, 5, 10, 20, ... that is not below the value. */
export function niceCeiling(value) {
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((n) => n * size).find((n) => n >= value * 0.9999);
}
