// What a list of runs shows, as the address has it and as a search in the server's mini language.

import { parseTime } from "./times.js";

export const STATES = [
  "scheduled",
  "waiting",
  "starting",
  "running",
  "stopping",
  "success",
  "failure",
  "error",
  "skipped",
];
export const SHOWN = [20, 50, 100, 200, 500, 1000]; // rows of a page
const USUAL = 50;
const LISTS = ["keywords", "labels", "args", "states"];
// Addresses of earlier releases: show=failed and so on.
const OLD_SHOWS = {
  active: ["waiting", "starting", "running", "stopping"],
  failed: ["failure", "error"],
  upcoming: ["scheduled"],
};

/** `a,b\,c` as ["a", "b,c"]. */
const split = (text) => (text.match(/(?:\\.|[^,\\])+|\\$/gs) ?? []).map((part) => part.replace(/\\(.)/gs, "$1"));
const join = (values) => values.map((value) => value.replace(/[\\,]/g, "\\$&")).join(",");

/** The filters that an address's query says. */
export function read(query) {
  const filters = { q: query.get("q") ?? "", path: (query.get("path") ?? "").replace(/^\/+|\/+$/g, "") };
  for (const name of LISTS) filters[name] = query.getAll(name).flatMap(split);
  filters.labels.push(...query.getAll("label"));
  const show = query.get("show") ?? "";
  filters.states = (OLD_SHOWS[show] ?? filters.states).filter((state) => STATES.includes(state));
  filters.show = SHOWN.includes(Number(show)) ? Number(show) : USUAL;
  filters.ungroup = query.has("ungroup");
  filters.asc = query.get("asc") === "true";
  const at = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(query.get("time") ?? "");
  filters.time = at ? Date.UTC(at[1], at[2] - 1, at[3], at[4], at[5], at[6]) : null;
  return filters;
}

/** The query of an address that says these; what is as usual is left out. */
export function write(filters) {
  const query = new URLSearchParams();
  if (filters.q) query.set("q", filters.q);
  if (filters.path) query.set("path", filters.path);
  for (const name of LISTS) if (filters[name].length) query.set(name, join(filters[name]));
  if (filters.show !== USUAL) query.set("show", filters.show);
  if (filters.time !== null) query.set("time", new Date(filters.time).toISOString().replace(/[-:]|\.\d+/g, ""));
  if (filters.asc) query.set("asc", "true");
  let text = String(query);
  if (filters.ungroup) text += `${text ? "&" : ""}ungroup`;
  return text.replaceAll("%2C", ",").replaceAll("%3A", ":").replaceAll("%2F", "/");
}

/** A text as one word of the mini language. */
export const quote = (text) => (/^[\w./@%+-]+$/.test(text) ? text : `"${text.replace(/["\\]/g, "\\$&")}"`);

/** The search, in the mini language, that finds what these filters let through; without the time. */
export function searchText(filters, { states = true } = {}) {
  const words = [
    filters.q,
    filters.path && `path:${quote(filters.path)}`,
    ...filters.keywords.map(quote),
    ...filters.labels.map((label) => `label:${quote(label)}`),
    ...filters.args.map((arg) => {
      const at = arg.indexOf("=");
      return at < 0 ? `${quote(arg)}=` : `${quote(arg.slice(0, at))}==${quote(arg.slice(at + 1))}`;
    }),
  ];
  if (states) words.push(statesText(filters));
  return words.filter(Boolean).join(" ");
}

function statesText(filters) {
  if (filters.states.length) return `state:${filters.states.join(",")}`;
  // What is to come has its own list: thousands of runs may be scheduled.
  return /(^|\s)!?state:/.test(filters.q) ? "" : "!state:scheduled,new";
}

export const isAhead = (filters) => filters.states.length > 0 && filters.states.every((state) => state === "scheduled");

/** The query of /search/runs, without `limit` and the cursor. */
export function searchQuery(filters) {
  if (isAhead(filters)) return { q: searchText(filters), order: "schedule" };
  const bound =
    filters.time === null ? "" : `${filters.asc ? "since" : "until"}:${new Date(filters.time).toISOString()}`;
  return { q: [searchText(filters), bound].filter(Boolean).join(" "), order: filters.asc ? "earliest" : "latest" };
}

/** The instant that a person typed, null for now. */
export function readTime(text) {
  const trimmed = text.trim().replace(/\s+ago$/, "");
  return !trimmed || trimmed.toLowerCase() === "now" ? null : parseTime(trimmed);
}
