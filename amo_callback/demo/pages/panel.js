(() => {
  const at = (id) => document.getElementById(id);
  const phone = at("phone"), lines = at("lines"), which = at("which");
  let last = 0, life = { connections: [] }, ended = false;

  const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };

  function standing() {
    const ready = life.not_ready.length ? "service not ready: " + life.not_ready.join(", ") : "service ready";
    set(at("ready"), ready);
    at("ready").className = life.not_ready.length ? "bad" : "good";
    set(at("amo"), life.away ? "amoCRM unreachable" : "amoCRM reachable");
    at("amo").className = life.away ? "bad" : "good";
    set(at("rotation"), `refresh tokens: ${life.issued} issued, ${life.spent} spent, ${life.again} presented after being spent`);
  }

  function card(one) {
    let article = at("c-" + one.id);
    if (!article) {
      article = at("connection").content.firstElementChild.cloneNode(true);
      article.id = "c-" + one.id;
      at("connections").append(article);
      which.append(new Option(one.domain, one.id));
      which.value = one.id;
    }
    const part = (name) => article.querySelector("." + name);
    const share = Math.min(one.left / one.lifetime, 1);
    set(part("domain"), one.domain);
    set(part("status"), one.status + (one.reason ? ": " + one.reason : ""));
    part("status").className = "status " + one.status;
    part("left").style.width = 100 * share + "%";
    part("due").hidden = one.due_in === null;
    part("due").style.left = 100 * Math.max((one.left - (one.due_in || 0)) / one.lifetime, 0) + "%";
    part("token").setAttribute("aria-label", "The access token's lifetime: " + Math.round(100 * share) + "% left");
    const due = one.due_in === null ? "no refresh is scheduled"
      : one.due_in > 0 ? "refresh in " + Math.round(one.due_in) + " s, at the mark" : "the refresh is due";
    set(part("times"), `Access token: ${Math.round(one.left)} of ${one.lifetime} s left; ${due}.`);
    set(part("owners"), one.owners.join(", ") || "none");
    set(part("pairs"), String(one.pairs));
    set(part("backend"), one.backend_status + ", " + one.backend_words);
    part("backend").className = "backend" + (one.backend_status === 200 ? "" : " bad");
    const option = [...which.options].find((each) => each.value === one.id);
    if (option) set(option, one.domain);
  }

  function connections() {
    const ids = new Set(life.connections.map((one) => one.id));
    for (const article of [...at("connections").children]) {
      if (ids.has(article.id.slice(2))) continue;
      article.remove();
      for (const option of [...which.options]) if (option.value === article.id.slice(2)) option.remove();
    }
    life.connections.forEach(card);
    at("empty").hidden = ids.size > 0;
    at("target").hidden = ids.size < 2;
    for (const button of document.querySelectorAll("button[data-one]")) button.disabled = !ids.size;
  }

  function story(fresh) {
    for (const line of fresh) {
      const item = document.createElement("li");
      item.className = line.who + " " + line.level;
      for (const [name, text] of [["when", line.at], ["who", line.who], ["domain", line.domain], ["says", line.text]]) {
        const part = document.createElement("span");
        part.className = name;
        part.textContent = text;
        item.append(part, " ");
      }
      lines.prepend(item);
      last = line.number;
    }
    const [latest] = fresh.slice(-1);
    if (latest) set(at("latest"), `${latest.at} ${latest.who}: ${latest.text}`);
    while (lines.children.length > 200) lines.lastElementChild.remove();
  }

  async function look() {
    try {
      const answer = await fetch("/snapshot?after=" + last);
      if (ended) location.reload();  // a new demo has other secrets, and numbers its lines from 1
      life = await answer.json();
      story(life.lines);
      standing();
      connections();
    } catch {
      ended = true;
      set(at("ready"), "the demo has ended");
      at("ready").className = "bad";
    }
    setTimeout(look, 500);
  }

  for (const button of document.querySelectorAll("button[data-trial]")) {
    button.addEventListener("click", () => {
      const address = "/scenarios/" + button.dataset.trial + "?connection=" + encodeURIComponent(which.value);
      fetch(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" }).catch(() => {});
    });
  }
  look();
})();
