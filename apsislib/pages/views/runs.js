// Runs: all of the history, searched. All that is chosen here stands in the address.

import { API, queryText } from "../lib/api.js";
import { LANGUAGE, searchField } from "../lib/combobox.js";
import { notice } from "../lib/dialogs.js";
import { byId, el, fill } from "../lib/dom.js";
import { SHOWN, STATES, isAhead, read, readTime, searchQuery, write } from "../lib/filters.js";
import { bind } from "../lib/keys.js";
import { stateIcon } from "../lib/marks.js";
import { go } from "../lib/router.js";
import { showTime } from "../lib/times.js";
import { bulkBar } from "./runs-bulk.js";
import { RunsList } from "./runs-list.js";

const PRESETS = [
  ["All", []],
  ["Active", ["waiting", "starting", "running", "stopping"]],
  ["Failed", ["failure", "error"]],
  ["Scheduled", ["scheduled"]],
];
const same = (a, b) => a.length === b.length && a.every((one) => b.includes(one));

export function mount(main, page) {
  let filters = read(page.query);
  const change = (changes) => {
    const text = write({ ...filters, ...changes });
    go(`/runs${text ? `?${text}` : ""}`);
  };
  const list = new RunsList(page, {
    label: (label) => {
      if (!filters.labels.includes(label)) change({ labels: [...filters.labels, label] });
    },
    selected: () => bulk.show(),
    wrong: (text) => {
      fill(wrong, text);
      wrong.hidden = !text;
      field.input.setAttribute("aria-invalid", String(Boolean(text)));
    },
  });
  const bulk = bulkBar(page, list);
  const field = searchField({
    label: "Search runs",
    placeholder: "Search: words of a job, date=2031, state:fail, label:etl, since:2h …",
    apply: (q) => change({ q }),
  });
  const wrong = el("p", { class: "wrong", role: "alert", hidden: true });
  const controls = toolbar(change);
  const chips = el("div", { class: "filters" });
  main.append(
    el(
      "div",
      { class: "runs-head" },
      el("h1", {}, "Runs"),
      field.box,
      el(
        "button",
        { type: "button", class: "icon", "aria-label": "How to search", title: "How to search", onclick: showLanguage },
        "?",
      ),
    ),
    wrong,
    controls.box,
    chips,
    list.box,
    bulk.box,
  );

  function show() {
    page.title(isAhead(filters) ? "Scheduled runs" : "Runs");
    field.set(filters.q);
    controls.show(filters);
    showChips(chips, filters, change);
    list.open(filters);
  }
  page.requery((query) => {
    filters = read(query);
    show();
  });
  page.zoned(() => {
    controls.show(filters);
    list.redraw();
  });
  page.leave(bind("x", "Select the run of the row", () => list.toggleFocused()));
  page.leave(bind("a", "Select all runs that are shown, or none", () => list.toggleAll()));
  page.leave(bind("n", "Show newer runs", () => list.showNewer()));
  show();
}

