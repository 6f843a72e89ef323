// How the chart of the timeline is moved, by pointer and by keys, and what is said of the run that is pointed at.

/** Listen to what is done to a chart. */
export function listen(chart) {
  const picture = chart.picture;
  let from = null;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.pointerType === "touch") return;
    from = { x: event.clientX, moved: false, id: event.pointerId };
  });
  picture.addEventListener("pointermove", (event) => {
    if (from) {
      const by = event.clientX - from.x;
      if (!from.moved && Math.abs(by) < 4) return;
      if (!from.moved) picture.setPointerCapture(from.id);
      from.moved = chart.dragging = true;
      from.x = event.clientX;
      chart.hide();
      chart.does.pan(-by / chart.width);
    } else chart.show(event.target.closest("[data-tip]"), event.clientX, event.clientY);
  });
  const end = () => {
    from = null; // the click after a drag goes to the picture, which has captured the pointer, not to a bar
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
