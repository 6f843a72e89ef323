// One run: how it is and what can be done, why it waits, what it printed, what happened to it, what it hangs
// together with, and how its like went before.

import { get } from "../lib/api.js";
import { durations, median, rate, showRate, showShortSeconds, ID, SECONDS, START, STATE } from "../lib/charts.js";
import { el, fill, plural, paced } from "../lib/dom.js";
import { drawGraph, showMiddle } from "../lib/graph.js";
import { Socket } from "../lib/live.js";
import { alarmMarks, argsMark, chips, facts, jobLink, runLink, section, stateIcon, stateMark, timeMark } from "../lib/marks.js";
import { buttons, mark, operate, verbsOf } from "../lib/operations.js";
import { programFacts } from "../lib/programs.js";
import { Rows, table, td } from "../lib/tables.js";
import { FINISHED, elapsed, showSpan } from "../lib/times.js";
import { outputView } from "./run-output.js";

const HISTORY = 60; // runs in the chart
const LISTED = 8; // and in the table below it

export async function mount(main, page) {
  const [runId] = page.params;
  page.title(runId);
  let run;
  try {
    run = (await get(`/runs/${encodeURIComponent(runId)}`, {}, { signal: page.left })).runs[runId];
  } catch (error) {
    if (!page.isOpen()) return;
    const more = error.status === 404 ? el("p", { class: "soft" }, "It may have been archived, or was scheduled once and taken back by a reload before it began.") : null;
    main.append(el("h1", {}, runId), el("section", { role: "alert" }, el("p", {}, error.message), more));
    return;
  }
  if (!page.isOpen()) return;

  const head = header(run, page);
  const verdict = verdictPart();
  const waits = waitsPart(run, page);
  const log = logPart();
  const graph = graphPart(run, page);
  const history = historyPart(run, page);
  const program = section("Program", run.program ? programFacts(run.program)
    : el("div", { class: "soft" }, "It could not be bound: see the log."));
  const meta = metaPart();
  const outputs = el("div", {});
  main.append(head.box, verdict.box, el("div", { class: "run-columns" },
    el("div", {}, waits.box, outputs, graph.box, log.box),
    el("div", {}, head.facts, history.box, program, meta.box)));

  let view = null;
  let shownOutput = "output";
  let known = {};

  function showOutputs() {
    const ids = Object.keys(known);
    const begun = run.times.running || ids.length || run.state === "starting";
    if (!ids.length && !begun) return;
    if (!view) {
      const id = known.output || !ids.length ? "output" : ids[0];
      shownOutput = id;
      view = outputView(page, runId, id, known[id]?.name ?? "output");
      fill(outputs, view.box);
    }
    const choice = outputs.querySelector("select.which");
    if (ids.length > 1 && (!choice || choice.options.length !== ids.length)) {
      const made = el("select", { class: "which", "aria-label": "Which output" }, ids.map((id) => el("option", { value: id, selected: id === shownOutput }, known[id].name || id)));
      made.onchange = () => {
        shownOutput = made.value;
        view = outputView(page, runId, shownOutput, known[shownOutput].name);
        fill(outputs, view.box);
        showOutputs();
      };
      choice?.remove();
      outputs.querySelector(".output-head h2").append(made);
    }
    if (known[shownOutput]) view.grown(known[shownOutput].length);
    if (FINISHED.includes(run.state)) view.ended();
  }

  function show(moved) {
    head.show(run);
    verdict.show(run);
    meta.show(run);
    if (moved) {
      waits.load(run);
      graph.load();
      history.load();
      showOutputs();
    }
  }

  const socket = new Socket(`/runs/${encodeURIComponent(runId)}/updates?init`, {
    message(data) {
      const part = JSON.parse(data);
      if (part.run_log) log.show(part.run_log);
      if (part.run_log_append) log.add(part.run_log_append);
      const moved = part.run && part.run.state !== run.state;
      if (part.run) run = { ...run, ...part.run };
      if (part.meta) run.meta = part.meta;
      if (part.run || part.meta) show(moved);
      if (part.outputs) { known = part.outputs; showOutputs(); }
      if (part.run_log_append && run.state === "waiting") waits.load(run);
    },
  });
  page.leave(() => socket.close());
  page.tick(() => head.tick(run));
  // What others do: a run that this one waits for, or a rerun of it.
  page.subscribe({
    message(message) {
      if (message.type !== "run_transition" || message.run_summary.run_id === runId) return;
      const other = message.run_summary;
      if (graph.holds(other)) graph.soon();
      if (other.job_id === run.job_id && FINISHED.includes(other.state)) history.soon();
      if (run.state === "waiting" && waits.about(other)) waits.load(run);
    },
    refresh() { graph.load(); history.load(); waits.load(run); },
  });
  show(true);
}

