// Shows the text of whatever is pointed at or tapped. Without it the page loses its tool tips and nothing else.
(() => {
  const tip = document.getElementById("tip");
  const show = (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (!target) { tip.hidden = true; return; }
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), gap = 14;
    const left = Math.min(Math.max(6, event.clientX - box.width / 2), innerWidth - box.width - 6);
    const above = event.clientY - box.height - gap;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : event.clientY + gap}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
