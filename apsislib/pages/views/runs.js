// Runs: all of the history, searched.

import { el } from "../lib/dom.js";
import { go } from "../lib/router.js";
import { runsList } from "../lib/runslist.js";
import { ACTIVE, FINISHED } from "../lib/times.js";

const SHOWS = {
  recent: { name: "Recent", states: [...ACTIVE, ...FINISHED] },
  active: { name: "Active", states: ACTIVE },
  failed: { name: "Failed", states: ["failure", "error"] },
  upcoming: { name: "Upcoming", states: ["scheduled"], order: "schedule" },
};

export function mount(main, page) {
  page.title("Runs");
  const show = SHOWS[page.query.get("show")] ? page.query.get("show") : "recent";
  const words = page.query.get("q") || "";
  const input = el("input", { type: "search", placeholder: "part of a job ID", value: words, "aria-label": "Part of a job ID" });
  const change = (name, value) => {
    const changed = new URLSearchParams(page.query);
    if (value && value !== "recent") changed.set(name, value); else changed.delete(name);
    go(`/runs${String(changed) ? `?${changed}` : ""}`);
  };
  input.onchange = () => change("q", input.value.trim());
  const choice = el("select", { "aria-label": "Which runs" },
    Object.entries(SHOWS).map(([id, { name }]) => el("option", { value: id, selected: id === show }, name)));
  choice.onchange = () => change("show", choice.value);
  main.append(
    el("h1", {}, "Runs"),
    el("div", { class: "bar" }, choice, el("div", { class: "grow" }, input)),
    runsList(page, { q: words, label: page.query.get("label"), states: SHOWS[show].states, order: SHOWS[show].order }),
  );
}