// -- head ----------------------------------------------------------------------------------------

function header(run, page) {
  const state = el("span", { class: "big" });
  const operations = el("div", { class: "buttons" });
  const times = el("div", {});
  let drawn = "";
  const box = el("div", { class: "title run-title" },
    el("h1", {}, el("span", { class: "mono" }, run.run_id), " ", jobLink(run.job_id)), argsMark(run.args), state, chips(run.labels), operations);
  const box2 = section("This run", times);

  function factsOf(now) {
    const names = { schedule: "scheduled for", scheduled: "made", stop: "to be stopped" };
    const rows = [];
    const add = (name, time) => time && rows.push([name, timeMark(time, { full: true })]);
    add(names.schedule, now.times.schedule);
    add("began to wait", now.times.waiting);
    add("started", now.times.running ?? now.times.starting);
    for (const end of FINISHED) add(end === "success" ? "succeeded" : end === "failure" ? "failed" : end === "error" ? "in error" : "skipped", now.times[end]);
    if (now.times.running) rows.push(["elapsed", el("span", { class: "elapsed" }, elapsed(now))]);
    if (now.times.stop) {
      const over = !FINISHED.includes(now.state) && Date.parse(now.times.stop) < Date.now();
      rows.push([names.stop, el("span", { class: over ? "overdue" : "" }, timeMark(now.times.stop, { full: true }), over ? " (overdue)" : "")]);
    }
    if (now.rerun_of) rows.push(["rerun of", runLink(now.rerun_of)]);
    const where = now.meta?.program?.procstar_agent ?? now.meta?.program?.agent ?? null;
    const proc = now.meta?.program?.procstar_conn ?? null;
    if (where?.hostname || proc?.hostname) rows.push(["agent", where?.hostname ?? proc.hostname]);
    return facts(rows);
  }

  return {
    box,
    facts: box2,
    show(now) {
      page.title(`${now.run_id} ${now.state} · ${now.job_id}`);
      fill(state, stateMark(now.state), alarmMarks(now));
      // Buttons are made anew only when others are called for: focus, and a list that is open, stay.
      const called = `${now.state} ${verbsOf(now)}`;
      if (drawn !== called) { drawn = called; fill(operations, buttons(now)); }
      fill(times, factsOf(now));
    },
    tick(now) {
      const node = times.querySelector(".elapsed");
      if (node && !FINISHED.includes(now.state)) node.textContent = elapsed(now);
    },
  };
}

// -- the truth about a run that was given up ---------------------------------------------------------

function verdictPart() {
  const box = el("section", { class: "given-up", "aria-label": "How its program ended", hidden: true });
  let drawn = "";
  return {
    box,
    show(run) {
      const { state, message, time } = run.meta?.late_verdict ?? {};
      const now = `${state} ${run.state}`;
      if (!FINISHED.includes(state) || now === drawn) return;
      drawn = now;
      box.hidden = false;
      const ended = run.meta.program?.times?.stop;
      fill(box,
        el("p", {}, "This run was given up while its agent was away. The agent came back at ", timeMark(time * 1000, { full: true }),
          " and told how its program really ended: ", stateMark(state), message ? ` (${message})` : "",
          ended ? [", at ", timeMark(ended, { full: true })] : null, "."),
        el("p", {}, state === run.state ? `The run is ${run.state} as well: nothing is left to be done.`
          : [`It stays ${run.state}, as other runs may have acted on that. If nothing did, or it does not matter, mark it: its actions for ${state} are done then, and what depends on it is judged anew. `,
            state === "success" ? "A rerun does the work a second time." : "Or run it again."]),
        state === run.state ? null : el("div", { class: "buttons" },
          el("button", { type: "button", class: "primary", onclick: () => mark(run, state) }, `Mark as ${state}`),
          el("button", { type: "button", onclick: () => operate(run, "rerun") }, "Rerun")));
    },
  };
}

// -- why it waits ----------------------------------------------------------------------------------

