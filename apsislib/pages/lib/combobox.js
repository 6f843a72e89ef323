// The search field: it completes the word at its end, as the mini language of searches has it.

import { get } from "./api.js";
import { el, fill, settled } from "./dom.js";
import { quote } from "./filters.js";

const STATES = ["scheduled", "waiting", "starting", "running", "stopping", "success", "failure", "error", "skipped"];
const KEYS = [
  ["state:", "one of some states"],
  ["label:", "a label of the job"],
  ["path:", "the job, or the folder that it is in"],
  ["alarm:", "late, missed or long"],
  ["verdict:", "how it ended after it was given up"],
  ["since:", "changed since a time, or so long ago"],
  ["until:", "changed before"],
];
const TIMES = ["1h", "24h", "7d", "now"];

/** What the language has, for the help. */
export const LANGUAGE = [
  ["load", "the job ID has “load” in it"],
  ["path:etl/trades", "the job ID is this, or is in this folder"],
  ["date=2031", "the arg “date” has 2031 in it"],
  ["date==2031-05-06", "the arg “date” is just this"],
  ["date=", "there is an arg “date”"],
  ["state:fail,error", "the state is one of these; their beginnings will do"],
  ["label:nightly", "the job has this label"],
  ["alarm:late", "it was late, missed or long"],
  ["verdict:any", "it was given up, and its program told later how it ended; verdict:success: so"],
  ["since:2h  until:2031-05-06", "its latest change is not older, or is older"],
  ["!label:test", "the contrary of any of these"],
  ['"two words"', "quotes hold a word together; in them, \\ stands before a quote"],
];

