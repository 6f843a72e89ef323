// Agents: who is there and takes work, what runs on each, what waits for one; and who came and went.

import { get } from "../lib/api.js";
import { el, fill, oneAtATime, plural, paced, svg } from "../lib/dom.js";
import { argsMark, jobLink, runLink, stateIcon, timeMark } from "../lib/marks.js";
import { Rows, table, td } from "../lib/tables.js";
import { showAgo } from "../lib/times.js";

const SHOWN = 4; // runs of an agent before they are counted only
const EVENTS = 50; // connections listed at first

const STATES = {
  live: ["takes work", [["circle", { cx: 8, cy: 8, r: 6.5 }], ["path", { d: "M5 8.2l2.2 2.2L11 6" }]]],
  draining: ["takes no new work, finishes what it has", [["circle", { cx: 8, cy: 8, r: 6.5 }], ["path", { d: "M8 4.5v6M5.5 8.5L8 11l2.5-2.5" }]]],
  lost: ["not connected", [["circle", { cx: 8, cy: 8, r: 6.5 }], ["path", { d: "M5.5 5.5l5 5M10.5 5.5l-5 5" }]]],
  done: ["has ended", [["circle", { cx: 8, cy: 8, r: 6.5 }], ["path", { d: "M5 8h6" }]]],
};
const EVENT = { connected: "live", idling: "draining", done: "done", lost: "lost", refused: "lost" };

function agentState(state, text = state) {
  const [title, shapes] = STATES[state];
  return el("span", { class: "agent-state", "data-agent": state, title },
    svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, shapes.map(([name, attributes]) => svg(name, attributes))), text);
}

