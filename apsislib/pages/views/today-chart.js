// The chart of the timeline: one SVG, rows of bars. It knows nothing of the server; it is given a window and rows.

import { el, fill, svg } from "../lib/dom.js";
import { jobHref, jobText } from "../lib/marks.js";
import { FINISHED, instantOf, showClock, showSeconds, showTime } from "../lib/times.js";
import { listen } from "./today-moves.js";

const AXIS = 24; // px
const SLOTS = 120; // in the span of the answer
const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const STEPS = [
  MINUTE,
  2 * MINUTE,
  5 * MINUTE,
  10 * MINUTE,
  15 * MINUTE,
  30 * MINUTE,
  HOUR,
  2 * HOUR,
  3 * HOUR,
  6 * HOUR,
  12 * HOUR,
  DAY,
  2 * DAY,
  7 * DAY,
];

export class Chart {
  /** `pan(part)`: by a part of the window; `zoom(factor, at)`: around a point of it, 0 to 1. */
  constructor({ pan, zoom }) {
    this.does = { pan, zoom };
    this.width = 800;
    this.dirty = new Set();
    this.groups = new Map(); // job ID -> <g>
    this.labels = el("ol", { class: "labels" });
    this.picture = svg("svg", {
      class: "lanes",
      tabindex: 0,
      role: "group",
      "aria-label": "Runs by job over time: arrows pan, + and - zoom, h and l go from run to run",
    });
    this.tip = el("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.empty = el("p", { class: "empty", hidden: true }, "Nothing ran, runs or will run in this time.");
    this.box = el(
      "div",
      { class: "chart" },
      this.labels,
      el("div", { class: "canvas" }, this.picture),
      this.tip,
      this.empty,
    );
    new ResizeObserver(() => this.resized()).observe(this.picture.parentNode);
    listen(this);
  }

  resized() {
    const width = Math.round(this.picture.parentNode.clientWidth);
    if (!width || width === this.width) return;
    this.width = width;
    if (this.view) this.draw(this.view);
  }

  get row() {
    return this.narrow ? 40 : 24;
  }
  get narrow() {
    return matchMedia("(max-width: 46rem)").matches;
  }
  x(time) {
    return ((time - this.view.since) / (this.view.until - this.view.since)) * this.width;
  }

  draw(view) {
    this.view = view;
    this.dirty.clear();
    const rows = view.found?.rows ?? [];
    const height = AXIS + rows.length * this.row + 4;
    this.picture.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.picture.setAttribute("height", height);
    this.picture.setAttribute("width", this.width);
    this.empty.hidden = !view.found || rows.length > 0;
    this.groups.clear();
    const focused = document.activeElement?.closest?.("[data-run]")?.dataset.run;
    this.nowLine = svg(
      "g",
      { class: "now" },
      svg("line", { y1: AXIS - 6, y2: height }),
      svg("circle", { cy: AXIS - 6, r: 3 }),
    );
    fill(
      this.picture,
      this.axis(height),
      rows.map((row, n) => this.lane(row, n)),
      this.nowLine,
    );
    if (focused) this.picture.querySelector(`[data-run="${focused}"]`)?.focus({ preventScroll: true });
    this.placeNow();
    this.label(rows);
  }

  label(rows) {
    const same =
      this.labelled?.length === rows.length &&
      rows.every((row, n) => this.labelled[n] === `${row.job_id}${row.failures}`);
    if (same) return;
    this.labelled = rows.map((row) => `${row.job_id}${row.failures}`);
    const at = [...this.labels.querySelectorAll("a")].indexOf(document.activeElement);
    fill(
      this.labels,
      rows.map((row) =>
        el(
          "li",
          {},
          el("a", { class: "row-link job", href: jobHref(row.job_id), title: row.job_id }, jobText(row.job_id)),
          row.failures ? el("span", { class: "bad", title: `${row.failures} failed` }, `✗ ${row.failures}`) : null,
        ),
      ),
    );
    if (at >= 0) this.labels.querySelectorAll("a")[at]?.focus({ preventScroll: true });
  }

  /** Lines at round times of the chosen zone. */
  axis(height) {
    const { since, until } = this.view;
    const step = STEPS.find((one) => ((until - since) / one) * 58 < this.width) ?? 14 * DAY;
    const [year, month, day] = showTime(since).slice(0, 10).split("-").map(Number);
    const marks = [];
    let last = "";
    for (
      let n = 0, t;
      (t = step >= DAY ? instantOf(year, month, day + (n * step) / DAY) : midnight(year, month, day) + n * step) <
      until;
      n += 1
    ) {
      if (t < since) continue;
      const text = showTime(t);
      const isDay = text.slice(11) === "00:00:00";
      const x = this.x(t).toFixed(1);
      marks.push(svg("line", { x1: x, x2: x, y1: AXIS - 4, y2: height, class: isDay ? "grid day" : "grid" }));
      if (this.x(t) > 12 && this.x(t) < this.width - 24) {
        marks.push(
          svg("text", { x, y: 14, class: isDay ? "mark day" : "mark" }, isDay ? text.slice(5, 10) : text.slice(11, 16)),
        );
      }
      last = text;
    }
    return svg(
      "g",
      { "aria-hidden": "true" },
      marks,
      last ? null : svg("text", { x: 12, y: 14, class: "mark" }, showClock(since)),
    );
  }

  lane(row, n) {
    const top = AXIS + n * this.row;
    const group = svg("g", { transform: `translate(0 ${top})`, class: "lane" });
    this.groups.set(row.job_id, { group, row });
    this.fillLane(group, row);
    return group;
  }

  fillLane(group, row) {
    const { since, until, found } = this.view;
    const middle = this.narrow ? 29 : 12;
    const usual = (row.typical ?? 0) * 1000;
    const now = Date.now();
    const parts = [svg("rect", { x: 0, y: 0, width: this.width, height: this.row, class: "stripe" })];
    if (row.slots.length) parts.push(...this.slots(row, middle));
    for (const [time, id] of row.ahead) {
      const start = Date.parse(time);
      if (start < until && start + usual > since)
        parts.push(this.bar({ id, state: "scheduled", start, end: start + usual, usual, middle, row }));
    }
    const past = [...row.runs].reverse().sort((a, b) => bad(a) - bad(b)); // failures on top
    for (const [id, state, due, start, took] of past) {
      const from = Date.parse(start);
      if (from < until && from + (took ?? 0) * 1000 >= since)
        parts.push(this.bar({ id, state, due, start: from, end: from + (took ?? 0) * 1000, usual, middle, row }));
    }
    for (const [id, state, due, start] of row.active) {
      const from = Date.parse(start);
      if (from < until) parts.push(this.bar({ id, state, due, start: from, end: now, usual, middle, row, live: true }));
    }
    if (found?.complete && Date.parse(found.complete) > since) {
      parts.push(
        svg("rect", {
          x: 0,
          y: 2,
          width: Math.max(0, this.x(Date.parse(found.complete))),
          height: this.row - 4,
          class: "unknown",
        }),
      );
    }
    group.replaceChildren(...parts);
  }

  slots(row, middle) {
    const [from, to] = [Date.parse(this.view.found.since), Date.parse(this.view.found.until)];
    const step = (to - from) / SLOTS;
    const most = Math.max(...row.slots.map(([, count]) => count));
    return row.slots.flatMap(([slot, count, failed]) => {
      const [x, width] = [this.x(from + slot * step), this.x(from + step) - this.x(from)];
      if (x + width < 0 || x > this.width) return [];
      const tall = 3 + (count / most) * 13;
      const red = failed ? Math.max(3, (failed / count) * tall) : 0;
      const text = `${count} runs, ${failed} failed\n${showTime(from + slot * step)} – ${showClock(from + (slot + 1) * step)}`;
      const shape = { x: x.toFixed(1), width: Math.max(1, width - 0.6).toFixed(1), "data-tip": text };
      return [
        svg("rect", { ...shape, y: middle + 8 - tall, height: tall - red, class: "bar", "data-state": "success" }),
        red ? svg("rect", { ...shape, y: middle + 8 - red, height: red, class: "bar", "data-state": "failure" }) : null,
      ].filter(Boolean);
    });
  }

  bar({ id, state, due, start, end, usual, middle, row, live = false }) {
    const x = this.x(start);
    const width = Math.max(state === "scheduled" ? 2.5 : 3, this.x(end) - x);
    const tall = state === "failure" || state === "error" ? 16 : state === "scheduled" || state === "skipped" ? 8 : 11;
    const texts = [
      `${row.job_id}  ${id ?? "not made yet"}`,
      `${state}${live ? `, for ${showSeconds((end - start) / 1000)}` : ""}`,
      state === "scheduled"
        ? `due ${showTime(start)}`
        : `began ${showTime(start)}${due && Math.abs(start - Date.parse(due)) > 1500 ? `, due ${showClock(due)}` : ""}`,
      FINISHED.includes(state) && end > start ? `took ${showSeconds((end - start) / 1000)}` : "",
      usual ? `usually ${showSeconds(usual / 1000)}` : "",
    ];
    const tip = texts.filter(Boolean).join("\n");
    const shapes = [
      svg("rect", {
        x: x.toFixed(1),
        y: middle - tall / 2,
        width: width.toFixed(1),
        height: tall,
        rx: 1.5,
        class: "bar",
        "data-state": state,
      }),
    ];
    // How long it is expected to take: an outline for what is not over, a tick behind what took much longer.
    if (live && usual && state !== "waiting" && start + usual > end) {
      shapes.push(
        svg("rect", {
          x: this.x(end).toFixed(1),
          y: middle - 5.5,
          width: Math.max(1, this.x(start + usual) - this.x(end)).toFixed(1),
          height: 11,
          class: "expected",
        }),
      );
    }
    if (usual && state !== "scheduled" && end - start > 1.5 * usual && state !== "waiting") {
      shapes.push(
        svg("rect", {
          x: this.x(start + usual).toFixed(1),
          y: middle + tall / 2 - 2.5,
          width: Math.max(1, x + width - this.x(start + usual)).toFixed(1),
          height: 2.5,
          class: "over",
        }),
      );
    }
    if (state === "failure" || state === "error") {
      shapes.push(
        svg("path", {
          d:
            state === "failure"
              ? `M${(x + width / 2 - 2.6).toFixed(1)} ${middle - 2.6}l5.2 5.2m0 -5.2l-5.2 5.2`
              : `M${(x + width / 2).toFixed(1)} ${middle - 4}v4.6m0 2.4v1`,
          class: width >= 9 ? "sign" : "sign out",
        }),
      );
    }
    if (!id) return svg("g", { "data-tip": tip }, shapes);
    return svg(
      "a",
      { href: `/runs/${id}`, "data-tip": tip, "data-run": id, tabindex: -1, "aria-label": tip.replaceAll("\n", ", ") },
      shapes,
    );
  }

  changed(row) {
    this.dirty.add(row);
  }

  drawChanged() {
    for (const row of this.dirty) {
      const lane = this.groups.get(row.job_id);
      if (lane) this.fillLane(lane.group, row);
    }
    if (this.dirty.size) this.label(this.view.found.rows);
    this.dirty.clear();
  }

  /** The present has moved on. */
  follow(since, until) {
    if (!this.view || this.dragging) return;
    const moved = ((since - this.view.since) / (until - since)) * this.width;
    if (moved >= 1) {
      this.draw({ ...this.view, since, until });
      return;
    }
    this.placeNow();
    for (const { group, row } of this.groups.values()) if (row.active.length) this.fillLane(group, row);
  }

  placeNow() {
    const x = this.x(Date.now());
    this.nowLine.setAttribute("transform", `translate(${x.toFixed(1)} 0)`);
    this.nowLine.setAttribute("visibility", x >= 0 && x <= this.width ? "visible" : "hidden");
  }

  show(node, x, y) {
    if (!node?.dataset.tip) {
      this.hide();
      return;
    }
    if (this.tip.textContent !== node.dataset.tip) this.tip.textContent = node.dataset.tip;
    this.tip.hidden = false;
    const { width, height } = this.tip.getBoundingClientRect();
    this.tip.style.setProperty("left", `${Math.max(4, Math.min(x + 12, window.innerWidth - width - 8))}px`);
    this.tip.style.setProperty("top", `${y + 18 + height > window.innerHeight ? y - height - 10 : y + 18}px`);
  }

  hide() {
    this.tip.hidden = true;
  }
}

const bad = (run) => Number(run[1] === "failure" || run[1] === "error");

// Midnight as a point to count steps from: on a day that clocks change, lines before the change are off by it.
const midnight = (year, month, day) => instantOf(year, month, day);
