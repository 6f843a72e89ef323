// The list of runs: page by page from the server, repeats grouped, kept current without jumping.
//
// A run that is shown and changes is drawn again where it stands. What else changes is asked of the server, which
// alone judges searches: at the top of the page it appears there; further down it waits behind a button.

import { get } from "../lib/api.js";
import { instanceOf } from "../lib/board.js";
import { el, fill, oneAtATime, plural } from "../lib/dom.js";
import { isAhead, searchQuery } from "../lib/filters.js";
import { Rows, table } from "../lib/tables.js";
import { FINISHED, elapsed } from "../lib/times.js";
import { cells, heads } from "./runs-rows.js";

const MOST = 3000; // rows; beyond, a later time or a narrower search
const HELD = 500; // newer runs that wait to be shown
const OVERLAP = 2000; // ms that are asked for again, so that none is missed for the sake of a clock
const OFTEN = 1500; // ms between two questions for what is new
const ONWARD = 12; // pages that are fetched by themselves until one is full

export class RunsList {
  /** `does`: {label(name), selected(), wrong(text)}. */
  constructor(page, does) {
    this.page = page;
    this.does = does;
    this.all = el("input", {
      type: "checkbox",
      "aria-label": "Select all runs that are shown",
      onclick: () => this.toggleAll(),
    });
    const { whole, body } = table(heads(this.all), { cls: "runs", caption: "Runs" });
    this.rows = new Rows(body, {
      key: (run) => run.run_id,
      cells: (run) => cells(this, run),
      cls: (run) => (run.fresh ? "fresh" : run.under ? "under" : ""),
    });
    this.more = el("div", { class: "more" });
    this.empty = el("p", { class: "empty", hidden: true });
    this.newer = el("button", { type: "button", class: "newer", hidden: true, onclick: () => this.showNewer() });
    this.box = el(
      "div",
      {},
      el("div", { class: "newer-place", role: "status" }, this.newer),
      el("section", { class: "flush" }, whole, this.empty, this.more),
    );
    this.picked = new Set();
    this.filters = null;
    this.refetch = oneAtATime(() => this.ask());
    page.subscribe({
      message: (message) => this.hear(message),
      frame: () => this.heard(),
      refresh: () => this.open(this.filters),
    });
    page.tick(() => this.tick());
  }

  /** Show what these filters let through, from the beginning. */
  open(filters) {
    this.filters = filters;
    this.round = (this.round ?? 0) + 1;
    this.runs = new Map(); // run ID -> run, in the order of the list
    this.held = new Map();
    this.expanded = new Set();
    this.next = null;
    this.horizon = null; // ms: up to here all changes are known
    this.dirty = this.unheard = false;
    this.picked.clear();
    this.does.selected();
    this.box.dataset.loaded = "no";
    return this.fetchPage();
  }

  async fetchPage() {
    const round = this.round;
    const { show } = this.filters;
    const before = this.runs.size;
    this.showMore("Searching …");
    try {
      for (let n = 0; n < ONWARD; n += 1) {
        const answer = await get(
          "/search/runs",
          { ...searchQuery(this.filters), limit: show, cursor: this.next },
          { signal: this.page.left },
        );
        if (round !== this.round) return;
        if (before === 0 && n === 0) this.begin(answer);
        for (const run of Object.values(answer.runs)) if (!this.runs.has(run.run_id)) this.runs.set(run.run_id, run);
        this.next = answer.next;
        this.does.wrong("");
        if (before === 0 || n % 4 === 3) this.draw();
        if (!this.next || this.visible().length - before >= show * 0.6 || this.runs.size - before >= MOST / 3) break;
      }
      this.box.dataset.loaded = "yes";
    } catch (error) {
      if (error.name === "AbortError" || round !== this.round) return;
      if (before === 0) this.runs.clear();
      this.does.wrong(error.message);
    }
    this.draw();
  }

  begin(answer) {
    this.horizon = Date.parse(answer.when);
    this.rows.show([]);
  }

