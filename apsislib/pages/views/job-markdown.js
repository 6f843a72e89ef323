// Markdown as elements: headings, paragraphs, lists, quotes, code, tables, emphasis, links. Nothing of the text is
// ever taken as HTML, and links lead to http, https, mailto and our own pages alone.

import { el } from "../lib/dom.js";

const MOST = 200_000; // characters
const DEEP = 6; // lists in lists, quotes in quotes

let top = 1; // the level of a text's highest headings

/** Nodes of a text in Markdown. Its headings begin at <h3>. */
export function markdown(text) {
  const lines = text.slice(0, MOST).replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n");
  // Whatever a text begins its headings with, here they begin below the page's own.
  top = Math.min(6, ...lines.map((line) => HEADING.exec(line)?.[1].length ?? 6));
  return el("div", { class: "prose" }, blocks(lines, 0));
}

const FENCE = /^ {0,3}(```+|~~~+)\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:([-*+])|(\d{1,9})[.)])( +|$)/;
const DIVIDER = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

function blocks(lines, depth) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) { at += 1; continue; }
    if ((found = FENCE.exec(line))) {
      const inner = [];
      at += 1;
      while (at < lines.length && !lines[at].trim().startsWith(found[1])) { inner.push(lines[at]); at += 1; }
      at += 1;
      nodes.push(el("pre", { tabIndex: 0 }, el("code", {}, inner.join("\n"))));
    } else if ((found = HEADING.exec(line))) {
      nodes.push(el(`h${Math.min(6, found[1].length - top + 3)}`, {}, inline(found[2])));
      at += 1;
    } else if (RULE.test(line)) {
      nodes.push(el("hr"));
      at += 1;
    } else if (QUOTE.test(line) && depth < DEEP) {
      const inner = [];
      while (at < lines.length && lines[at].trim() && (QUOTE.test(lines[at]) || !starts(lines[at]))) { inner.push(lines[at].replace(QUOTE, "")); at += 1; }
      nodes.push(el("blockquote", {}, blocks(inner, depth + 1)));
    } else if (ITEM.test(line) && depth < DEEP) {
      const [node, next] = list(lines, at, depth);
      nodes.push(node);
      at = next;
    } else if (/^ {4}/.test(line)) {
      const inner = [];
      while (at < lines.length && (/^ {4}/.test(lines[at]) || !lines[at].trim())) { inner.push(lines[at].slice(4)); at += 1; }
      nodes.push(el("pre", { tabIndex: 0 }, el("code", {}, inner.join("\n").trimEnd())));
    } else if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DIVIDER.test(lines[at + 1])) {
      const [node, next] = tableOf(lines, at);
      nodes.push(node);
      at = next;
    } else {
      const inner = [];
      do { inner.push(lines[at].trim()); at += 1; } while (at < lines.length && lines[at].trim() && !starts(lines[at]));
      nodes.push(el("p", {}, inline(inner.join("\n"))));
    }
  }
  return nodes;
}

/** Whether a line begins a block that may interrupt a paragraph. */
const starts = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

function list(lines, from, depth) {
  const [, indent, bullet, number] = ITEM.exec(lines[from]);
  const items = [];
  let at = from;
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length > indent.length + 3 || found[1].length < indent.length || Boolean(found[2]) !== Boolean(bullet)) break;
    const inset = found[0].length;
    const inner = [lines[at].slice(inset)];
    at += 1;
    let blank = false;
    while (at < lines.length) {
      const line = lines[at];
      const indented = line.length - line.trimStart().length;
      if (!line.trim()) { blank = true; inner.push(""); at += 1; continue; }
      if (indented >= Math.min(inset, indent.length + 2)) inner.push(line.slice(Math.min(inset, indented)));
      else if (blank || starts(line)) break;
      else inner.push(line.trim());
      blank = false;
      at += 1;
    }
    items.push(inner);
  }
  const loose = items.some((inner) => inner.slice(0, -1).includes("") && inner.join("").trim() && /\n\n\S/.test(inner.join("\n").trimEnd()));
  const nodes = items.map((inner) => {
    const made = blocks(inner, depth + 1);
    return el("li", {}, loose ? made : made.map((node) => (node.tagName === "P" ? [...node.childNodes] : node)));
  });
  const node = el(bullet ? "ul" : "ol", {}, nodes);
  if (!bullet && number !== "1") node.start = Number(number);
  return [node, at];
}

function tableOf(lines, from) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const heads = cells(lines[from]);
  const rows = [];
  let at = from + 2;
  while (at < lines.length && lines[at].includes("|") && lines[at].trim()) { rows.push(cells(lines[at])); at += 1; }
  const table = el("table", {}, el("thead", {}, el("tr", {}, heads.map((cell) => el("th", { scope: "col" }, inline(cell))))),
    el("tbody", {}, rows.map((row) => el("tr", {}, heads.map((_, n) => el("td", {}, inline(row[n] ?? "")))))));
  return [el("div", { class: "scroll" }, table), at];
}

// -- within a line -------------------------------------------------------------------------------

// One of: an escaped sign; code; a picture or link; an address; strong; emphasis; struck out; a break.
const INLINE = new RegExp([
  /\\([!-/:-@[-`{-~])/, /(`+)([^`]|[^`][\s\S]*?[^`])\2(?!`)/, /!?\[([^\]]*)\]\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/,
  /<?\b(https?:\/\/[^\s<>"')\]]+[^\s<>"')\].,;:!?])>?/, /\*\*(?=\S)([\s\S]+?)(?<=\S)\*\*|\b__(?=\S)([\s\S]+?)(?<=\S)__\b/,
  /\*(?=\S)([^*]+?)(?<=\S)\*|\b_(?=\S)([^_]+?)(?<=\S)_\b/, /~~(?=\S)([\s\S]+?)(?<=\S)~~/, /(?: {2,}|\\)\n/,
].map((part) => part.source).join("|"));
// Groups of the above, in order: 1 escaped; 2, 3 code; 4, 5 link; 6 address; 7, 8 strong; 9, 10 emphasis; 11 struck out.

function inline(text, depth = 0) {
  const nodes = [];
  let rest = text;
  while (rest) {
    const found = depth < DEEP ? INLINE.exec(rest) : null;
    if (!found) { nodes.push(rest); break; }
    if (found.index) nodes.push(rest.slice(0, found.index));
    const inner = (part) => inline(part, depth + 1);
    if (found[1]) nodes.push(found[1]);
    else if (found[2]) nodes.push(el("code", {}, found[3].trim()));
    else if (found[5] !== undefined) nodes.push(link(found[5], inner(found[4] || found[5])));
    else if (found[6]) nodes.push(link(found[6], [found[6]]));
    else if (found[7] || found[8]) nodes.push(el("strong", {}, inner(found[7] || found[8])));
    else if (found[9] || found[10]) nodes.push(el("em", {}, inner(found[9] || found[10])));
    else if (found[11]) nodes.push(el("s", {}, inner(found[11])));
    else nodes.push(el("br"));
    rest = rest.slice(found.index + found[0].length);
  }
  return nodes;
}

function link(address, inner) {
  let url;
  try { url = new URL(address, location.origin); } catch { return el("span", {}, inner); }
  const ours = url.origin === location.origin && /^[/#]/.test(address) && !address.startsWith("//");
  if (!ours && !["http:", "https:", "mailto:"].includes(url.protocol)) return el("span", {}, inner);
  if (!ours && !/^(https?:|mailto:)/i.test(address)) return el("span", {}, inner); // a file beside a text that is no file
  return ours ? el("a", { href: address }, inner) : el("a", { href: url.href, rel: "noopener noreferrer", target: "_blank" }, inner);
}
