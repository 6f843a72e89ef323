// Today: the operator's board. What needs someone stands on top, the day as a timeline below, and beside it what
// runs, waits and comes next.

import { board, late, numberOf, running, waiting, watch } from "../lib/board.js";
import { menuButton } from "../lib/dialogs.js";
import { el, fill, plural } from "../lib/dom.js";
import { alarmMarks, argsMark, jobHref, jobText, stateIcon, timeMark } from "../lib/marks.js";
import { menuItems } from "../lib/operations.js";
import { Rows } from "../lib/tables.js";
import { FINISHED, elapsed, runSpan, showAgo, showDate, showSeconds, showShort, showSpan } from "../lib/times.js";
import { timeline } from "./today-timeline.js";

const SHOWN = 6; // failures, or late runs, before "all of them"
const LISTED = 60; // runs of a list beside the timeline

const byStart = (a, b) => (runSpan(a)[0] ?? Infinity) - (runSpan(b)[0] ?? Infinity);
const byNumber = (a, b) => numberOf(a) - numberOf(b);
const href = (run) => `/runs/${run.run_id}`;
const menu = (run) => menuButton(`Operations on ${run.run_id}`, () => menuItems(run));

export function mount(main, page) {
  page.title("Today");
  const date = el("span", { class: "soft" });
  const tiles = el("ul", { class: "tiles" });
  const ails = el("div", { class: "ails", role: "status" });
  const top = el("section", { class: "attention flush", hidden: true, "aria-label": "What needs attention" });
  const side = el("div", { class: "side" });
  const chart = timeline(page);
  main.append(
    el("div", { class: "today-head" }, el("h1", {}, "Today ", date), tiles),
    ails,
    el("div", { class: "today" }, el("div", { class: "main" }, top, chart.box), side),
  );

  const failures = new Rows(el("ul", { class: "lines" }), {
    key: (one) => one.run_id ?? one.conn_id,
    tag: "li",
    cells: (one) => (one.conn_id ? agentCells(one) : problemCells(one)),
  });
  const more = el("a", { class: "all" });
  top.append(failures.body, more);

  const lists = [
    list(
      "Running",
      "Nothing is running.",
      running,
      () => board.unlisted.running,
      byStart,
      runningCells,
      "/runs?states=starting,running,stopping",
    ),
    list(
      "Waiting",
      "Nothing is waiting.",
      waiting,
      () => board.unlisted.waiting,
      byNumber,
      waitingCells,
      "/runs?states=waiting",
    ),
    list(
      "Next starts",
      "Nothing is scheduled.",
      () => board.next,
      () => 0,
      null,
      nextCells,
      "/runs?states=scheduled&order=schedule",
    ),
  ];
  side.append(...lists.map((one) => one.box));

  function show() {
    fill(date, showDate(new Date()));
    showTiles(tiles);
    fill(
      ails,
      board.ailments.map((text) => el("p", {}, text)),
    );
    const lost = board.agents.lost.slice(0, SHOWN);
    const bad = [...late(), ...[...board.failing.values()].reverse()];
    const all = bad.length + board.unlisted.failing;
    top.hidden = !all && !lost.length;
    failures.show([...lost, ...bad.slice(0, SHOWN)]);
    more.hidden = all <= SHOWN;
    more.href = "/runs?states=failure,error";
    fill(more, `All ${plural(all, "problem")}`);
    for (const one of lists) one.show();
    tick();
  }

  function tick() {
    for (const one of lists) one.tick();
    chart.tick();
  }
  page.leave(watch(show));
  page.tick(tick);
  page.zoned(() => {
    for (const one of [failures, ...lists]) one.forget();
    show();
    chart.redraw();
  });
  page.requery((query) => chart.requery(query));
  if (board.loaded) show();
}

function showTiles(tiles) {
  const { agents, unlisted } = board;
  const alarmed = late().length;
  const tile = (count, words, { state = "", href: to } = {}) =>
    el(
      "li",
      {},
      el(
        "a",
        { class: "tile", href: to, "data-state": count ? state : "none" },
        el("strong", {}, count.toLocaleString("en")),
        ` ${words}`,
      ),
    );
  const bad = board.failing.size + unlisted.failing;
  fill(
    tiles,
    tile(bad, "failing", { state: "failure", href: "/runs?states=failure,error" }),
    tile(alarmed, "late", { state: "failure", href: "/runs?q=alarm:late,missed,long" }),
    tile(running().length + unlisted.running, "running", {
      state: "running",
      href: "/runs?states=starting,running,stopping",
    }),
    tile(waiting().length + unlisted.waiting, "waiting", { state: "waiting", href: "/runs?states=waiting" }),
    tile(agents.live, agents.live === 1 ? "agent" : "agents", { href: "/agents" }),
    agents.lost.length ? tile(agents.lost.length, "lost", { state: "failure", href: "/agents" }) : null,
    agents.draining ? tile(agents.draining, "draining", { href: "/agents" }) : null,
  );
}

