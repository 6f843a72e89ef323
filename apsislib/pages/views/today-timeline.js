// The day as a timeline: a row for each job, a bar for each run. This file has the window of time, what is fetched
// for it and the controls; today-chart.js draws.

import { get } from "../lib/api.js";
import { notice } from "../lib/dialogs.js";
import { el, fill, oneAtATime, plural, settled } from "../lib/dom.js";
import { FINISHED, parseTime, showDate, showTime } from "../lib/times.js";
import { Chart } from "./today-chart.js";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const SPANS = [
  ["1 h", HOUR],
  ["6 h", 6 * HOUR],
  ["24 h", DAY],
  ["3 d", 3 * DAY],
  ["7 d", 7 * DAY],
];
const [SHORTEST, LONGEST] = [5 * MINUTE, 31 * DAY];
const AHEAD = 1 / 3; // of the window lies ahead while it follows now
const PAGE = 40; // jobs
const MOST = 400; // jobs that are shown
const KEPT = 300; // runs of a job that are kept as they come; then it is asked again, and counts come instead
const FRESH = 60_000; // ms after which a window that follows now is fetched again
const OFTEN = 4000; // ms between two questions because of changes

export function timeline(page) {
  let span = DAY;
  let since = null; // ms; null: the window follows now
  let words = "";
  let wanted = PAGE; // jobs
  let found = null; // the answer that is shown
  let asked = 0;
  const chart = new Chart({
    pan: (part) => move(begin() + part * span, span),
    zoom: (factor, at) => zoom(factor, at),
  });
  const filter = el("input", { type: "search", placeholder: "Find jobs", "aria-label": "Jobs of the timeline" });
  const jump = el("input", {
    type: "text",
    placeholder: "Jump to a time",
    "aria-label": "Jump to a date or time",
    title: "now, 07:00, yesterday, 2031-05-06, 2031-05-06 07:00, 2h ago",
    autocomplete: "off",
  });
  const button = (text, label, does) =>
    el("button", { type: "button", title: label, "aria-label": label, onclick: does }, text);
  const spans = el(
    "span",
    { class: "segments", role: "group", "aria-label": "Length of the timeline" },
    SPANS.map(([text, ms]) => button(text, `Show ${text}`, () => zoomTo(ms))),
  );
  const now = button("Now", "Follow the present", () => move(null, span));
  const title = el("span", { class: "window num", role: "status" });
  const more = el("div", { class: "more" });
  const note = el("p", { class: "note soft", hidden: true });
  const box = el(
    "section",
    { class: "flush timeline", "aria-label": "Timeline" },
    el(
      "div",
      { class: "controls" },
      el(
        "span",
        { class: "segments" },
        button("‹", "Earlier (left arrow on the chart)", () => move(begin() - span / 2, span)),
        now,
        button("›", "Later (right arrow on the chart)", () => move(begin() + span / 2, span)),
      ),
      spans,
      el(
        "span",
        { class: "segments" },
        button("+", "Zoom in", () => zoom(0.5)),
        button("−", "Zoom out", () => zoom(2)),
      ),
      el("form", { class: "jump", onsubmit: goTo }, jump),
      el("div", { class: "grow" }, filter),
      title,
    ),
    chart.box,
    note,
    more,
    legend(),
  );

  const begin = () => since ?? Date.now() - span * (1 - AHEAD);

  function goTo(event) {
    event.preventDefault();
    try {
      const time = parseTime(jump.value.replace(/\s+ago$/, ""));
      // A date alone means the day, from its beginning.
      const whole = /^\s*(yesterday|today|tomorrow|\d{4}-?\d\d-?\d\d)\s*$/i.test(jump.value);
      move(/^\s*now\s*$/i.test(jump.value) ? null : whole ? time : time - span / 2, whole ? DAY : span);
      jump.setCustomValidity("");
      jump.removeAttribute("aria-invalid");
    } catch (error) {
      jump.setAttribute("aria-invalid", "true");
      notice(error.message);
    }
  }

  function zoomTo(ms) {
    zoom(ms / span);
  }

  /** Make the window `factor` times as long around a point in it (0 to 1), which stays where it is. */
  function zoom(factor, at = since === null ? 1 - AHEAD : 0.5) {
    const next = Math.min(LONGEST, Math.max(SHORTEST, span * factor));
    if (since === null && Math.abs(at - (1 - AHEAD)) < 0.02) move(null, next);
    else move(begin() + at * (span - next), next);
  }

  function move(to, length) {
    since = to;
    span = length;
    keep();
    redraw();
    loadSoon();
  }

  const keep = settled(() => {
    const query = new URLSearchParams(location.search);
    const put = (name, value) => {
      if (value) query.set(name, value);
      else query.delete(name);
    };
    put("at", since === null ? "" : new Date(since).toISOString().replace(/[-:]|\.\d+/g, ""));
    put("span", span === DAY ? "" : `${Math.round(span / MINUTE)}m`);
    put("jobs", words);
    if (page.isOpen()) history.replaceState(null, "", `${location.pathname}${String(query) ? `?${query}` : ""}`);
  }, 300);

  function read(query) {
    const at = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(query.get("at") ?? "");
    since = at ? Date.UTC(at[1], at[2] - 1, at[3], at[4], at[5], at[6]) : null;
    const length = /^(\d{1,6})m$/.exec(query.get("span") ?? "");
    span = length ? Math.min(LONGEST, Math.max(SHORTEST, Number(length[1]) * MINUTE)) : DAY;
    words = query.get("jobs") ?? "";
    filter.value = words;
  }

  const load = oneAtATime(async () => {
    asked = Date.now();
    // A little more on both sides, so that a small step has something to show at once.
    const [from, length] = [begin(), span];
    const margin = Math.min(length / 4, (LONGEST + DAY - length) / 2);
    const query = {
      since: new Date(from - margin).toISOString(),
      until: new Date(from + length + margin).toISOString(),
      q: words,
    };
    try {
      const rows = [];
      let answer;
      do {
        answer = await get(
          "/timeline",
          { ...query, limit: Math.min(100, wanted - rows.length), offset: rows.length },
          { signal: page.left },
        );
        rows.push(...answer.rows);
      } while (answer.rows.length && rows.length < Math.min(wanted, answer.jobs));
      found = { ...answer, rows, byJob: new Map(rows.map((row) => [row.job_id, row])) };
      redraw();
      box.dataset.loaded = "yes";
    } catch (error) {
      if (error.name !== "AbortError" && error.status) notice(error.message);
    }
  });
  const loadSoon = settled(load, 150);

  function redraw() {
    const from = begin();
    chart.draw({ since: from, until: from + span, found });
    const [first, last] = [showTime(from), showTime(from + span)];
    fill(
      title,
      first.slice(0, 10) === last.slice(0, 10)
        ? `${showDate(from)} ${first.slice(11, 16)} – ${last.slice(11, 16)}`
        : `${first.slice(0, 16)} – ${last.slice(first.slice(0, 4) === last.slice(0, 4) ? 5 : 0, 16)}`,
    );
    now.setAttribute("aria-pressed", since === null);
    for (const [n, [, ms]] of SPANS.entries())
      spans.children[n].setAttribute("aria-pressed", Math.abs(ms - span) < MINUTE);
    const left = found ? found.jobs - found.rows.length : 0;
    fill(
      more,
      left > 0 && wanted < MOST
        ? el(
            "button",
            {
              type: "button",
              onclick: () => {
                wanted += 2 * PAGE;
                load();
              },
            },
            `Show more of the ${plural(found.jobs, "job")}`,
          )
        : left > 0
          ? el("span", { class: "soft" }, `${plural(left, "more job")}: name some above`)
          : null,
    );
    note.hidden = !found?.complete;
    if (found?.complete)
      fill(note, `Too many runs for one picture: what ended before ${showTime(found.complete)} is left out. Zoom in.`);
  }

  let missed = false;
  function hear(run) {
    const row = found?.byJob.get(run.job_id);
    if (!row) {
      if (run.state !== "scheduled" && run.job_id.toLowerCase().includes(words.toLowerCase())) missed = true;
      return;
    }
    chart.changed(row);
    row.active = row.active.filter((one) => one[0] !== run.run_id);
    row.ahead = row.ahead.filter((one) => one[1] !== run.run_id);
    const start = run.times.running ?? run.times[run.state] ?? run.times.schedule;
    if (run.state === "scheduled" || run.state === "new") {
      if (run.times.schedule) row.ahead.push([run.times.schedule, run.run_id]);
    } else if (!FINISHED.includes(run.state)) {
      row.active.unshift([run.run_id, run.state, run.times.schedule ?? null, start, null]);
    } else {
      const old = row.runs.findIndex((one) => one[0] === run.run_id);
      if (old >= 0) row.runs.splice(old, 1);
      else row.count += 1;
      const took = run.times.running ? (Date.parse(run.times[run.state]) - Date.parse(run.times.running)) / 1000 : null;
      row.runs.unshift([run.run_id, run.state, run.times.schedule ?? null, start, took]);
      row.failures = row.runs.filter((one) => one[1] === "failure" || one[1] === "error").length;
      if (row.slots.length || row.runs.length > KEPT) {
        row.runs.length = Math.min(row.runs.length, KEPT);
        missed = true;
      }
    }
  }

  page.subscribe({
    message(message) {
      if (message.type === "run_transition") hear(message.run_summary);
      else if (message.type === "run_delete") {
        for (const row of found?.rows ?? []) row.ahead = row.ahead.filter((one) => one[1] !== message.run_id);
      }
    },
    frame() {
      chart.drawChanged();
      if (missed && since === null && Date.now() - asked > OFTEN) {
        missed = false;
        load();
      }
    },
    refresh: load,
  });
  filter.oninput = settled(() => {
    words = filter.value.trim();
    keep();
    load();
  }, 200);

  read(page.query);
  redraw();
  load();
  return {
    box,
    redraw,
    requery(query) {
      read(query);
      redraw();
      load();
    },
    tick() {
      if (since === null && document.visibilityState === "visible") {
        if (Date.now() - asked > FRESH || (missed && Date.now() - asked > OFTEN)) {
          missed = false;
          load();
        }
        chart.follow(begin(), begin() + span);
      }
    },
  };
}

function legend() {
  const sample = (cls, text) => el("span", { class: "key" }, el("i", { class: cls }), text);
  return el(
    "p",
    { class: "legend soft", "aria-hidden": "true" },
    sample("k-success", "success"),
    sample("k-failure", "failure"),
    sample("k-error", "error"),
    sample("k-running", "running"),
    sample("k-waiting", "waiting"),
    sample("k-skipped", "skipped"),
    sample("k-ahead", "to come, as long as usual"),
    el(
      "span",
      { class: "keys" },
      "drag, pinch or ",
      el("kbd", {}, "←"),
      " ",
      el("kbd", {}, "→"),
      " to pan, ",
      el("kbd", {}, "+"),
      " ",
      el("kbd", {}, "−"),
      " to zoom",
    ),
  );
}
