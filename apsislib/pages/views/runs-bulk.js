// Operations on many runs: the server first says what it would do, and just that is then done.

import { post } from "../lib/api.js";
import { ask, notice } from "../lib/dialogs.js";
import { el, fill, plural } from "../lib/dom.js";
import { searchQuery } from "../lib/filters.js";
import { argsMark, jobText, runLink } from "../lib/marks.js";
import { whyField } from "../lib/operations.js";

const VERBS = [
  ["start", "Start", "started"],
  ["skip", "Skip", "skipped"],
  ["stop", "Stop", "stopped"],
  ["signal SIGTERM", "Terminate", "sent SIGTERM"],
  ["signal SIGKILL", "Kill", "sent SIGKILL"],
  ["rerun", "Rerun", "run again"],
];
const MARKS = ["success", "failure", "error", "skipped"];
const DANGER = ["skip", "stop", "signal SIGTERM", "signal SIGKILL"];
const NAMED = 12; // runs and reasons that are named in a preview

/** The bar that appears once runs are chosen. */
export function bulkBar(page, list) {
  let every = false; // whether all that the search finds are meant
  const count = el("strong", { role: "status" });
  const widen = el(
    "button",
    {
      type: "button",
      class: "quiet",
      onclick: () => {
        every = true;
        show();
      },
    },
    "Select all that the search finds",
  );
  const buttons = VERBS.map(([operation, name, done]) =>
    el(
      "button",
      { type: "button", class: DANGER.includes(operation) ? "danger" : "", onclick: () => act(operation, name, done) },
      name,
    ),
  );
  const marks = el(
    "select",
    { "aria-label": "Mark as" },
    el("option", { value: "" }, "Mark as…"),
    MARKS.map((state) => el("option", { value: state }, state)),
  );
  marks.onchange = () => {
    const state = marks.value;
    marks.value = "";
    act(`mark ${state}`, `Mark as ${state}`, `marked as ${state}`);
  };
  const clear = el(
    "button",
    {
      type: "button",
      class: "quiet",
      onclick: () => {
        every = false;
        list.clearPicked();
      },
    },
    "Clear",
  );
  const box = el(
    "div",
    { class: "bulk", hidden: true, role: "region", "aria-label": "Operations on the selected runs" },
    count,
    widen,
    el("span", { class: "buttons" }, buttons, marks, clear),
  );

  function show() {
    const { size } = list.picked;
    if (!size) every = false;
    box.hidden = !size;
    document.body.classList.toggle("has-bulk", size > 0);
    fill(count, every ? "All runs that the search finds" : `${plural(size, "run")} selected`);
    widen.hidden = every || list.next === null || size < list.shown().length;
  }
  page.leave(() => document.body.classList.remove("has-bulk"));

  /** A run by its ID, and by its job and args if the list has it. */
  function named(id) {
    const run = list.runs.get(id);
    return [runLink(id), run ? [" ", jobText(run.job_id), " ", argsMark(run.args)] : null];
  }

  async function act(operation, name, done) {
    const [verb, what] = operation.split(" ");
    const body = {
      operation: verb,
      ...(verb === "signal" ? { signal: what } : verb === "mark" ? { state: what } : {}),
    };
    const meant = every ? { query: searchQuery(list.filters).q } : { runs: [...list.picked] };
    let preview;
    for (const button of buttons) button.disabled = true;
    try {
      preview = await post("/bulk", { ...body, ...meant, dry_run: true });
    } catch (error) {
      notice(error.message);
      return;
    } finally {
      for (const button of buttons) button.disabled = false;
    }
    const refused = Object.entries(preview.refused);
    const [field, why] = whyField();
    const answer = await ask({
      question: preview.done.length
        ? `${name}: ${plural(preview.done.length, "run")}?`
        : `None of these runs can be ${done}.`,
      detail: [
        preview.done.length
          ? el(
              "ul",
              { class: "ids" },
              preview.done.slice(0, NAMED).map((id) => el("li", {}, named(id))),
              preview.done.length > NAMED
                ? el("li", {}, `and ${plural(preview.done.length - NAMED, "more run")}`)
                : null,
            )
          : null,
        refused.length
          ? el(
              "details",
              { class: "refused", open: !preview.done.length },
              el(
                "summary",
                {},
                `${plural(refused.length, "run")} will be left as ${refused.length === 1 ? "it is" : "they are"}`,
              ),
              el(
                "ul",
                {},
                refused
                  .slice(0, NAMED)
                  .map(([id, reason]) => el("li", {}, reason.includes(id) ? reason : `${id}: ${reason}`)),
                refused.length > NAMED ? el("li", {}, `and ${refused.length - NAMED} more`) : null,
              ),
            )
          : null,
        preview.done.length ? field : null,
      ].filter(Boolean),
      verb: preview.done.length ? name : null,
      danger: DANGER.includes(operation),
      // Just those of the preview, whatever has come to fit the search meanwhile.
      act: () => post("/bulk", { ...body, runs: preview.done, ...(why() ? { reason: why() } : {}) }),
    });
    if (!answer) return;
    every = false;
    list.clearPicked();
    const failed = Object.values(answer.refused);
    notice(
      `${plural(answer.done.length, "run")} ${done}${failed.length ? `; ${failed.length} not: ${failed[0]}` : ""}`,
      { kind: failed.length ? "error" : "done" },
    );
  }

  return { box, show };
}
