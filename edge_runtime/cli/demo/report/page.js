(() => {
  const tip = document.getElementById("tooltip");
  const timeline = document.querySelector("svg.timeline");
  const light = (unit) => {
    if (!timeline) return;
    timeline.classList.toggle("focus", Boolean(unit));
    for (const part of timeline.querySelectorAll("[data-unit]")) {
      part.classList.toggle("on", part.dataset.unit === unit);
    }
  };
  const moved = new Set(
    [...document.querySelectorAll(".reissue")].map((part) => part.dataset.unit),
  );
  document.addEventListener("pointermove", (event) => {
    const target = event.target.closest?.("[data-tip]");
    tip.classList.toggle("on", Boolean(target));
    light(target && moved.has(target.dataset.unit) ? target.dataset.unit : "");
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    const x = Math.min(Math.max(event.clientX + 14, 8), innerWidth - width - 8);
    const above = event.clientY - height - 14;
    tip.style.transform = `translate(${x}px, ${above < 8 ? event.clientY + 18 : above}px)`;
  });
  document.addEventListener("pointerleave", () => tip.classList.remove("on"));
  for (const picture of document.querySelectorAll(".picture")) {
    picture.addEventListener("click", () => picture.classList.toggle("on"));
  }
  const plots = [...document.querySelectorAll(".scroll")];
  for (const plot of plots) {
    plot.addEventListener("scroll", () => {
      for (const other of plots) other.scrollLeft = plot.scrollLeft;
    });
  }
})();
