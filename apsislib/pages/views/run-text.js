// Styled text as elements, with what is searched for marked in it.

import { el } from "../lib/dom.js";

/** Nodes of [[text, style]]; what `query` finds in it is marked. */
export function drawSpans(spans, query) {
  const nodes = [];
  const marked = query ? places(spans.map(([text]) => text).join(""), query) : [];
  let at = 0;
  for (const [text, style] of spans) {
    const parts = marked.length ? cut(text, at, marked) : [[text, false]];
    at += text.length;
    for (const [part, hit] of parts) {
      const inner = hit ? el("mark", {}, part) : part;
      nodes.push(style.fg || style.bg || style.faces ? dressed(inner, style) : inner);
    }
  }
  return nodes;
}

function dressed(inner, style) {
  const node = el("span", { class: style.faces }, inner);
  if (style.fg) { node.classList.add("fg"); node.style.setProperty("--fg", style.fg); }
  if (style.bg) { node.classList.add("bg"); node.style.setProperty("--bg", style.bg); }
  return node;
}

function places(text, query) {
  const found = [];
  const low = text.toLowerCase();
  const wanted = query.toLowerCase();
  if (low.length !== text.length) return found; // a letter whose lower case is longer: rare, and not worth a wrong mark
  for (let at = low.indexOf(wanted); at >= 0 && found.length < 1000; at = low.indexOf(wanted, at + wanted.length)) {
    found.push([at, at + wanted.length]);
  }
  return found;
}

/** [[part, whether it is marked]] of a text that begins at `start` of its line. */
function cut(text, start, marked) {
  const parts = [];
  let at = 0;
  for (const [from, to] of marked) {
    const low = Math.max(at, from - start);
    const high = Math.min(text.length, to - start);
    if (high <= low) continue;
    if (low > at) parts.push([text.slice(at, low), false]);
    parts.push([text.slice(low, high), true]);
    at = high;
  }
  if (at < text.length) parts.push([text.slice(at), false]);
  return parts;
}
