// Charts of how runs went: durations as bars, outcomes by day as a calendar. State is told by shape and words too.

import { el, encodePath, svg } from "./dom.js";
import { stateIcon } from "./marks.js";
import { niceCeiling } from "./plots.js";
import { showSeconds, showTime } from "./times.js";

/** A run as /history has it: [run ID, state, schedule, start, seconds]. */
export const [ID, STATE, SCHEDULE, START, SECONDS] = [0, 1, 2, 3, 4];

const BAD = ["failure", "error"];

/** 93 % of the runs that say something; null: none does. Skipped ones do not. */
export function rate(runs) {
  const told = runs.filter((run) => run[STATE] !== "skipped");
  return told.length ? told.filter((run) => run[STATE] === "success").length / told.length : null;
}

export const showRate = (part) => (part === null ? "–" : part < 1 && part > 0.99 ? "> 99 %" : `${Math.round(part * 100)} %`);

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length ? (sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2) : null;
}

/** Seconds where they are long, else with tenths or milliseconds. */
export const showShortSeconds = (seconds) => (seconds >= 60 ? showSeconds(seconds)
  : seconds >= 10 ? `${Math.round(seconds)} s` : seconds >= 1 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds * 1000)} ms`);

const STEPS = [10, 20, 30, 40, 60, 90, 120, 180, 240, 300, 480, 600, 900, 1200, 1800, 2400, 3600, 5400, 7200, 10_800, 14_400, 21_600, 28_800, 43_200, 57_600, 86_400];

/** A round duration that is not below this one. */
const niceSeconds = (seconds) => (seconds > 86_400 ? Math.ceil(seconds / 86_400) * 86_400 : seconds <= 5 ? niceCeiling(seconds) : STEPS.find((step) => step >= seconds));

/** `runs`, newest first, as bars from left to right, each a link. `current`: the run ID to point out. */
export function durations(runs, { current = null, label = "Durations", tall = 84 } = {}) {
  const shown = [...runs].reverse();
  const top = niceSeconds(Math.max(0.001, ...shown.map((run) => run[SECONDS] ?? 0)));
  const bars = shown.map((run) => {
    const seconds = run[SECONDS];
    const text = `${run[ID]} ${run[STATE]}${seconds === null ? "" : `, ${showShortSeconds(seconds)}`}, ${showTime(run[START])}`;
    const bar = el("a", { href: `/runs/${run[ID]}`, class: "bar-link", tabIndex: -1, title: text, "aria-label": text,
      "data-state": run[STATE], "aria-current": run[ID] === current ? "true" : null }, el("span", { class: "bar-fill" },
      BAD.includes(run[STATE]) ? el("span", { class: "bar-cross", "aria-hidden": "true" }, run[STATE] === "error" ? "!" : "×") : null));
    bar.firstChild.style.setProperty("height", `${Math.max(3, ((seconds ?? 0) / top) * 100)}%`);
    return bar;
  });
  const chart = el("div", { class: "durations", role: "group", "aria-label": label },
    el("div", { class: "durations-axis", "aria-hidden": "true" }, el("span", {}, showShortSeconds(top)), el("span", {}, showShortSeconds(top / 2)), el("span", {}, "0")),
    el("div", { class: "durations-bars" }, bars));
  chart.style.setProperty("--tall", `${tall}px`);
  return chart;
}

/** A row of small bars for a table: durations, newest at the right, what failed marked by a gap and its colour. */
export function spark(runs, { width = 84, height = 18 } = {}) {
  const shown = [...runs].reverse();
  const top = Math.max(0.001, ...shown.map((run) => run[SECONDS] ?? 0));
  const step = width / 20;
  const failed = shown.filter((run) => BAD.includes(run[STATE])).length;
  return svg("svg", { class: "plot spark", role: "img", viewBox: `0 0 ${width} ${height}`, width, height,
    "aria-label": `${shown.length} runs, ${failed} failed, the last took ${shown.length ? showShortSeconds(shown.at(-1)[SECONDS] ?? 0) : "–"}` },
  shown.map((run, n) => {
    const tall = Math.max(2, ((run[SECONDS] ?? 0) / top) * (height - 3));
    const x = (20 - shown.length + n) * step;
    return [svg("rect", { x: x.toFixed(1), y: (height - tall).toFixed(1), width: (step - 1).toFixed(1), height: tall.toFixed(1), class: "bar", "data-state": run[STATE] }),
      BAD.includes(run[STATE]) ? svg("rect", { x: x.toFixed(1), y: 0, width: (step - 1).toFixed(1), height: 1.6, class: "bar", "data-state": run[STATE] }) : null];
  }));
}

const WEEK = 7;
const CELL = 13;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** Outcomes by date as a calendar: weeks from left to right, Monday on top. `days`: {date: {state: count}}. */
export function calendar(days, today, weeks = 53) {
  const last = Date.parse(`${today}T00:00:00Z`);
  const monday = last - ((new Date(last).getUTCDay() + 6) % 7) * 86_400_000;
  const first = monday - (weeks - 1) * WEEK * 86_400_000;
  const cells = [];
  const months = [];
  for (let week = 0; week < weeks; week += 1) {
    const start = new Date(first + week * WEEK * 86_400_000);
    if (start.getUTCDate() <= 7 && (week === 0 || week > 1)) months.push(svg("text", { x: 30 + week * CELL, y: 9, class: "mark" }, MONTHS[start.getUTCMonth()]));
    for (let day = 0; day < WEEK; day += 1) {
      const time = start.getTime() + day * 86_400_000;
      if (time > last) break;
      const date = new Date(time).toISOString().slice(0, 10);
      cells.push(cell(date, days[date] ?? {}, 30 + week * CELL, 14 + day * CELL));
    }
  }
  const all = Object.values(days);
  const sum = (state) => all.reduce((total, counts) => total + (counts[state] ?? 0), 0);
  const label = `Outcomes by day: ${sum("success")} succeeded, ${sum("failure")} failed, ${sum("error")} in error, ${sum("skipped")} skipped`;
  const wide = 30 + weeks * CELL;
  return svg("svg", { class: "plot calendar", role: "img", "aria-label": label, viewBox: `0 0 ${wide} ${16 + WEEK * CELL}`, width: wide, height: 16 + WEEK * CELL },
    months, ["Mon", "Wed", "Fri"].map((name, n) => svg("text", { x: 0, y: 24 + n * 2 * CELL, class: "mark" }, name)), cells);
}

function cell(date, counts, x, y) {
  const names = ["success", "failure", "error", "skipped"].filter((state) => counts[state]);
  const bad = (counts.failure ?? 0) + (counts.error ?? 0);
  const state = counts.error ? "error" : counts.failure ? "failure" : counts.success ? "success" : counts.skipped ? "skipped" : "none";
  const title = svg("title", {}, `${date}: ${names.map((name) => `${counts[name]} ${name}`).join(", ") || "no runs"}`);
  const size = CELL - 2;
  return [
    svg("rect", { x, y, width: size, height: size, rx: 2, class: "day", "data-state": bad && counts.success ? "success" : state }, title),
    bad && counts.success ? svg("rect", { x: x + 2, y: y + 2, width: size - 4, height: size - 4, rx: 1, class: "day inner", "data-state": state }) : null,
    bad ? svg("path", { d: `M${x + 3.2} ${y + 3.2}l${size - 6.4} ${size - 6.4}M${x + size - 3.2} ${y + 3.2}l${6.4 - size} ${size - 6.4}`, class: "day-cross" }) : null,
  ];
}

/** What the colours and marks of a calendar mean. */
export function legend() {
  return el("div", { class: "day-legend soft" }, ["success", "failure", "error", "skipped"].map((state) => el("span", {}, stateIcon(state), ` ${state}`)));
}

export const jobHref = (id) => `/job/${encodePath(id)}`;