function problemCells(run) {
  const over = FINISHED.includes(run.state);
  return [
    stateIcon(run.state),
    el("a", { class: "row-link job", href: href(run) }, jobText(run.job_id)),
    sub(
      argsMark(run.args),
      el("span", { class: "what", "data-state": run.state }, run.state),
      alarmMarks(run),
      el("span", { class: "mono" }, run.run_id),
    ),
    el(
      "span",
      { class: "when soft num" },
      timeMark(over ? run.times[run.state] : (run.times.schedule ?? run.times.running)),
    ),
    menu(run),
  ];
}

function agentCells(agent) {
  return [
    stateIcon("error"),
    el("a", { class: "row-link job", href: "/agents" }, agent.hostname || agent.conn_id),
    sub(el("span", {}, `group ${agent.group_id}`), el("span", { class: "what" }, "agent is away")),
    el("span", { class: "when soft num" }, agent.since ? ["since ", timeMark(agent.since)] : ""),
  ];
}

/** A list beside the timeline. */
function list(name, none, items, unlisted, order, cells, all) {
  const body = el("ul", { class: "lines" });
  const rows = new Rows(body, {
    key: (item) => item.run_id ?? `${item.job_id} ${item.time} ${JSON.stringify(item.args)}`,
    tag: "li",
    cells,
  });
  const empty = el("p", { class: "empty" }, none);
  const count = el("span", { class: "soft" });
  const head = el("h2", {}, el("a", { href: all }, name), " ", count);
  return {
    box: el("section", { class: "flush list", "aria-label": name }, head, body, empty),
    show() {
      const found = order ? items().sort(order) : items();
      rows.show(found.slice(0, LISTED));
      const number = found.length + unlisted();
      fill(count, number ? number.toLocaleString("en") : "");
      empty.hidden = number > 0;
      body.hidden = !number;
    },
    forget() {
      rows.forget();
    },
    tick() {
      for (const node of body.querySelectorAll("[data-tick]")) node.onTick?.();
    },
  };
}

function ticking(cls, text) {
  const node = el("span", { class: cls, "data-tick": "" });
  node.onTick = () => {
    const now = text();
    if (node.textContent !== now) node.textContent = now;
  };
  node.onTick();
  return node;
}

function runningCells(run) {
  const usual = board.typical[run.job_id];
  const bar = el("span", { class: "usual", "data-tick": "", "aria-hidden": "true" }, el("i"));
  const part = () => {
    const [start, now] = runSpan(run);
    return start === null || !usual ? 0 : (now - start) / 1000 / usual;
  };
  bar.onTick = () => {
    bar.firstChild.style.setProperty("width", `${Math.min(100, part() * 100).toFixed(1)}%`);
    bar.dataset.over = part() > 1.5 ? "yes" : "no";
  };
  bar.onTick();
  return [
    stateIcon(run.state),
    el("a", { class: "row-link job", href: href(run) }, jobText(run.job_id)),
    ticking("when num", () => elapsed(run) || run.state),
    menu(run),
    usual ? bar : null,
    sub(
      argsMark(run.args),
      run.state === "running" ? null : el("span", {}, run.state),
      alarmMarks(run),
      usual
        ? ticking("", () =>
            part() > 1.5
              ? `${part().toFixed(1)} times the usual ${showSeconds(usual)}`
              : `usually ${showSeconds(usual)}`,
          )
        : null,
    ),
  ];
}

/** The second line of an item. */
const sub = (...parts) => el("span", { class: "sub" }, parts);

function waitingCells(run) {
  const why = board.why[run.run_id] ?? [];
  return [
    stateIcon(run.state),
    el("a", { class: "row-link job", href: href(run) }, jobText(run.job_id)),
    ticking("when num", () => (run.times.waiting ? showSpan((Date.now() - Date.parse(run.times.waiting)) / 1000) : "")),
    menu(run),
    sub(argsMark(run.args), alarmMarks(run)),
    ...why.map((one) => sub(el("span", { title: one.condition }, one.reason ?? one.condition))),
  ];
}

function nextCells(start) {
  const usual = board.typical[start.job_id];
  return [
    el("span", { class: "at num", title: showAgo(start.time) }, showShort(start.time)),
    el("a", { class: "row-link job", href: start.run_id ? href(start) : jobHref(start.job_id) }, jobText(start.job_id)),
    el("span"),
    start.run_id
      ? menuButton(`Operations on ${start.run_id}`, () => menuItems({ ...start, state: "scheduled" }))
      : el("span"),
    sub(
      ticking("", () => (Date.parse(start.time) > Date.now() ? showAgo(start.time) : "now")),
      argsMark(start.args),
      usual ? el("span", {}, `usually ${showSeconds(usual)}`) : null,
    ),
  ];
}
