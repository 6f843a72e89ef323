// How the chart of the timeline is moved, by mouse, fingers and keys, and what is said of the run that is pointed at.

const SLACK = 4; // px that a pointer may move and still mean what it is on

/** Listen to what is done to a chart. */
export function listen(chart) {
  const picture = chart.picture;
  // What is held down, by pointer ID: a mouse button, or up to two fingers. A finger that goes up or down scrolls
  // the page (`touch-action` in today.css), and the browser takes it away from us.
  const held = new Map();
  let moved = false;
  const spread = () => {
    const [a, b] = [...held.values()];
    return { gap: Math.max(20, Math.abs(a - b)), at: (a + b) / 2 };
  };
  picture.addEventListener("pointerdown", (event) => {
    if (event.button === 0 && held.size < 2) held.set(event.pointerId, event.clientX);
  });
  picture.addEventListener("pointermove", (event) => {
    const was = held.get(event.pointerId);
    if (was === undefined) {
      if (!held.size) chart.show(event.target.closest("[data-tip]"), event.clientX, event.clientY);
      return;
    }
    const by = event.clientX - was;
    if (!moved && Math.abs(by) < SLACK) return;
    // What a finger is on is drawn anew as it moves: only who has captured it goes on hearing of it.
    if (!moved) for (const id of held.keys()) picture.setPointerCapture(id);
    moved = chart.dragging = true;
    chart.hide();
    const before = held.size === 2 ? spread() : null;
    held.set(event.pointerId, event.clientX);
    if (before) {
      const after = spread();
      const at = (after.at - picture.getBoundingClientRect().left) / chart.width;
      chart.does.pan((before.at - after.at) / chart.width);
      chart.does.zoom(before.gap / after.gap, at);
    } else chart.does.pan(-by / chart.width);
  });
  const end = (event) => {
    held.delete(event.pointerId);
    if (held.size) return;
    moved = false; // the click after a drag goes to the picture, which has captured the pointer, not to a bar
    chart.dragging = false;
  };
  picture.addEventListener("pointerup", end);
  picture.addEventListener("pointercancel", end);
  picture.addEventListener("pointerleave", () => chart.hide());
  picture.addEventListener("dragstart", (event) => event.preventDefault());
  picture.addEventListener(
    "wheel",
    (event) => {
      const at = (event.clientX - picture.getBoundingClientRect().left) / chart.width;
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        chart.does.zoom(event.deltaY > 0 ? 1.25 : 0.8, at);
      } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        event.preventDefault();
        chart.does.pan(event.deltaX / chart.width);
      }
    },
    { passive: false },
  );
  picture.addEventListener("focusin", (event) => {
    const at = event.target.getBoundingClientRect();
    if (event.target !== picture) chart.show(event.target, at.left, at.bottom);
  });
  picture.addEventListener("focusout", () => chart.hide());
  chart.box.addEventListener("keydown", (event) => key(chart, event));
}

function key(chart, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const does = {
    ArrowLeft: () => chart.does.pan(-0.2),
    ArrowRight: () => chart.does.pan(0.2),
    "+": () => chart.does.zoom(0.5),
    "=": () => chart.does.zoom(0.5),
    "-": () => chart.does.zoom(2),
    l: () => step(chart, 1),
    h: () => step(chart, -1),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  event.stopPropagation();
  does();
}

/** The focus to the next or previous run: of the row whose label has it, or from the run that has it. */
function step(chart, by) {
  const inLabels = chart.labels.contains(document.activeElement);
  const lane = inLabels
    ? chart.picture.querySelectorAll(".lane")[
        [...chart.labels.children].findIndex((one) => one.contains(document.activeElement))
      ]
    : document.activeElement.closest(".lane");
  const links = [...(lane ?? chart.picture).querySelectorAll("a")].sort((a, b) => a.getBBox().x - b.getBBox().x);
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + by))]?.focus({
    preventScroll: true,
  });
}
