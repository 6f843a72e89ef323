// One job: what it is for, when it runs and why not on some dates, what it hangs together with, how it has gone; and
// the form by which it is run.

import { get, post } from "../lib/api.js";
import { calendar, durations, legend, median, rate, showRate, showShortSeconds, SECONDS, STATE } from "../lib/charts.js";
import { ask, notice } from "../lib/dialogs.js";
import { el, encodePath, fill, plural, paced } from "../lib/dom.js";
import { drawGraph, showMiddle } from "../lib/graph.js";
import { argsMark, facts, jobLink, runLink, section, stateMark, timeMark } from "../lib/marks.js";
import { programFacts } from "../lib/programs.js";
import { runsList } from "../lib/runslist.js";
import { FINISHED, parseTime, showAgo, showDate, showTime, zoneName } from "../lib/times.js";
import { markdown } from "./job-markdown.js";

const UPCOMING = 20;
const HISTORY = 100;

export async function mount(main, page) {
  const [jobId] = page.params;
  page.title(jobId);
  const cut = jobId.lastIndexOf("/") + 1;
  const folders = jobId.slice(0, cut).split("/").filter(Boolean);
  const title = el("h1", { class: "job-title" }, folders.map((name, n) => [
    el("a", { class: "folder", href: `/jobs/${encodePath(folders.slice(0, n + 1).join("/"))}` }, name), el("span", { class: "soft" }, "/")]), jobId.slice(cut));
  const head = el("div", { class: "title" }, title);
  main.append(head);
  let job = null;
  try {
    job = await get(`/jobs/${encodeURIComponent(jobId)}`, {}, { signal: page.left });
    if (job.job_id !== jobId) job = null; // the API takes words of an ID too
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status !== 404 && error.status !== 400) throw error;
  }
  if (!page.isOpen()) return;
  const past = el("section", {}, el("h2", {}, "How it has gone"), historyPart(jobId, page));
  const runs = el("div", {}, el("h2", { class: "over" }, "Runs"), runsList(page, { job_id: jobId }, { job: false }));
  if (!job) {
    main.append(el("section", { role: "status" }, el("p", {}, el("strong", {}, "There is no such job now."), " Its past runs, if there are any, are below.")), past, runs);
    return;
  }
  head.append(...job.metadata.labels.map((label) => el("a", { class: "chip", href: `/jobs?labels=${encodeURIComponent(label)}`, title: `Jobs labelled ${label}` }, label)));
  const form = runForm(job, page);
  head.append(el("div", { class: "buttons" }, el("button", { type: "button", class: "primary", onclick: () => form.open() }, "Schedule a run")));
  const { labels, description, ...metadata } = job.metadata;
  main.append(el("div", { class: "job-columns" },
    el("div", {},
      description ? el("section", {}, el("h2", { class: "hidden" }, "Description"), markdown(description)) : null,
      past, graphPart(jobId, page), runs),
    el("div", {}, form.box, schedules(job), upcoming(job, page), conditions(job), actions(job), section("Program", programFacts(job.program)),
      Object.keys(metadata).length ? section("Metadata", facts(Object.entries(metadata).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]))) : null)));
  page.subscribe({
    message(message) {
      if ((message.type === "job" && message.job.job_id === jobId) || (message.type === "job_delete" && message.job_id === jobId)) {
        notice("The job has changed: this page shows it as it was.", { kind: "info" });
      }
    },
  });
  if (location.hash === "#run") form.open();
}

// -- when it runs --------------------------------------------------------------------------------

function schedules(job) {
  const list = job.schedule.map((schedule) => {
    const args = schedule.args ?? schedule.start?.args ?? {};
    return el("li", { class: schedule.enabled ? "" : "disabled" }, schedule.words, schedule.enabled ? null : el("span", { class: "chip" }, "disabled"),
      Object.keys(args).length ? el("div", {}, argsMark(args)) : null);
  });
  return section("Schedules", list.length ? el("ul", { class: "plain-list" }, list) : el("div", { class: "soft" }, "None: it runs when it is told to."),
    job.expect ? el("p", { class: "soft small" }, "Expected: ", job.expect.str) : null);
}

