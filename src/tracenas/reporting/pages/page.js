(() => {
  // Native <title> tooltips become one quick, styled tooltip, by pointer, touch or keyboard: a chart is one tab stop,
  // arrow keys go to the next mark. Without this script they stay native.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  document.body.append(tip);
  for (const title of document.querySelectorAll("main svg title")) {
    const owner = title.parentNode;
    owner.dataset.tip = title.textContent;
    owner.closest("svg.chart, .layers, .scroll")?.setAttribute("tabindex", "0");
    title.remove();
  }
  for (const owner of document.querySelectorAll("[data-tip][title]")) owner.removeAttribute("title");
  const middle = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const nearest = (marks, cost) => {
    let best = [null, Infinity];
    for (const mark of marks) {
      const price = cost(...middle(mark));
      if (price < best[1]) best = [mark, price];
    }
    return best[0];
  };
  let marked = null;
  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    const left = Math.min(x + 14, document.documentElement.clientWidth - box.width - 8);
    tip.style.transform = `translate(${Math.max(8, left)}px, ${y - box.height < 20 ? y + 18 : y - box.height - 12}px)`;
    tip.style.opacity = 1;
  };
  const hide = () => {
    marked?.classList.remove("marked");
    marked = null;
    tip.style.opacity = 0;
  };
  const mark = (one) => {
    hide();
    marked = one;
    marked.classList.add("marked");
    tip.textContent = marked.dataset.tip;
    marked.scrollIntoView({ block: "nearest", behavior: "instant" });
    place(...middle(marked));
  };
  const point = ({ target, clientX, clientY }) => {
    hide();
    if (!(target instanceof Element)) return;
    const reach = (x, y) => { const far = Math.hypot(x - clientX, y - clientY); return far < 14 ? far : Infinity; };
    const marks = target.closest("svg.chart")?.querySelectorAll("[data-tip]") ?? [];
    const owner = target.closest("[data-tip]") ?? nearest(marks, reach);
    if (!owner) return;
    tip.textContent = owner.dataset.tip;
    place(clientX, clientY);
  };
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("pointerleave", hide);
  addEventListener("scroll", () => (marked ? place(...middle(marked)) : hide()), { passive: true });
  document.addEventListener("focusin", ({ target }) => {
    if (!target.matches("[tabindex]:focus-visible")) return;
    const first = target.matches("[data-tip]") ? target : target.querySelector("[data-tip]");
    if (first) mark(first);
  });
  document.addEventListener("focusout", hide);
  const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    if (!marked || !turns[event.key]) return;
    event.preventDefault();
    const [[dx, dy], [x0, y0]] = [turns[event.key], middle(marked)];
    const next = nearest(event.target.querySelectorAll("[data-tip]"), (x, y) => {
      const [along, across] = [dx * (x - x0) + dy * (y - y0), Math.abs(dy * (x - x0) - dx * (y - y0))];
      return along > 0.5 ? along + 2 * across : Infinity;
    });
    if (next) mark(next);
  });
})();
