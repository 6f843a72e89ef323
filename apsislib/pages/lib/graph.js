// A small graph from left to right: what something hangs on, itself, and what hangs on it. Nodes are links.

import { svg } from "./dom.js";
import { stateIcon } from "./marks.js";

const [WIDE, TALL, GAP_X, GAP_Y, EDGE] = [186, 42, 46, 12, 4];

/** `nodes`: [{key, href, title, lines: [text, text], state, soft}], `edges`: [[from, to, kind]]. */
export function drawGraph({ nodes, edges, middle, label }) {
  const level = levels(nodes, edges, middle);
  const columns = new Map();
  for (const node of nodes) {
    const at = level.get(node.key) ?? 0;
    columns.set(at, [...(columns.get(at) ?? []), node]);
  }
  const order = [...columns.keys()].sort((a, b) => a - b);
  const most = Math.max(...[...columns.values()].map((column) => column.length));
  const place = new Map();
  order.forEach((at, n) => {
    const column = sorted(columns.get(at), edges, place);
    const top = ((most - column.length) * (TALL + GAP_Y)) / 2;
    column.forEach((node, m) => place.set(node.key, { x: EDGE + n * (WIDE + GAP_X), y: EDGE + top + m * (TALL + GAP_Y), node }));
  });
  const width = order.length * (WIDE + GAP_X) - GAP_X + 2 * EDGE;
  const bottom = most * (TALL + GAP_Y) - GAP_Y + 2 * EDGE;
  // An edge over more than one column goes below all nodes, each in a lane of its own.
  const column = (key) => order.indexOf(level.get(key) ?? 0);
  const long = edges.filter(([from, to]) => from !== to && column(to) - column(from) !== 1);
  const lane = (edge) => (long.includes(edge) ? bottom + 6 + long.indexOf(edge) * 7 : null);
  const height = bottom + (long.length ? 6 + long.length * 7 : 0);
  return svg("svg", { class: "graph", viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label },
    svg("defs", {}, svg("marker", { id: "graph-arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      svg("path", { d: "M0 .8L7.4 4 0 7.2z", class: "graph-head" }))),
    edges.map((edge) => drawEdge(place.get(edge[0]), place.get(edge[1]), edge[2], lane(edge))),
    [...place.values()].map((found) => drawNode(found, middle)));
}

/** Scroll what holds a graph so that its middle can be seen. */
export function showMiddle(box) {
  const rect = box.querySelector(".graph-node.middle rect");
  box.scrollLeft = rect ? Number(rect.getAttribute("x")) - (box.clientWidth - WIDE) / 2 : 0;
}

/** Distance from the middle: negative towards what it hangs on. */
function levels(nodes, edges, middle) {
  const found = new Map([[middle, 0]]);
  for (const [step, from, to] of [[-1, 1, 0], [1, 0, 1]]) {
    let here = [middle];
    for (let depth = 1; here.length && depth < 20; depth += 1) {
      const next = [];
      for (const edge of edges) {
        if (here.includes(edge[from]) && !found.has(edge[to])) { found.set(edge[to], step * depth); next.push(edge[to]); }
      }
      here = next;
    }
  }
  // A node stands behind all that lead to it (before all that it leads to), so that edges go one way; in a circle
  // there is no such order, and the number of rounds ends it.
  for (let round = 0; round < nodes.length; round += 1) {
    let moved = false;
    for (const [from, to] of edges) {
      const [a, b] = [found.get(from), found.get(to)];
      if (from === to || a === undefined || b === undefined || a < b) continue;
      if (a >= 0 && b > 0 && a + 1 < nodes.length) { found.set(to, a + 1); moved = true; }
      else if (b <= 0 && a < 0 && -b + 1 < nodes.length) { found.set(from, b - 1); moved = true; }
    }
    if (!moved) break;
  }
  return found;
}

/** Near to where those are drawn already that they hang together with. */
function sorted(column, edges, place) {
  const height = (node) => {
    const near = edges.flatMap(([from, to]) => (from === node.key ? [place.get(to)] : to === node.key ? [place.get(from)] : [])).filter(Boolean);
    return near.length ? near.reduce((sum, other) => sum + other.y, 0) / near.length : Infinity;
  };
  return column.map((node, n) => [height(node), n, node]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((entry) => entry[2]);
}

function drawEdge(a, b, kind, lane) {
  if (!a || !b || a === b) return null;
  const [x1, y1, x2, y2] = [a.x + WIDE, a.y + TALL / 2, b.x, b.y + TALL / 2];
  const half = GAP_X / 2;
  const d = lane === null ? `M${x1} ${y1}C${x1 + half} ${y1} ${x2 - half} ${y2} ${x2 - 1} ${y2}`
    : `M${x1} ${y1}C${x1 + half} ${y1} ${x1 + half / 2} ${lane} ${x1 + half} ${lane}H${x2 - half}C${x2 - half / 2} ${lane} ${x2 - half} ${y2} ${x2 - 1} ${y2}`;
  return svg("path", { d, class: `graph-edge ${kind}`, "marker-end": "url(#graph-arrow)" });
}

function drawNode({ x, y, node }, middle) {
  const [first, second] = node.lines;
  const left = node.state ? 28 : 10;
  const icon = node.state ? stateIcon(node.state) : null;
  if (icon) {
    icon.setAttribute("x", x + 8);
    icon.setAttribute("y", y + 21);
    icon.setAttribute("width", 15);
    icon.setAttribute("height", 15);
  }
  const inner = [
    svg("title", {}, node.title),
    svg("rect", { x, y, width: WIDE, height: TALL, rx: 6, class: "graph-box" }),
    svg("text", { x: x + 10, y: y + 17, class: "graph-name" }, cut(first, 26)),
    icon,
    svg("text", { x: x + left, y: y + 33, class: "graph-more" }, cut(second, left > 10 ? 24 : 27)),
  ];
  const cls = `graph-node${node.key === middle ? " middle" : ""}${node.soft ? " soft-node" : ""}`;
  return node.href ? svg("a", { href: node.href, class: cls, "aria-label": node.title }, inner) : svg("g", { class: cls }, inner);
}

/** The end of a name says more than its beginning. */
function cut(text, most) {
  const all = [...text];
  return all.length <= most ? text : `…${all.slice(1 - most).join("")}`;
}