function upcoming(job, page) {
  const list = el("ol", { class: "upcoming", tabIndex: 0, "aria-label": "Upcoming" });
  const box = section("Next", list);
  if (!job.schedule.length) box.hidden = true;

  async function load() {
    let found;
    try {
      // Dates that are left out are shown among the next instants, not instead of them.
      found = await get(`/jobs/${encodeURIComponent(job.job_id)}/upcoming`, { limit: 200, skipped: true }, { signal: page.left });
    } catch {
      return;
    }
    if (!page.isOpen()) return;
    const shown = [];
    let kept = 0;
    for (const coming of found.upcoming) {
      if (kept === UPCOMING) break;
      if (coming.skipped === "the schedule is disabled") continue; // which stands above
      kept += coming.skipped ? 0 : 1;
      shown.push(coming);
    }
    const many = job.schedule.length > 1 || job.params.length > 0;
    fill(list, shown.map((coming) => el("li", { class: coming.skipped ? "skipped" : "" },
      timeMark(coming.time, { full: true }),
      el("span", {}, coming.skipped ? el("span", { class: "soft" }, coming.skipped)
        : [coming.run_id ? [runLink(coming.run_id), " "] : null, el("span", { class: "soft" }, showAgo(coming.time), " "), many && Object.keys(coming.args).length ? argsMark(coming.args) : null],
      coming.note ? el("div", { class: "soft small" }, coming.note) : null))));
    if (!shown.length) fill(list, el("li", { class: "soft" }, "Nothing within a year."));
  }
  load();
  const soon = paced(load, 1500);
  page.subscribe({
    message(message) {
      if (message.type === "run_transition" && message.run_summary.job_id === job.job_id) soon();
    },
    refresh: load,
  });
  return box;
}

// -- conditions and actions ----------------------------------------------------------------------------

function conditionItem(condition) {
  const id = condition.resolved_job_id ?? condition.job_id;
  const args = condition.resolved_args ?? condition.args ?? {};
  const dependency = condition.type === "dependency" && id;
  const off = condition.enabled === false;
  const when = typeof condition.enabled === "string" ? ` (if ${condition.enabled})` : "";
  return el("li", { class: off ? "disabled" : "" }, dependency
    ? [`${(condition.states ?? ["success"]).join(" or ")} of `, jobLink(id), Object.keys(args).length ? [" ", argsMark(args)] : null]
    : condition.str ?? JSON.stringify(condition), when, off ? el("span", { class: "chip" }, "disabled") : null);
}

function conditions(job) {
  const list = (items) => el("ul", { class: "plain-list" }, items.map(conditionItem));
  const parts = [];
  if (job.common_conditions.length) parts.push(list(job.common_conditions));
  for (const group of job.resolved_conditions) {
    if (!group.conditions.length) continue;
    parts.push(el("p", { class: "soft small" }, "Scheduled with ", argsMark(group.schedule_args)), list(group.conditions));
  }
  if (!parts.length && job.condition.length) parts.push(list(job.condition));
  return parts.length ? section("Waits for", parts) : section("Waits for", el("div", { class: "soft" }, "Nothing."));
}

function actions(job) {
  if (!job.action.length) return null;
  return section("Then", el("ul", { class: "plain-list" }, job.action.map((action) => {
    const states = action.if?.states ?? action.condition?.states;
    const id = action.job_id;
    return el("li", {}, id && !id.includes("{{") ? ["schedules ", jobLink(id), action.args && Object.keys(action.args).length ? [" ", argsMark(action.args)] : null,
      states ? ` on ${[].concat(states).join(" or ")}` : ""] : action.str ?? JSON.stringify(action));
  })));
}

function graphPart(jobId, page) {
  const inner = el("div", { class: "scroll graph-scroll", tabIndex: 0, role: "region", "aria-label": "Dependencies" });
  const note = el("p", { class: "soft small", hidden: true }, "Not all are shown.");
  const box = section("Dependencies", inner, note);
  box.hidden = true;
  get("/graph", { job_id: jobId }, { signal: page.left }).then((found) => {
    if (!page.isOpen() || found.nodes.length < 2) return;
    box.hidden = false;
    note.hidden = !found.more;
    const nodes = found.nodes.map((node) => {
      const cut = node.job_id.lastIndexOf("/") + 1;
      return { key: node.key, href: node.key === found.middle ? null : `/job/${encodePath(node.job_id)}`, title: node.exists ? node.job_id : `${node.job_id}: no such job`,
        lines: [node.job_id.slice(cut), node.exists ? node.job_id.slice(0, cut) || "job" : "no such job"], soft: !node.exists };
    });
    fill(inner, drawGraph({ nodes, edges: found.edges, middle: found.middle, label: "Jobs that this one hangs on, and jobs that hang on it" }));
    showMiddle(inner);
  }, () => {});
  return box;
}