export async function mount(main, page) {
  page.title("Agents");
  const count = el("span", { class: "soft", role: "status" });
  const groups = el("div", {});
  const history = table(["Time", "Agent", "Event", "Group", "From", "Why"]);
  const more = el("div", { class: "more" });
  const past = el("section", { class: "flush" }, history.whole, more);
  main.append(el("div", { class: "title" }, el("h1", {}, "Agents"), count), groups, el("h2", { class: "over" }, "Connections that came and went"), past);
  const events = new Rows(history.body, {
    key: (event) => event,
    cells: (event) => [td("time", timeMark(event.time, { full: true })), td("", event.hostname ?? el("span", { class: "soft" }, "–"), event.conn_id ? el("div", { class: "soft mono tiny" }, event.conn_id) : null),
      td("", agentState(EVENT[event.event], event.event === "idling" ? "draining" : event.event)), td("", event.group_id ?? ""), td("mono", event.address), td("wide soft", event.reason)],
  });
  const known = new Map();
  /** Events never change: one object each. */
  function remembered(event) {
    const text = JSON.stringify(event);
    if (!known.has(text)) known.set(text, event);
    return known.get(text);
  }
  const parts = new Map(); // group -> {box, rows, head}
  const expanded = new Set(); // conn_ids whose runs are all shown
  let all = false;
  let last = null;

  function part(name) {
    let mine = parts.get(name);
    if (mine) return mine;
    const { whole, body } = table(["Agent", "State", "Load", "Runs", "User", "Address", "Since"], { caption: `Agents of group ${name}` });
    const said = el("span", { class: "soft" });
    const section = el("section", { class: "flush" }, whole);
    const box = el("div", {}, el("div", { class: "head-row over" }, el("h2", {}, "Group ", el("span", { class: "mono" }, name)), said), section);
    const rows = new Rows(body, { key: (agent) => agent.conn_id, cells: agentCells });
    mine = { box, rows, said, section };
    parts.set(name, mine);
    return mine;
  }

  function agentCells(agent) {
    const most = Math.max(1, ...last.agents.map((other) => other.load));
    const bar = el("span", { class: "load-bar", "aria-hidden": "true" }, el("span"));
    bar.firstChild.style.setProperty("width", `${(agent.load / most) * 100}%`);
    const shown = expanded.has(agent.conn_id) ? agent.runs : agent.runs.slice(0, SHOWN);
    const left = agent.load - shown.length;
    return [
      td("", el("strong", {}, agent.hostname || "–"), el("div", { class: "soft mono tiny" }, agent.conn_id)),
      td("", agentState(agent.state)),
      td("", el("span", { class: "load" }, bar, plural(agent.load, "run"))),
      td("wide", el("div", { class: "agent-runs" }, shown.map((run) => el("span", {}, stateIcon(run.state), " ", runLink(run.run_id, "mono row-link"), " ", jobLink(run.job_id), " ", argsMark(run.args),
        el("span", { class: "soft" }, ` ${showAgo(run.since)}`)))),
      left > 0 ? (shown.length < agent.runs.length
        ? el("button", { type: "button", class: "quiet", onclick: () => { expanded.add(agent.conn_id); show(last); } }, `${left} more`)
        : el("span", { class: "soft" }, `and ${left} more`)) : null),
      td("", agent.username, agent.restricted_exe ? el("div", { class: "soft tiny" }, `only ${agent.restricted_exe}`) : null),
      td("mono", agent.address, agent.pid === null ? null : el("span", { class: "soft" }, ` pid ${agent.pid}`)),
      td("time", timeMark(agent.since), agent.connections > 1 ? el("div", { class: "soft tiny" }, `${agent.connections} connections`) : null),
    ];
  }

  /** The same object for what has not changed: then its row stays as it is, and with it a click under way. */
  const held = new Map();
  function unchanged(agent) {
    const text = JSON.stringify([agent, expanded.has(agent.conn_id)]);
    const old = held.get(agent.conn_id);
    if (old?.text === text) return old.agent;
    held.set(agent.conn_id, { text, agent });
    return agent;
  }

  function show(found) {
    last = found;
    const names = [...new Set([...found.agents.map((agent) => agent.group_id), ...Object.keys(found.unplaced)])].sort();
    const lost = found.agents.filter((agent) => agent.state === "lost").length;
    fill(count, `${plural(found.agents.length, "agent")}${lost ? `, ${lost} not connected` : ""}`);
    for (const [name, mine] of parts) if (!names.includes(name)) { mine.box.remove(); parts.delete(name); }
    for (const name of names) {
      const mine = part(name);
      const agents = found.agents.filter((agent) => agent.group_id === name).map(unchanged);
      const number = (state) => agents.filter((agent) => agent.state === state).length;
      const waiting = found.unplaced[name] ?? 0;
      fill(mine.said, ["live", "draining", "lost", "done"].filter(number).map((state) => `${number(state)} ${state}`).join(", ") || "no agent",
        ` · ${plural(agents.reduce((sum, agent) => sum + agent.load, 0), "run")}`,
        waiting ? el("strong", { class: "overdue" }, ` · ${plural(waiting, "run")} ${waiting === 1 ? "waits" : "wait"} for an agent`) : null);
      mine.section.hidden = agents.length === 0;
      mine.rows.show(agents);
    }
    fill(groups, names.map((name) => parts.get(name).box));
    if (!names.length) fill(groups, el("section", {}, el("p", { class: "empty" }, "No agent has connected yet. Start one with ", el("code", {}, "apsis agent"), ", or the server with ", el("code", {}, "--local-agent"), ".")));
    const numbered = found.history.map((event) => remembered(event));
    events.show(all ? numbered : numbered.slice(0, EVENTS));
    past.hidden = !numbered.length;
    fill(more, !all && numbered.length > EVENTS ? el("button", { type: "button", onclick: () => { all = true; show(last); } }, `All ${numbered.length}`) : null);
  }

  const load = oneAtATime(async () => {
    try {
      const found = await get("/agents", {}, { signal: page.left });
      if (page.isOpen()) show(found);
    } catch (error) {
      if (error.name === "AbortError" || !page.isOpen()) return;
      fill(groups, el("section", {}, el("p", {}, error.message)));
      past.hidden = true;
    }
  });
  const soon = paced(load, 700);
  page.subscribe({
    message(message) {
      if (message.type.startsWith("agent") || (message.type === "run_transition" && message.run_summary.state !== "scheduled")) soon();
    },
    refresh: load,
  });
  page.zoned(() => { if (last) { parts.clear(); fill(groups); show(last); } });
  await load();
}
