(() => {
  const open = document.getElementById("open");
  const status = document.getElementById("status");
  const link = open.getAttribute("href");
  const mark = "tried " + location.pathname;
  /* The user agents of these tablets are those of desktops, which have no touch screen. */
  const unsure = "tablet" in open.dataset, tablet = unsure && navigator.maxTouchPoints > 1;
  if (tablet) {
    for (const part of document.querySelectorAll("[data-only]")) part.hidden = part.dataset.only === "desktop";
  }
  let tries = Number((/[?&]n=(\d{1,3})(?:&|$)/.exec(location.search) || [])[1] || 0), left = false;
  try {
    tries = Math.max(tries, Number(sessionStorage.getItem(mark)) || 0);
  } catch { /* Without storage, the `n` in the URL counts the tries. */ }
  const count = () => {
    tries += 1;
    try { sessionStorage.setItem(mark, tries); } catch { /* Without storage, the `n` in the URL counts the tries. */ }
  };
  const late = () => setTimeout(() => {
    if (!document.hidden && !status.textContent) status.textContent = status.dataset.late;
  }, 2000);
  const back = () => {
    status.textContent = status.dataset.back;
    document.getElementById("help").open = true;
  };
  const attempt = () => {
    if (tries) return;
    count();
    history.replaceState(null, "", (location.search ? location.search + "&" : "?") + "n=1");
    location.href = open.href;
    late();
  };
  /* Wait for `load`, because leaving the page earlier would stop its parsing. */
  addEventListener("load", () => {
    const [visit] = performance.getEntriesByType("navigation");
    const again = visit && (visit.type === "reload" || visit.type === "back_forward");
    if (!("auto" in open.dataset) || unsure !== tablet || again) return;
    /* A browser ignores an attempt of a page in the background. */
    if (document.hidden) document.addEventListener("visibilitychange", attempt, {once: true});
    else attempt();
  });
  open.addEventListener("click", () => {
    count();
    /* Safari does not open the same URL again after the user has cancelled it once. */
    if (tries > 1) open.href = link + (link.includes("?") ? "&n=" : "?n=") + tries;
    late();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) left = true;
    else if (left) back();
  });
  addEventListener("pageshow", (event) => { if (event.persisted) back(); });
})();