// -- how it has gone -----------------------------------------------------------------------------------

function historyPart(jobId, page) {
  const said = el("p", { class: "soft small" });
  const chart = el("div", {});
  const year = el("div", { class: "calendar-scroll", tabIndex: 0, role: "region", "aria-label": "Outcomes by day" });
  const box = el("div", {}, said, chart, year, legend());

  async function loadRuns() {
    let found;
    try {
      found = (await get("/history", { job_id: jobId, limit: HISTORY }, { signal: page.left })).runs;
    } catch {
      return;
    }
    if (!page.isOpen()) return;
    const took = found.filter((run) => run[SECONDS] !== null && run[STATE] === "success").map((run) => run[SECONDS]);
    fill(said, found.length ? [`Last ${plural(found.length, "run")}: ${showRate(rate(found))} succeeded`,
      took.length ? `, median ${showShortSeconds(median(took))}, longest ${showShortSeconds(Math.max(...took))}` : ""] : "No run has ended yet.");
    fill(chart, found.length > 1 ? durations(found, { label: "Durations of the last runs, the newest at the right", tall: 76 }) : null);
  }

  async function loadDays() {
    const days = {};
    const tz = zoneName();
    let before = null;
    try {
      do {
        const piece = await get("/days", { job_id: jobId, tz, before }, { signal: page.left });
        for (const [day, counts] of Object.entries(piece.days)) {
          const mine = (days[day] ??= {});
          for (const [state, number] of Object.entries(counts)) mine[state] = (mine[state] ?? 0) + number;
        }
        before = piece.next;
        if (!page.isOpen()) return;
        fill(year, calendar(days, showDate(new Date())));
        year.scrollLeft = year.scrollWidth;
      } while (before);
    } catch (error) {
      if (error.name !== "AbortError") console.warn(error.message);
    }
  }

  loadRuns();
  loadDays();
  const soon = paced(() => { loadRuns(); loadDays(); }, 3000);
  page.subscribe({
    message(message) {
      if (message.type === "run_transition" && message.run_summary.job_id === jobId && FINISHED.includes(message.run_summary.state)) soon();
    },
    refresh() { loadRuns(); loadDays(); },
  });
  return box;
}

// -- the form ------------------------------------------------------------------------------------------