function toolbar(change) {
  let filters = null;
  const presets = el(
    "span",
    { class: "segments", role: "group", "aria-label": "Kinds of runs" },
    PRESETS.map(([name, states]) =>
      el(
        "button",
        { type: "button", onclick: () => change({ states, time: states[0] === "scheduled" ? null : filters.time }) },
        name,
      ),
    ),
  );
  const boxes = STATES.map((state) => {
    const box = el("input", { type: "checkbox", value: state });
    box.onchange = () => change({ states: STATES.filter((one, n) => boxes[n].querySelector("input").checked) });
    return el("label", { class: "check" }, box, stateIcon(state), state);
  });
  const summary = el("summary", {}, "States");
  const states = el("details", { class: "drop" }, summary, el("div", { class: "menu" }, boxes));
  states.addEventListener("focusout", (event) => {
    if (!states.contains(event.relatedTarget)) states.open = false;
  });
  states.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      states.open = false;
      summary.focus();
    }
  });

  const time = el("input", {
    type: "text",
    class: "time",
    autocomplete: "off",
    "aria-label": "From this time",
    placeholder: "now",
    title: "now, 07:00, yesterday 23:00, 2031-05-06 07:00, 2h ago",
  });
  const setTime = () => {
    try {
      const next = readTime(time.value);
      time.removeAttribute("aria-invalid");
      if (next !== filters.time && showTime(next) !== showTime(filters.time)) change({ time: next });
    } catch (error) {
      time.setAttribute("aria-invalid", "true");
      notice(error.message);
    }
  };
  time.onchange = setTime;
  const now = el("button", { type: "button", onclick: () => change({ time: null }) }, "Now");
  const order = el("button", { type: "button", onclick: () => change({ asc: !filters.asc }) });
  const group = el("input", { type: "checkbox" });
  group.onchange = () => change({ ungroup: !group.checked });
  const rows = el(
    "select",
    { "aria-label": "Rows of a page" },
    SHOWN.map((count) => el("option", { value: String(count) }, `${count} rows`)),
  );
  rows.onchange = () => change({ show: Number(rows.value) });
  const exports = ["csv", "json"].map((format) =>
    el("a", { class: "button", download: "", "data-format": format }, format.toUpperCase()),
  );
  const history = el("span", { class: "bar" }, el("label", { class: "inline" }, "from", time), now, order);
  const box = el(
    "div",
    { class: "bar runs-bar" },
    presets,
    states,
    history,
    el("label", { class: "check", title: "Of runs of the same job and args, only the latest" }, group, "hide repeats"),
    rows,
    el("span", { class: "bar right" }, el("span", { class: "soft" }, "Export"), exports),
  );
  return {
    box,
    show(next) {
      filters = next;
      for (const [n, [, wanted]] of PRESETS.entries())
        presets.children[n].setAttribute("aria-pressed", String(same(filters.states, wanted)));
      for (const [n, state] of STATES.entries())
        boxes[n].querySelector("input").checked = filters.states.includes(state);
      const named = PRESETS.some(([, wanted]) => same(filters.states, wanted));
      fill(summary, named ? "States" : filters.states.join(", "));
      time.value = filters.time === null ? "" : showTime(filters.time);
      now.setAttribute("aria-pressed", String(filters.time === null));
      fill(order, filters.asc ? "↑ oldest first" : "↓ newest first");
      order.setAttribute(
        "aria-label",
        filters.asc ? "Oldest first: show newest first" : "Newest first: show oldest first",
      );
      group.checked = !filters.ungroup;
      rows.value = String(filters.show);
      history.hidden = isAhead(filters);
      const query = searchQuery(filters);
      for (const link of exports) {
        link.hidden = isAhead(filters);
        link.href = `${API}/export/runs?${queryText({ ...query, format: link.dataset.format })}`;
        link.ariaLabel = `Export as ${link.dataset.format.toUpperCase()}`;
      }
      box.lastChild.hidden = isAhead(filters);
    },
  };
}

function showChips(box, filters, change) {
  const chip = (text, changes) =>
    el(
      "span",
      { class: "chip filter" },
      text,
      el("button", { type: "button", "aria-label": `Remove ${text}`, onclick: () => change(changes) }, "×"),
    );
  const without = (name, value) => ({ [name]: filters[name].filter((one) => one !== value) });
  fill(
    box,
    filters.path ? chip(`in ${filters.path}/`, { path: "" }) : null,
    filters.keywords.map((one) => chip(`job has ${one}`, without("keywords", one))),
    filters.labels.map((one) => chip(`label ${one}`, without("labels", one))),
    filters.args.map((one) => chip(`arg ${one}`, without("args", one))),
  );
}

function showLanguage() {
  const dialog = byId("help");
  dialog.replaceChildren(
    el("h2", { id: "help-title" }, "How to search"),
    el("p", { class: "soft" }, "A run is found if all words of the search fit."),
    el(
      "table",
      { class: "keys" },
      el(
        "tbody",
        {},
        LANGUAGE.map(([word, text]) => el("tr", {}, el("td", { class: "mono" }, word), el("td", {}, text))),
      ),
    ),
    el("form", { method: "dialog", class: "buttons" }, el("button", { class: "primary" }, "Close")),
  );
  dialog.showModal();
}
