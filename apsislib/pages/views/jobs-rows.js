// Cells of the table of jobs.

import { SECONDS, median, rate, showRate, showShortSeconds, spark } from "../lib/charts.js";
import { el } from "../lib/dom.js";
import { stateIcon } from "../lib/marks.js";
import { td } from "../lib/tables.js";
import { showAgo, showShort, showTime } from "../lib/times.js";

export function indented(depth, ...inner) {
  const cell = td("job", el("div", { class: "cell" }, inner));
  cell.firstChild.style.setProperty("--depth", String(depth));
  return cell;
}

/** Each label narrows the table down. `pick(label)`. */
export function labelButtons(job, pick) {
  return job.labels.map((label) => el("button", { type: "button", class: "chip", title: `Only jobs labelled ${label}`,
    onclick: () => pick(label) }, label));
}

export function scheduleText(job) {
  const on = job.schedule.filter((s) => s.enabled);
  if (!job.schedule.length) return el("span", { class: "soft" }, "–");
  if (!on.length) return el("span", { class: "soft" }, "disabled");
  return [on[0].words, on.length > 1 ? el("span", { class: "soft" }, ` +${on.length - 1} more`) : null];
}

export function nextMark(stand) {
  const next = stand?.next;
  if (!next) return el("span", { class: "soft" }, stand ? "–" : "");
  const text = showShort(next.time);
  const title = `${showTime(next.time)} · ${showAgo(next.time)}`;
  return next.run_id ? el("a", { href: `/runs/${next.run_id}`, title }, text) : el("span", { title }, text);
}

export function lastMark(stand) {
  const last = stand?.last;
  if (!last) return el("span", { class: "soft" }, stand ? "never" : "");
  return el("span", { class: "state", "data-state": last.state, title: `${last.run_id} ${last.state} · ${showTime(last.time)}` }, stateIcon(last.state),
    el("a", { href: `/runs/${last.run_id}`, "aria-label": `${last.state}, run ${last.run_id}` }, last.state), el("span", { class: "soft ago" }, ` ${showAgo(last.time)}`));
}

/** How often it went well, and how long it took. */
export function recentCells(runs) {
  if (!runs?.length) return [td("num rate"), td("spark")];
  const part = rate(runs);
  const took = runs.filter((run) => run[SECONDS] !== null).map((run) => run[SECONDS]);
  return [
    td(`num rate${part !== null && part < 0.9 ? " low" : ""}`, showRate(part)),
    td("spark", el("div", { class: "cell" }, spark(runs), took.length ? el("span", { class: "soft took", title: "median" }, showShortSeconds(median(took))) : null)),
  ];
}
