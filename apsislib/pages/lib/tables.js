// Tables whose rows follow their data: a row is drawn again only when its item is another one.

import { el } from "./dom.js";

/** {whole, body} of a table with these heads: texts, or {text, cls, label} objects. It scrolls sideways by itself. */
export function table(heads, { cls = "", caption } = {}) {
  const row = heads.map((head) => (head instanceof Node ? head
    : typeof head === "string" ? el("th", { scope: "col" }, head)
      : el("th", { scope: "col", class: head.cls ?? "" }, head.text || el("span", { class: "hidden" }, head.label ?? ""))));
  const body = el("tbody");
  const whole = el("div", { class: "scroll" }, el("table", { class: cls },
    caption ? el("caption", { class: "hidden" }, caption) : null,
    el("thead", {}, el("tr", {}, row)), body));
  return { whole, body };
}

/** The rows of a <tbody> (or items of a list). `key(item)` identifies, `cells(item)` draws; `tag` of a row. */
export class Rows {
  constructor(body, { key, cells, tag = "tr", cls = () => "" }) {
    this.body = body;
    this.does = { key, cells, cls };
    this.tag = tag;
    this.rows = new Map(); // key -> {node, item}
  }

  /** Show these items in this order; the focus stays where it is if its row does. */
  show(items) {
    const next = new Map();
    let place = this.body.firstChild;
    for (const item of items) {
      const key = this.does.key(item);
      let row = this.rows.get(key);
      if (!row) row = { node: el(this.tag), item: undefined };
      if (row.item !== item) this.draw(row, item);
      next.set(key, row);
      this.rows.delete(key);
      if (row.node === place) place = place.nextSibling;
      else this.body.insertBefore(row.node, place);
    }
    for (const { node } of this.rows.values()) node.remove();
    this.rows = next;
  }

  draw(row, item) {
    row.item = item;
    row.node.className = this.does.cls(item);
    const old = document.activeElement;
    const at = row.node.contains(old) ? focusables(row.node).indexOf(old) : -1;
    row.node.replaceChildren(...this.does.cells(item).filter(Boolean));
    if (at >= 0) focusables(row.node)[at]?.focus({ preventScroll: true });
  }

  /** Draw this row anew the next time. */
  forgetOne(key) { const row = this.rows.get(key); if (row) row.item = undefined; }

  /** Draw all rows anew the next time. */
  forget() { for (const row of this.rows.values()) row.item = undefined; }

  node(key) { return this.rows.get(key)?.node; }
}

const focusables = (node) => [...node.querySelectorAll("a, button, input, select")];

/** A cell. */
export const td = (cls, ...children) => el("td", { class: cls }, children);
