// Instants, the time zone that they are shown in, and durations. The zone is chosen once and remembered.

import { kept } from "./dom.js";

export const LOCAL = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const OFTEN = [LOCAL, "UTC", "America/New_York", "Europe/London", "Asia/Tokyo"];
const PARTS = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" };

let zone = LOCAL;
let whole; // 2031-05-06 07:08:09
let offsets; // GMT+2

function use(name) {
  // sv-SE writes dates as ISO 8601 does.
  whole = new Intl.DateTimeFormat("sv-SE", { timeZone: name, ...PARTS });
  offsets = new Intl.DateTimeFormat("en-US", { timeZone: name, timeZoneName: "longOffset" });
  zone = name;
}

export function startZone() {
  try { use(kept.get("zone") || LOCAL); } catch { use("UTC"); }
}

export const zoneName = () => zone;

export function chooseZone(name) {
  use(name);
  kept.set("zone", name);
}

/** [names that are often wanted, all others]. */
export function zones() {
  const all = Intl.supportedValuesOf?.("timeZone") ?? [];
  const first = [...new Set([...OFTEN, zone])];
  return [first, all.filter((name) => !first.includes(name))];
}

/** The zone's distance from UTC at an instant: +02:00. */
export function offset(time = new Date()) {
  const name = offsets.formatToParts(time).find((part) => part.type === "timeZoneName").value;
  return name === "GMT" ? "+00:00" : name.slice(3);
}

/** 2031-05-06 07:08:09 of an instant (Date, ms or ISO text), "" of none. */
export const showTime = (time) => (time ? whole.format(new Date(time)) : "");
export const showDate = (time) => showTime(time).slice(0, 10);
export const showClock = (time) => showTime(time).slice(11);

/** As short as it can be told beside other times of today: 07:08:09, or 05-05 07:08 of another day. */
export function showShort(time) {
  if (!time) return "";
  const text = showTime(time);
  return text.slice(0, 10) === showDate(new Date()) ? text.slice(11) : text.slice(5, 16);
}

/** The instant (ms) at which clocks of the zone show this; in a gap, of the time after it. */
export function instantOf(year, month, day, hour = 0, minute = 0, second = 0) {
  const wall = Date.UTC(year, month - 1, day, hour, minute, second);
  let found = wall;
  for (let n = 0; n < 2; n += 1) {
    const [y, mo, d, h, mi, s] = whole.format(found).match(/\d+/g).map(Number);
    found += wall - Date.UTC(y, mo - 1, d, h, mi, s);
  }
  return found;
}

const DAYS = { yesterday: -1, today: 0, tomorrow: 1 };

/** The instant (ms) that a person means, in the chosen zone: `now`, `yesterday 23:00`, `2031-05-06`, `20310506 0700`,
 *  `07:00`, an instant with zone, `2h` for two hours ago. Throws an Error that says what can be written. */
export function parseTime(text, now = Date.now()) {
  const words = text.trim().toLowerCase();
  if (words === "now") return now;
  const ago = /^[-+]?(\d+(?:\.\d+)?)\s*(s|m|h|d|w)$/.exec(words);
  if (ago) {
    const span = Number(ago[1]) * { s: 1, m: 60, h: 3600, d: 86400, w: 604800 }[ago[2]] * 1000;
    return words.startsWith("+") ? now + span : now - span;
  }
  const zoned = /^\d{4}-?\d\d-?\d\d[t ]\d\d:?\d\d(:?\d\d(\.\d+)?)?(z|[+-]\d\d:?\d\d)$/.test(words) && iso(words);
  if (zoned) return zoned;
  const found = /^(?:(yesterday|today|tomorrow)|(\d{4})-?(\d\d)-?(\d\d))?(?:(?:^|[t ]+)(\d{1,2}):?(\d\d)(?::?(\d\d))?)?$/.exec(words);
  if (!words || !found) throw new Error(`no time: ${text} (write now, 07:00, yesterday 23:00, 2031-05-06 07:00 or 2h)`);
  let [year, month, day] = found[2] ? found.slice(2, 5).map(Number) : showDate(now).split("-").map(Number);
  const date = new Date(Date.UTC(year, month - 1, day + (DAYS[found[1]] ?? 0)));
  const [hour, minute, second] = found.slice(5, 8).map((part) => Number(part ?? 0));
  if (date.getUTCMonth() + 1 !== month && !found[1]) throw new Error(`no such date: ${text}`);
  if (hour > 24 || minute > 59 || second > 59) throw new Error(`no such time of day: ${text}`);
  [year, month, day] = [date.getUTCFullYear(), date.getUTCMonth() + 1, date.getUTCDate()];
  return instantOf(year, month, day, hour, minute, second);
}

function iso(text) {
  const parts = /^(\d{4})-?(\d\d)-?(\d\d)[t ](\d\d):?(\d\d)(?::?(\d\d)(?:\.\d+)?)?(.+)$/.exec(text);
  const [, y, mo, d, h, mi, s = "00", end] = parts;
  const tail = end === "z" ? "Z" : `${end.slice(0, 3)}:${end.slice(-2)}`;
  const time = Date.parse(`${y}-${mo}-${d}T${h}:${mi}:${s}${tail}`);
  return Number.isNaN(time) ? null : time;
}

const two = (n) => String(n).padStart(2, "0");

/** 0:07, 12:34, 1:02:03, 2 d 03:04 of seconds. */
export function showSeconds(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (d) return `${d} d ${two(h)}:${two(m)}`;
  return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

/** One unit, rounded: 5 m ago, in 3 h. */
export function showAgo(time, now = Date.now()) {
  const seconds = (now - new Date(time)) / 1000;
  const span = showSpan(Math.abs(seconds));
  return seconds >= 0 ? `${span} ago` : `in ${span}`;
}

export function showSpan(seconds) {
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const [name, size] = units.find(([, size]) => seconds >= size) ?? ["ms", 0.001];
  return `${Math.round(seconds / size)} ${name}`;
}

export const FINISHED = ["success", "failure", "error", "skipped"];
export const ACTIVE = ["waiting", "starting", "running", "stopping"];

/** [start, end] of a run in ms, as far as it has them; what goes on ends now. */
export function runSpan(run, now = Date.now()) {
  const start = run.times.running ? Date.parse(run.times.running) : null;
  const over = FINISHED.includes(run.state) ? run.times[run.state] : null;
  return [start, over ? Date.parse(over) : start === null ? null : now];
}

/** How long a run has run, as text; "" where it has not. */
export function elapsed(run) {
  const [start, end] = runSpan(run);
  return start === null ? "" : showSeconds((end - start) / 1000);
}

/** `bytes(1536)`: 1.5 KiB. */
export function bytes(count) {
  if (count < 1024) return `${count} bytes`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = count / 1024;
  let unit = 0;
  while (value >= 1024 && unit < 3) { value /= 1024; unit += 1; }
  return `${value.toFixed(1)} ${units[unit]}`;
}
