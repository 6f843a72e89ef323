// A row of the list of runs.

import { menuButton } from "../lib/dialogs.js";
import { el } from "../lib/dom.js";
import { alarmMarks, argsMark, jobLink, runLink, stateMark, timeMark } from "../lib/marks.js";
import { menuItems } from "../lib/operations.js";
import { td } from "../lib/tables.js";
import { FINISHED, elapsed } from "../lib/times.js";

/** The heads of the columns; `all` is the box that selects every row. */
export function heads(all) {
  return [
    el("th", { scope: "col", class: "pick" }, all),
    "Run",
    "State",
    "Job",
    "Args",
    "Schedule",
    "Start",
    { text: "Elapsed", cls: "num" },
    { text: "", label: "Repeats" },
    { text: "", label: "Operations" },
  ];
}

/** The cells of a run in a list of runs. */
export function cells(list, run) {
  const box = el("input", {
    type: "checkbox",
    checked: list.picked.has(run.run_id),
    "aria-label": `Select ${run.run_id}`,
  });
  box.onchange = () => {
    if (box.checked) list.picked.add(run.run_id);
    else list.picked.delete(run.run_id);
    list.showPicked();
  };
  const { stop } = run.times;
  const over = stop && !FINISHED.includes(run.state) && Date.parse(stop) < Date.now();
  return [
    td("pick", box),
    td("id", runLink(run.run_id, "mono row-link")),
    td("st", stateMark(run.state), alarmMarks(run)),
    td(
      "wide jb",
      jobLink(run.job_id),
      run.labels.map((label) =>
        el(
          "button",
          {
            type: "button",
            class: "chip",
            title: `Only runs with label ${label}`,
            onclick: () => list.does.label(label),
          },
          label,
        ),
      ),
    ),
    td("ar", argsMark(run.args)),
    td(
      "time sc",
      timeMark(run.times.schedule),
      stop && !FINISHED.includes(run.state)
        ? el("span", { class: over ? "stop over" : "stop soft" }, " to ", timeMark(stop))
        : null,
    ),
    td("time be", run.times.running ? timeMark(run.times.running) : null),
    td("num el", elapsed(run)),
    td(
      "rp",
      run.repeats
        ? el(
            "button",
            {
              type: "button",
              class: "quiet",
              "aria-expanded": String(list.expanded.has(run.group)),
              title: run.open
                ? "Runs of the same job and args, of those fetched so far: earlier ones may follow"
                : "All other runs of the same job and args that fit the search",
              onclick: () => list.expand(run.group),
            },
            `+${run.repeats}${run.open ? "…" : ""}`,
          )
        : null,
    ),
    td(
      "op",
      menuButton(`Operations on ${run.run_id}`, () => menuItems(list.runs.get(run.run_id) ?? run)),
    ),
  ];
}