  showMore(text = null) {
    const full = this.runs.size >= MOST;
    fill(
      this.more,
      this.hidden && !text ? el("span", { class: "soft counted" }, this.counted()) : null,
      text
        ? el("span", { class: "soft" }, text)
        : this.next && full
          ? el(
              "span",
              { class: "soft" },
              `${plural(this.runs.size, "run")} are shown. Narrow the search, or begin at an earlier time.`,
            )
          : this.next
            ? el(
                "button",
                { type: "button", onclick: () => this.fetchPage() },
                this.filters.asc ? "Later runs" : "Earlier runs",
              )
            : null,
    );
  }

  // -- drawing -------------------------------------------------------------------------------------

  /** The runs as they are shown: of repeats the first, unless they were asked for. */
  visible() {
    const runs = [...this.runs.values()];
    if (this.filters.ungroup) return runs;
    const groups = new Map();
    const shown = [];
    for (const run of runs) {
      const groupable = FINISHED.includes(run.state) || run.state === "scheduled";
      const key = groupable ? `${run.state === "scheduled"} ${instanceOf(run)}` : run.run_id;
      const group = groups.get(key);
      if (group) group.push(run);
      else {
        groups.set(key, [run]);
        shown.push(key);
      }
    }
    return shown.flatMap((key) => {
      const [first, ...others] = groups.get(key);
      this.note(first, others.length, key, false, this.next !== null);
      if (!this.expanded.has(key)) return [first];
      for (const run of others) this.note(run, 0, key, true);
      return [first, ...others];
    });
  }

  note(run, repeats, key, under, open = false) {
    if (run.repeats === repeats && run.under === under && run.open === open) return;
    const now = { ...run, repeats, group: key, under, open };
    Object.assign(run, now);
    this.rows.forgetOne(run.run_id);
  }

  /** What is hidden, of what: repeats are looked for among the runs that are here, not in all of the history. */
  counted() {
    const repeats = plural(this.hidden, "repeat");
    return this.next
      ? `${repeats} hidden, of the ${plural(this.runs.size, "run")} fetched so far. `
      : `${repeats} hidden, of all ${plural(this.runs.size, "run")} that fit. `;
  }

  draw() {
    const shown = this.visible();
    this.hidden = this.runs.size - shown.length;
    this.rows.show(shown);
    this.empty.hidden = shown.length > 0 || this.next !== null;
    fill(this.empty, isAhead(this.filters) ? "Nothing is scheduled that fits." : "No runs.");
    this.showMore();
    this.showPicked();
  }

  redraw() {
    this.rows.forget();
    this.draw();
  }

  expand(key) {
    if (!this.expanded.delete(key)) this.expanded.add(key);
    this.redraw();
  }

  tick() {
    for (const { node, item } of this.rows.rows.values()) {
      if (item?.times.running && !FINISHED.includes(item.state)) fill(node.querySelector(".el"), elapsed(item));
    }
    this.heard();
  }

  // -- keeping current -------------------------------------------------------------------------------

  hear(message) {
    if (message.type === "run_delete") {
      this.dirty = this.runs.delete(message.run_id) || this.dirty;
      return;
    }
    if (message.type !== "run_transition") return;
    const run = message.run_summary;
    if (this.runs.has(run.run_id)) {
      this.runs.set(run.run_id, run);
      this.dirty = true;
    } else if (isAhead(this.filters) ? run.state === "scheduled" : run.state !== "scheduled") this.unheard = true;
  }

  heard() {
    if (this.dirty) {
      this.dirty = false;
      this.draw();
    }
    // A list that ends at a given time, or goes on upwards, does not change at its top.
    if (!this.unheard || this.horizon === null || this.filters.time !== null || this.filters.asc) return;
    if (Date.now() - (this.asked ?? 0) < OFTEN || document.visibilityState !== "visible") return;
    this.unheard = false;
    this.asked = Date.now();
    this.refetch();
  }