function waitsPart(first, page) {
  const list = el("ul", { class: "waits" });
  const box = section("Conditions", list);
  box.hidden = true;
  let wanted = [];

  function draw(rows, run) {
    const waiting = run.state === "waiting";
    box.querySelector("h2").textContent = waiting ? "Why it waits" : "Conditions";
    box.hidden = !rows.length;
    fill(list, rows.map((row) => {
      const told = waiting && row.holds !== undefined;
      return el("li", { class: told ? (row.holds ? "holds" : "lacks") : "" },
        told ? el("span", { class: "mark", "aria-hidden": "true" }, row.holds ? "✓" : "…") : el("span", { class: "mark", "aria-hidden": "true" }, "·"),
        el("div", {},
          el("div", {}, conditionText(row, run), told ? el("span", { class: "chip" }, row.holds ? "holds" : "not yet") : null),
          told && !row.holds && row.reason ? el("div", { class: "soft" }, row.reason, row.since ? ` · for ${showSpan((Date.now() - Date.parse(row.since)) / 1000)}` : "") : null,
          row.runs?.length ? el("div", { class: "wait-runs" }, row.runs.map((other) => el("span", {}, stateIcon(other.state), " ", runLink(other.run_id), ` ${other.state}`))) : null));
    }));
  }

  return {
    box,
    about: (other) => wanted.some(([job, args]) => job === other.job_id && args === JSON.stringify(other.args)),
    async load(run) {
      const conds = run.conds ?? [];
      wanted = conds.filter((cond) => cond.type === "dependency").map((cond) => [cond.job_id, JSON.stringify(cond.args)]);
      let rows = conds.map((cond) => ({ condition: cond.str, cond }));
      if (run.state === "waiting") {
        try {
          const found = (await get(`/runs/${run.run_id}/waiting`, {}, { signal: page.left })).waiting;
          if (found.length) rows = found.map((row, n) => ({ ...row, cond: conds[n] }));
        } catch (error) {
          if (error.name === "AbortError") return;
        }
      }
      if (page.isOpen()) draw(rows, run);
    },
  };
}

/** The sentence of a condition, the job in it as a link. */
function conditionText(row) {
  const { cond, condition } = row;
  const at = cond?.job_id ? condition.indexOf(cond.job_id) : -1;
  if (at < 0) return condition;
  return [condition.slice(0, at), jobLink(cond.job_id), condition.slice(at + cond.job_id.length)];
}

// -- log, metadata -----------------------------------------------------------------------------------

function logPart() {
  const { whole, body } = table(["Time", "Message"], { cls: "log" });
  const row = ({ timestamp, message }) => el("tr", {}, td("time soft", timeMark(timestamp, { full: true })), td("wide", message));
  return {
    box: section("Log", whole),
    show: (lines) => fill(body, lines.map(row)),
    add: (line) => body.append(row(line)),
  };
}

function metaPart() {
  const inner = el("div", {});
  const details = el("details", {}, el("summary", {}, "Metadata"), inner);
  let now = null;
  const draw = () => {
    if (!details.open || !now) return;
    const found = now.meta?.program ?? {};
    fill(inner, Object.keys(found).length ? nested(found) : el("div", { class: "soft" }, "none yet"));
  };
  details.addEventListener("toggle", draw);
  return { box: el("section", { class: "fold" }, details), show(run) { now = run; draw(); } };
}

/** An object of any depth as names and values. */
function nested(value) {
  return facts(Object.entries(value).map(([name, inner]) => [name,
    inner !== null && typeof inner === "object" && !Array.isArray(inner) && Object.keys(inner).length
      ? nested(inner)
      : el("span", { class: "mono" }, typeof inner === "string" ? inner : JSON.stringify(inner))]));
}

// -- what it hangs together with -----------------------------------------------------------------------

