// Small things that are shown everywhere: states, alarms, labels, args, times, and links to runs and jobs.

import { el, encodePath, svg } from "./dom.js";
import { showAgo, showShort, showTime } from "./times.js";

// Told apart by shape as well as by colour; the word stands beside them.
const SHAPES = {
  new: [["circle", { cx: 8, cy: 8, r: 1.6, class: "fill" }]],
  scheduled: [["path", { d: "M8 4.4V8l2.6 1.7" }]],
  waiting: [["path", { d: "M6.2 5.2v5.6M9.8 5.2v5.6" }]],
  starting: [["path", { d: "M8 4.8l3.2 5.4H4.8z" }]],
  running: [["path", { d: "M6.3 4.7l5 3.3-5 3.3z", class: "fill" }]],
  stopping: [["path", { d: "M8 11.2L4.8 5.8h6.4z", class: "fill" }]],
  success: [["path", { d: "M4.8 8.3l2.3 2.3 4.2-4.9" }]],
  failure: [["path", { d: "M5.5 5.5l5 5M10.5 5.5l-5 5" }]],
  error: [["path", { d: "M8 4.3v4.6M8 11.1v.6" }]],
  skipped: [["path", { d: "M5 11l6-6" }]],
};
const drawn = {};

/** The icon of a state, 16 px, hidden from screen readers: the word says it. */
export function stateIcon(state) {
  drawn[state] ??= svg("svg", { viewBox: "0 0 16 16", class: "state-icon", "aria-hidden": "true", "data-state": state },
    svg("circle", { cx: 8, cy: 8, r: 7, class: "ring" }),
    (SHAPES[state] ?? []).map(([name, attributes]) => svg(name, attributes)));
  return drawn[state].cloneNode(true);
}

export const stateMark = (state) => el("span", { class: "state", "data-state": state }, stateIcon(state), state);

const ALARMS = {
  late: "it did not begin in the time that its job expects",
  missed: "it did not end by the time that its job expects",
  long: "it ran longer than its job expects",
};

/** What is to be said beside the state of a run: its alarms, and how its program ended after it was given up. */
export const alarmMarks = (run) => [
  (run.alarms ?? []).map((alarm) => el("span", { class: "chip alarm", title: run.reasons?.[alarm] ?? ALARMS[alarm] ?? "" }, alarm)),
  run.late_verdict ? el("span", { class: "chip verdict", "data-state": run.late_verdict,
    title: "The run was given up before its agent came back and told how its program ended" }, `ended later: ${run.late_verdict}`) : null,
];

export const chips = (labels) => labels.map((label) => el("span", { class: "chip" }, label));

export const argsMark = (args) => el("span", { class: "args" }, Object.entries(args).map(([name, value]) =>
  el("span", {}, el("span", { class: "soft" }, `${name}=`), value)));

export const runLink = (id, cls = "mono") => el("a", { href: `/runs/${encodeURIComponent(id)}`, class: cls }, id);

/** A job's ID, its folders less loud than its name. */
export function jobText(id) {
  const cut = id.lastIndexOf("/") + 1;
  // A line breaks behind a slash, if it must.
  const folders = id.slice(0, cut).split(/(?<=\/)/).flatMap((part) => [part, el("wbr")]);
  return [cut ? el("span", { class: "folder" }, folders) : null, id.slice(cut)];
}

export const jobHref = (id) => `/job/${encodePath(id)}`;
export const jobLink = (id, cls = "") => el("a", { href: jobHref(id), class: `job ${cls}` }, jobText(id));

/** An instant: of today its time of day, else month, day and time; in full, and how long ago, when pointed at. */
export function timeMark(time, { full = false } = {}) {
  if (!time) return el("span", { class: "soft" }, "–");
  return el("time", { dateTime: new Date(time).toISOString(), title: `${showTime(time)} · ${showAgo(time)}` },
    full ? showTime(time) : showShort(time));
}

/** Names and values; a value is a text or nodes. */
export function facts(pairs) {
  return el("dl", {}, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

/** The key-value pairs of an object of the API, `str` left out. */
export function objectFacts(value) {
  return facts(Object.entries(value).filter(([name]) => name !== "str")
    .map(([name, v]) => [name, el("span", { class: "mono" }, typeof v === "string" ? v : JSON.stringify(v))]));
}

export const section = (title, ...content) => el("section", {}, el("h2", {}, title), content);
