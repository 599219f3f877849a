(() => {
  // Native <title> tooltips become one quick, styled tooltip. Without this script they stay native.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  document.body.append(tip);
  for (const title of document.querySelectorAll("main svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  const hide = () => { tip.style.opacity = 0; };
  document.addEventListener("pointermove", (event) => {
    const owner = event.target instanceof Element && event.target.closest("[data-tip]");
    if (!owner) return hide();
    tip.textContent = owner.dataset.tip;
    const box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const y = event.clientY - box.height - 12;
    tip.style.transform = `translate(${Math.max(8, x)}px, ${y < 8 ? event.clientY + 18 : y}px)`;
    tip.style.opacity = 1;
  });
  document.addEventListener("pointerleave", hide);
  addEventListener("scroll", hide, { passive: true });
})();
