// Makes pages live. Without it every page works: it only swaps in what the server rendered, copies, and adds keys.
(() => {
  "use strict";
  const POLL = 3000, GRACE = 4000, STALE = 12000, MOST = 2;
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // ---- connection: a socket if there is one, else asking every 3 s
  const live = $("#live-socket");
  let open = false, lost = Date.now(), answered = Date.now(), asking = false, failures = 0, askAt = 0, fetches = 0, shown = 0, again = 0;

  const whole = async (reply) => [reply, await reply.text()];
  const get = (url) => fetch(url, { cache: "no-store", signal: AbortSignal.timeout(STALE) }).then(whole);   // what comes later is no answer

  function show(state, why) {
    all("[data-link]").forEach((part) => {
      part.hidden = part.dataset.link !== state;
      if (why && part.dataset.link === state) part.title = why;
    });
    $("[data-since]")?.replaceChildren(new Date(answered).toISOString().slice(11, 19));   // UTC, as all times of the site
  }

  const FOCUSABLE = "a[href], button, summary, input, select, textarea, [tabindex]";
  const waiting = new Map();               // fragments that came while the reader was using the old one

  const typed = (field) => field.value !== field.defaultValue && field.type !== "hidden";
  function busy(old) {                      // never take away what is being typed, pressed or selected right now
    const field = document.activeElement, selected = document.getSelection();
    return (old.contains(field) && field.matches("input, textarea, select")) || all("input, textarea", old).some(typed)
      || $(":active", old) || (old.id === "main" && $("details.confirm[open]", old))   // its row may have moved
      || (selected && !selected.isCollapsed && old.contains(selected.anchorNode));
  }

  function place(fresh) {                   // swap by id; what the reader opened, scrolled or focused survives
    const old = fresh.id && document.getElementById(fresh.id);
    waiting.delete(fresh.id);
    all("[name=csrfmiddlewaretoken]", fresh).forEach((field) => field.remove());   // added again when sent, see below
    if (!old || old.isEqualNode(fresh)) return;
    if (busy(old)) return void waiting.set(fresh.id, fresh);
    const pairs = (selector) => all(selector, old).map((was, i) => [was, all(selector, fresh)[i]]).filter(([, now]) => now);
    pairs("details").forEach(([was, now]) => { now.open = was.open; });
    pairs("[data-tick]").forEach(([was, now]) => { if (was.textContent !== now.textContent) now.classList.add("changed"); });
    const scrolled = pairs(".log, .table-wrap").map(([was, now]) => [now, was.scrollTop + was.clientHeight > was.scrollHeight - 8, was.scrollTop, was.scrollLeft]);
    pairs("[data-keep]").forEach(([was, now]) => now.replaceChildren(...was.childNodes));   // what was said to the reader stays
    const focused = all(FOCUSABLE, old).indexOf(document.activeElement);
    const state = (part) => part.id === "work" ? part.dataset.event : $(".badge", part)?.className;
    if (state(old) !== state(fresh) && fresh.id !== "main" && $("[data-follow]")) refresh();
    old.replaceWith(fresh);
    window.htmx?.process(fresh);
    scrolled.forEach(([box, atEnd, top, left]) => { box.scrollTop = atEnd ? box.scrollHeight : top; box.scrollLeft = left; });
    if (focused >= 0) all(FOCUSABLE, fresh)[focused]?.focus({ preventScroll: true });
  }

  const swap = (html) => [...Object.assign(document.createElement("template"), { innerHTML: html }).content.children].forEach(place);

  async function refresh() {                // a job changed its state: what the page says elsewhere may be old
    clearTimeout(again);
    const mine = ++fetches, [reply, html] = await get(location.href).catch(() => []);
    if (mine < shown) return;               // a newer answer was faster
    if (!reply || reply.status >= 500) return void (again = setTimeout(refresh, POLL * (1 + Math.random()) * 2 ** Math.min(mine - shown - 1, MOST)));   // no other news may come
    if (!reply.ok || reply.redirected) return;
    shown = mine;
    const page = new DOMParser().parseFromString(html, "text/html");
    document.title = page.title;
    place(document.adoptNode(page.getElementById("main")));
  }

  async function ask() {
    if (asking) return;
    asking = true;
    try {
      const [reply, html] = await get(live.dataset.poll);
      if (reply.redirected || reply.status === 403) return show("stale", "You are signed out. Reload the page to sign in.");
      if (!reply.ok) throw new Error(String(reply.status));
      if (open) return;                     // the socket came back meanwhile and knows more
      swap(html);
      [answered, failures] = [Date.now(), 0];
      show("polling");
    } catch { failures = Math.min(failures + 1, MOST); } finally {
      asking = false;
      askAt = Date.now() + Math.random() * POLL * 2 ** failures;   // all pages miss the server at once, and must not ask at once
    }
  }

  function look() {
    [...waiting.values()].forEach(place);
    if (open || document.hidden) return;
    if (Date.now() - answered > STALE) show("stale");
    if (Date.now() - lost > GRACE && Date.now() >= askAt) ask();
  }

  if (live) {
    document.addEventListener("htmx:wsOpen", () => { open = true; answered = Date.now(); show("live"); });
    document.addEventListener("htmx:wsClose", () => { if (open) { open = false; lost = answered = Date.now(); show("connecting"); } });
    document.addEventListener("htmx:wsBeforeMessage", (event) => {
      answered = Date.now();
      if (/hx-swap-oob="(?!true|outerHTML)/.test(event.detail.message)) return;   // lines that are appended: htmx does that
      event.preventDefault();
      swap(event.detail.message);
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden && !open) { answered = Date.now(); ask(); } });
    window.addEventListener("pageshow", (event) => { if (event.persisted) { open = false; lost = answered = Date.now(); ask(); } });
    if (!("WebSocket" in window)) lost = 0;
    setInterval(look, POLL);
  }

  // ---- forms that a fragment brought without a token (it was rendered for nobody in particular)
  document.addEventListener("submit", (event) => {
    const form = event.target, token = $("meta[name=csrf-token]")?.content;
    if (form.method !== "post" || !token || form.elements.csrfmiddlewaretoken) return;
    form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "csrfmiddlewaretoken", value: token }));
  }, true);

  // ---- copy, dismiss, menus
  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(source);
    try { await navigator.clipboard.writeText(source.textContent); } catch { document.execCommand("copy"); }
    getSelection().removeAllRanges();
    const word = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = word; }, 1600);
  }

  document.addEventListener("click", (event) => {
    const at = (selector) => event.target.closest(selector);
    if (at("[data-copy]")) copy(at("[data-copy]"));
    if (at("[data-dismiss]")) at("li, .toast").remove();
    if (at("[data-keys]")) keys(!keysOn());
    all("details.confirm[open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; });
  });

  // ---- keys: / search, j k and arrows for the neighbours in a list, Escape closes; they can be turned off
  const keysOn = () => { try { return localStorage.getItem("keys") !== "off"; } catch { return true; } };
  function keys(on) {
    try { localStorage.setItem("keys", on ? "on" : "off"); } catch { /* private windows forget */ }
    all("[data-keys]").forEach((button) => { button.textContent = on ? "Turn off" : "Turn on"; });
  }
  keys(keysOn());

  const WHERE = { j: "next", ArrowRight: "next", k: "prev", ArrowLeft: "prev" };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return all("details.confirm[open]").forEach((menu) => { menu.open = false; $("summary", menu).focus(); });
    if (!keysOn() || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, [contenteditable]")) return;
    if (event.key === "/" && $("[data-search]")) { event.preventDefault(); $("[data-search]").focus(); $("[data-search]").select?.(); }
    const scroller = event.target.closest(".log, .table-wrap, pre");
    const link = WHERE[event.key] && !(scroller && event.key.startsWith("Arrow")) && $(`[data-key="${WHERE[event.key]}"]`);
    if (link) link.click();
  });
})();