function graphPart(run, page) {
  const inner = el("div", { class: "scroll graph-scroll", tabIndex: 0, role: "region", "aria-label": "Dependencies" });
  const note = el("p", { class: "soft small" });
  const box = section("Dependencies", inner, note);
  box.hidden = true;
  let keys = new Set();

  async function load() {
    let found;
    try {
      found = await get(`/runs/${run.run_id}/graph`, {}, { signal: page.left });
    } catch (error) {
      return;
    }
    if (!page.isOpen()) return;
    keys = new Set(found.nodes.map((node) => node.job_id));
    const nodes = found.nodes.map((node) => {
      const mine = node.key === found.middle;
      const shown = mine ? node.runs.find((other) => other.run_id === run.run_id) ?? node.runs[0] : node.runs[0];
      const args = Object.entries(node.args).map(([name, value]) => `${name}=${value}`).join(" ");
      const more = node.runs.length > 1 && !mine ? ` +${node.runs.length - 1}` : "";
      return {
        key: node.key,
        href: mine ? null : shown ? `/runs/${shown.run_id}` : `/job/${node.job_id.split("/").map(encodeURIComponent).join("/")}`,
        title: `${node.job_id}${args ? ` (${args})` : ""}: ${shown ? `${shown.run_id} ${shown.state}` : "no run yet"}`,
        lines: [node.job_id, shown ? `${shown.run_id} ${shown.state}${more}` : "no run yet"],
        state: shown?.state,
        soft: !shown,
      };
    });
    const made = [
      found.made_by ? el("span", {}, "Made by an action of ", runLink(found.made_by), ". ") : null,
      found.made.length ? el("span", {}, "Its actions made ", found.made.map((other, n) => [n ? ", " : "", runLink(other.run_id)]), ". ") : null,
      found.more ? "Not all that hang together with it are shown." : null,
    ].filter(Boolean);
    box.hidden = nodes.length < 2 && !made.length;
    inner.hidden = nodes.length < 2;
    fill(note, made);
    note.hidden = !made.length;
    if (nodes.length > 1) fill(inner, drawGraph({ nodes, edges: found.edges, middle: found.middle, label: "What this run hangs on, and what hangs on it" }));
    showMiddle(inner);
  }

  return { box, load, soon: paced(load, 800), holds: (other) => keys.has(other.job_id) };
}

// -- how its like went -----------------------------------------------------------------------------------

function historyPart(run, page) {
  const chart = el("div", {});
  const said = el("p", { class: "soft small" });
  const { whole, body } = table(["Run", "State", "Start", { text: "Elapsed", cls: "num" }]);
  const rows = new Rows(body, {
    key: (past) => past[ID],
    cls: (past) => (past[ID] === run.run_id ? "picked" : ""),
    cells: (past) => [td("", past[ID] === run.run_id ? el("span", { class: "mono" }, past[ID]) : runLink(past[ID], "mono row-link")), td("", stateMark(past[STATE])),
      td("time", timeMark(past[START])), td("num", past[SECONDS] === null ? "" : showShortSeconds(past[SECONDS]))],
  });
  const all = el("a", {}, "");
  const choice = el("div", { class: "choice small-choice", role: "group", "aria-label": "Whose history" });
  const box = el("section", {}, el("div", { class: "head-row" }, el("h2", {}, "History"), choice), said, chart, whole, el("p", { class: "small" }, all));
  const hasArgs = Object.keys(run.args).length > 0;
  let mine = null; // whether only runs of these args are shown; null: those, if there are several

  function button(text, value) {
    return el("button", { type: "button", "aria-pressed": String(mine === value), onclick: () => { mine = value; load(); } }, text);
  }

  const ask = (only) => get("/history", { job_id: run.job_id, args: only ? JSON.stringify(run.args) : null, limit: HISTORY }, { signal: page.left });

  async function load() {
    let found;
    try {
      found = (await ask(mine !== false)).runs;
      if (mine === null) {
        // A date among the args makes each run the only one of its kind: then those of the job say more.
        mine = !hasArgs || found.length > 1;
        if (!mine) found = (await ask(false)).runs;
      }
    } catch {
      return;
    }
    if (!page.isOpen()) return;
    fill(choice, hasArgs ? [button("These args", true), button("Any args", false)] : null);
    const took = found.filter((past) => past[SECONDS] !== null && past[STATE] === "success").map((past) => past[SECONDS]);
    fill(said, !found.length ? "No run has ended yet."
      : [`Last ${plural(found.length, "run")} · ${showRate(rate(found))} succeeded`, took.length ? ` · median ${showShortSeconds(median(took))}` : ""]);
    fill(chart, found.length > 1 ? durations(found, { current: run.run_id, label: "Durations of past runs, the newest at the right" }) : null);
    const at = found.findIndex((past) => past[ID] === run.run_id);
    const from = Math.max(0, Math.min(at - LISTED / 2, found.length - LISTED));
    rows.show(found.slice(from, from + LISTED));
    whole.hidden = found.length === 0;
    all.textContent = mine && hasArgs ? "All runs of this job and args" : "All runs of this job";
    all.href = `/runs?${new URLSearchParams({ q: instanceQuery(run, mine) })}`;
  }

  return { box, load, soon: paced(load, 800) };
}

function instanceQuery(run, args) {
  const quote = (text) => (/[\s"!]/.test(text) || text === "" ? `"${text.replaceAll('"', "")}"` : text);
  return [quote(run.job_id), ...Object.entries(args ? run.args : {}).map(([name, value]) => quote(`${name}=${value}`))].join(" ");
}