function runForm(job, page) {
  const fields = new Map();
  const args = job.params.map((name) => {
    const input = el("input", { type: "text", autocomplete: "off", name });
    fields.set(name, input);
    return el("label", { class: "field" }, el("span", {}, name), input);
  });
  const field = (label, input, hint) => el("div", {}, el("label", { class: "field" }, el("span", {}, label), input), hint);
  const when = el("input", { type: "text", value: "now", autocomplete: "off" });
  const whenHint = el("p", { class: "hint", role: "status" });
  const stop = el("input", { type: "text", autocomplete: "off", placeholder: "never" });
  const stopHint = el("p", { class: "hint", role: "status" });
  const count = el("input", { type: "number", min: 1, max: 10_000, value: 1 });
  const from = el("p", { class: "soft small" });
  const button = el("button", { type: "submit", class: "primary" }, "Schedule");
  const answer = el("span", { role: "status" });
  const form = el("form", { class: "run-form", noValidate: true }, from, args,
    field("When (now, 07:00, tomorrow 23:00, 2031-05-06 07:00)", when, whenHint),
    field("Stop it (after 2h, or at a time)", stop, stopHint),
    el("div", { class: "row" }, el("label", { class: "field" }, el("span", {}, "How many runs"), count), el("div")),
    el("div", { class: "buttons" }, answer, button));
  const box = el("section", { id: "run", hidden: true }, el("h2", {}, "Schedule a run"), form);

  /** The instant (ms) meant, null for now; throws what is wrong. */
  function whenMeant() {
    const text = when.value.trim();
    return !text || text === "now" ? null : parseTime(text.startsWith("in ") ? `+${text.slice(3)}` : text);
  }

  const SPAN = /^\+?\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)$/;

  function stopMeant() {
    const text = stop.value.trim();
    if (!text || text === "never") return null;
    const span = SPAN.exec(text);
    const start = whenMeant() ?? Date.now();
    const time = span ? start + Number(span[1]) * { s: 1, sec: 1, m: 60, min: 60, h: 3600, d: 86400 }[span[2]] * 1000 : parseTime(text);
    if (time <= start) throw new Error("It would be stopped before it begins.");
    return time;
  }

  function hint(node, meant, none) {
    try {
      const time = meant();
      node.classList.remove("bad");
      node.textContent = time === null ? none : `${showTime(time)} ${zoneName()} · ${showAgo(time)}`;
      return true;
    } catch (error) {
      node.classList.add("bad");
      node.textContent = error.message;
      return false;
    }
  }

  const check = () => [hint(whenHint, whenMeant, "as soon as you confirm"), hint(stopHint, stopMeant, "")].every(Boolean);
  when.oninput = stop.oninput = check;
  check();

  /** The args of the last run, or else of the first schedule that has any. */
  async function prefill() {
    if (!fields.size) return;
    const given = job.schedule.map((s) => s.args ?? s.start?.args ?? {}).find((found) => Object.keys(found).length) ?? {};
    let last = null;
    try {
      last = Object.values((await get("/search/runs", { job_id: job.job_id, limit: 1 }, { signal: page.left })).runs)[0] ?? null;
    } catch { /* then from the schedule alone */ }
    if (!page.isOpen()) return;
    const values = { ...given, ...last?.args };
    for (const [name, input] of fields) if (!input.value) input.value = values[name] ?? "";
    fill(from, last ? ["Args as of ", runLink(last.run_id), " ", stateMark(last.state)] : Object.keys(given).length ? "Args as of the first schedule" : null);
  }

  form.onsubmit = async (event) => {
    event.preventDefault();
    answer.replaceChildren();
    if (!check()) { (whenHint.classList.contains("bad") ? when : stop).focus(); return; }
    const number = Number(count.value);
    if (!Number.isInteger(number) || number < 1 || number > 10_000) { fill(answer, el("span", { class: "wrong" }, "How many: from 1 to 10,000")); count.focus(); return; }
    const values = Object.fromEntries([...fields].map(([name, input]) => [name, input.value]));
    const blank = Object.keys(values).filter((name) => values[name] === "");
    const [start, end] = [whenMeant(), stopMeant()];
    const made = await ask({
      question: `Schedule ${number === 1 ? "a run" : plural(number, "run")} of ${job.job_id}?`,
      detail: facts([
        ...Object.entries(values).map(([name, value]) => [name, value === "" ? el("span", { class: "soft" }, "(empty)") : el("span", { class: "mono" }, value)]),
        ["when", start === null ? "now" : `${showTime(start)} ${zoneName()}`],
        ...(end === null ? [] : [["stop", `${showTime(end)} ${zoneName()}`]]),
        ...(blank.length ? [["note", `${blank.join(", ")} ${blank.length === 1 ? "is" : "are"} empty`]] : []),
      ]),
      verb: "Schedule",
      act: () => post(`/runs?count=${number}`, { job_id: job.job_id, args: values,
        times: { schedule: start === null ? "now" : new Date(start).toISOString(), ...(end === null ? {} : { stop: new Date(end).toISOString() }) } }),
    });
    if (!made) return;
    const ids = Object.keys(made.runs);
    fill(answer, "scheduled ", ids.slice(0, 3).map((id, n) => [n ? ", " : "", runLink(id)]), ids.length > 3 ? ` and ${ids.length - 3} more` : "");
  };

  prefill();
  return {
    box,
    open() {
      // Where there is one column only, the form would stand below all runs.
      const columns = document.querySelector("main .job-columns");
      if (window.matchMedia("(max-width: 68rem)").matches) columns.before(box);
      box.hidden = false;
      box.scrollIntoView({ block: "nearest" });
      (fields.values().next().value ?? when).focus();
    },
  };
}