/** A field (to be put somewhere) that calls `apply(text)` on Enter, when it is left, or when a word is chosen. */
export function searchField({ label, placeholder, apply }) {
  const list = el("ul", {
    role: "listbox",
    id: "completions",
    class: "completions",
    hidden: true,
    "aria-label": "Completions",
  });
  const input = el("input", {
    type: "search",
    placeholder,
    autocomplete: "off",
    spellcheck: false,
    role: "combobox",
    "aria-label": label,
    "aria-expanded": "false",
    "aria-controls": "completions",
    "aria-autocomplete": "list",
  });
  let options = [];
  let at = -1;
  let applied = "";
  let asked = 0;

  function close() {
    list.hidden = true;
    at = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function show(found) {
    const marked = options[at]?.[0]; // stays marked, if a late answer has it too
    options = found;
    fill(
      list,
      found.map(([text, hint], n) =>
        el(
          "li",
          {
            role: "option",
            id: `completion-${n}`,
            "aria-selected": "false",
            onpointerdown: (event) => {
              event.preventDefault();
              choose(n);
            },
          },
          el("span", { class: "mono" }, text),
          hint ? el("span", { class: "soft" }, hint) : null,
        ),
      ),
    );
    list.hidden = !found.length;
    input.setAttribute("aria-expanded", String(found.length > 0));
    mark(marked === undefined ? -1 : found.findIndex(([text]) => text === marked));
  }

  /** [where the word at the cursor begins, the word]; null inside of quotes. */
  function word() {
    const text = input.value.slice(0, input.selectionStart ?? input.value.length);
    if ((text.match(/(?<!\\)"/g) ?? []).length % 2) return null;
    const start = text.search(/\S*$/);
    return [start, text.slice(start)];
  }

  const complete = settled(async () => {
    const found = word();
    if (!found || document.activeElement !== input) {
      close();
      return;
    }
    const mine = ++asked;
    const [, whole] = found;
    const text = whole.replace(/^!/, "");
    const not = whole.startsWith("!") ? "!" : "";
    let words = [];
    const [, key, rest] = /^(state|alarm|verdict|since|until|label|path):(.*)$/.exec(text) ?? [];
    const last = (rest ?? "").split(",").at(-1);
    const head = (rest ?? "").slice(0, (rest ?? "").length - last.length);
    const among = (all) =>
      all
        .filter((one) => one.startsWith(last.toLowerCase()) && one !== last)
        .map((one) => [`${not}${key}:${head}${one}`]);
    try {
      if (key === "state") words = among(STATES);
      else if (key === "alarm") words = among(["late", "missed", "long"]);
      else if (key === "verdict") words = among(["any", "success", "failure"]);
      else if (key === "since" || key === "until") words = among(TIMES);
      else if (key === "label")
        words = (await get("/complete", { q: rest.replace(/^"/, "") })).labels.map((one) => [
          `${not}label:${quote(one)}`,
        ]);
      else if (key === "path") {
        const paths = (await get("/complete", { q: rest.replace(/^"/, "") })).jobs.flatMap((one) => [
          one.split("/").slice(0, -1).join("/"),
          one,
        ]);
        words = [...new Set(paths)]
          .filter((one) => one && one.startsWith(rest))
          .map((one) => [`${not}path:${quote(one)}`]);
      } else if (text && !text.includes("=")) {
        const answer = await get("/complete", { q: text.replace(/^"/, "") });
        words = [
          ...KEYS.filter(([one]) => one.startsWith(text)).map(([one, hint]) => [`${not}${one}`, hint]),
          ...answer.jobs.slice(0, 6).map((one) => [`${not}${quote(one)}`, "job"]),
          ...answer.labels.slice(0, 3).map((one) => [`${not}label:${quote(one)}`, "label"]),
          ...answer.params.slice(0, 3).map((one) => [`${not}${quote(one)}=`, "arg"]),
        ];
      } else if (!text) words = KEYS.map(([one, hint]) => [`${not}${one}`, hint]);
    } catch {
      /* without completions, then */
    }
    if (mine === asked && document.activeElement === input) show(words.slice(0, 10));
  }, 120);

  function choose(n) {
    const [start, whole] = word() ?? [0, ""];
    const end = start + whole.length;
    const [text] = options[n];
    const open = /[:=]$/.test(text);
    input.value = `${input.value.slice(0, start)}${text}${open ? "" : " "}${input.value.slice(end).trimStart()}`;
    const cursor = start + text.length + (open ? 0 : 1);
    input.setSelectionRange(cursor, cursor);
    if (open) complete();
    else {
      close();
      commit();
    }
  }

  function mark(n) {
    at = n;
    for (const [other, item] of [...list.children].entries()) item.setAttribute("aria-selected", String(other === n));
    if (n >= 0) input.setAttribute("aria-activedescendant", `completion-${n}`);
    else input.removeAttribute("aria-activedescendant");
  }

  function commit() {
    const text = input.value.trim();
    if (text === applied) return;
    applied = text;
    apply(text);
  }

  input.oninput = () => {
    if (input.value === "") {
      close();
      commit();
    } else complete();
  };
  input.onclick = () => {
    if (!input.value) complete();
  };
  input.onblur = () => {
    close();
    commit();
  };
  input.onkeydown = (event) => {
    const open = !list.hidden && options.length > 0;
    if (event.key === "ArrowDown" && !open) complete();
    else if (event.key === "ArrowDown") mark((at + 1) % options.length);
    else if (event.key === "ArrowUp" && open) mark(at <= 0 ? options.length - 1 : at - 1);
    else if (event.key === "Enter" && open && at >= 0) choose(at);
    else if (event.key === "Tab" && open && at >= 0 && !event.shiftKey) choose(at);
    else if (event.key === "Enter") {
      close();
      commit();
    } else if (event.key === "Escape" && open) close();
    else if (event.key === "Escape" && input.value) {
      input.value = "";
      commit();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return {
    box: el("div", { class: "combobox" }, input, list),
    input,
    set(text) {
      if (document.activeElement !== input || text !== input.value.trim()) input.value = text;
      applied = text;
    },
  };
}