  /** What has changed since. */
  async ask() {
    const round = this.round;
    try {
      if (isAhead(this.filters)) {
        if (this.atTop()) await this.reload(round);
        return;
      }
      const answer = await get(
        "/search/runs",
        {
          ...searchQuery(this.filters),
          order: "earliest",
          limit: HELD,
          cursor: `${(this.horizon - OVERLAP) / 1000}~0`,
        },
        { signal: this.page.left },
      );
      if (round !== this.round) return;
      this.horizon = Date.parse(answer.when);
      for (const run of Object.values(answer.runs)) if (!this.runs.has(run.run_id)) this.held.set(run.run_id, run);
      if (answer.next || this.held.size > HELD) {
        if (this.atTop()) await this.reload(round);
        else this.offer(`More than ${HELD}`);
      } else if (this.held.size && this.atTop()) this.takeHeld();
      else this.offer(this.held.size);
    } catch (error) {
      if (error.name !== "AbortError") this.unheard = true;
    }
  }

  async reload(round) {
    const answer = await get(
      "/search/runs",
      { ...searchQuery(this.filters), limit: this.filters.show },
      { signal: this.page.left },
    );
    if (round !== this.round) return;
    this.runs = new Map(Object.entries(answer.runs));
    this.horizon = Date.parse(answer.when);
    this.next = answer.next;
    this.held.clear();
    this.offer(0);
    this.draw();
  }

  /** Nobody reads further down, has chosen runs, or is about to. */
  atTop() {
    return window.scrollY < 80 && !this.picked.size && !document.querySelector(".menu[role=menu], dialog[open]");
  }

  offer(count) {
    this.newer.hidden = !count;
    if (count) fill(this.newer, `↑ ${typeof count === "number" ? plural(count, "newer run") : `${count} newer runs`}`);
  }

  takeHeld() {
    const fresh = [...this.held.values()].reverse();
    this.held.clear();
    for (const run of fresh) run.fresh = true;
    const kept = [...this.runs.values()];
    // A page that is left open for a week does not fill up: what leaves at the end can be fetched again.
    const most = Math.max(2 * this.filters.show, 200);
    if (kept.length + fresh.length > most + this.filters.show && this.atTop()) {
      kept.length = Math.max(0, most - fresh.length);
      const last = kept.at(-1);
      if (last) this.next = `${(Date.parse(last.times[last.state]) + 1) / 1000}~0`;
    }
    this.runs = new Map([...fresh, ...kept].map((run) => [run.run_id, run]));
    this.offer(0);
    this.draw();
  }

  showNewer() {
    if (this.newer.hidden) return;
    window.scrollTo(0, 0);
    if (this.held.size > HELD) this.open(this.filters);
    else this.takeHeld();
  }

  // -- choosing --------------------------------------------------------------------------------------

  shown() {
    return [...this.rows.rows.keys()];
  }

  toggleFocused() {
    const id = document.activeElement?.closest("tr")?.querySelector(".row-link")?.textContent;
    if (!id) return;
    if (!this.picked.delete(id)) this.picked.add(id);
    this.showPicked();
  }

  toggleAll() {
    const shown = this.shown();
    const all = shown.every((id) => this.picked.has(id));
    this.picked.clear();
    if (!all) for (const id of shown) this.picked.add(id);
    this.showPicked();
  }

  clearPicked() {
    this.picked.clear();
    this.showPicked();
  }

  showPicked() {
    const shown = this.shown();
    const count = shown.filter((id) => this.picked.has(id)).length;
    this.all.checked = count > 0 && count === shown.length;
    this.all.indeterminate = count > 0 && count < shown.length;
    for (const [id, { node }] of this.rows.rows) {
      const box = node.querySelector("input[type=checkbox]");
      if (box) box.checked = this.picked.has(id);
      node.toggleAttribute("data-picked", this.picked.has(id));
    }
    this.does.selected();
  }
}
