"use strict";
// The server renders every part of the page. This script replaces the parts that have
// changed, draws the plots, and sends the requests of the buttons.
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  root.classList.add("live");

  // Replaces a part and keeps what the reader has opened, focused and scrolled to.
  function replace(id, html) {
    const part = byId(id);
    if (!part) return;
    const open = new Set([...part.querySelectorAll("details[open]")].map((d) => d.dataset.key));
    const active = part.contains(document.activeElement) ? document.activeElement : null;
    const key = active && (active.closest("[data-key]")?.dataset.key ?? (active.classList.contains("tail") ? "tail" : ""));
    const tail = part.querySelector(".tail");
    const atEnd = !tail || tail.scrollHeight - tail.scrollTop - tail.clientHeight < 8;
    const top = tail?.scrollTop ?? 0;
    part.innerHTML = html; // escaped by the server's templates; the policy forbids inline scripts
    for (const d of part.querySelectorAll("details")) d.open = open.has(d.dataset.key);
    const fresh = part.querySelector(".tail");
    if (fresh) fresh.scrollTop = atEnd ? fresh.scrollHeight : top;
    if (key === "tail") fresh?.focus({preventScroll: true});
    else if (key) {
      const again = [...part.querySelectorAll("[data-key]")].find((e) => e.dataset.key === key);
      (again?.querySelector("summary") ?? again)?.focus({preventScroll: true});
    }
  }

  // A click on an element that is replaced between the press and the release is lost, so
  // that parts wait for the release.
  let pressed = false, waiting = {};
  function show(parts) {
    Object.assign(waiting, parts);
    if (pressed) return;
    for (const [id, html] of Object.entries(waiting)) replace(id, html);
    waiting = {};
  }
  addEventListener("pointerdown", (e) => { pressed = e.button === 0; }); // only this button clicks
  // A menu, and another window, take the release.
  for (const end of ["pointerup", "pointercancel", "contextmenu", "blur"]) addEventListener(end, () => setTimeout(() => { pressed = false; show({}); }));

  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  function bytes(n) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let i = 0;
    while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
    return (i && n < 10 ? n.toFixed(1) : Math.round(n)) + " " + units[i];
  }
  const clock = (seconds) => new Date(seconds * 1000).toTimeString().slice(0, 8);
  const plots = new Map(); // by the element that holds each
  let history = null;
  const widthOf = (place) => Math.max(Math.floor(place.clientWidth), 200);
  const grown = new ResizeObserver((all) => {
    for (const {target} of all) {
      const u = plots.get(target), width = widthOf(target);
      if (u && u.width !== width) u.setSize({width, height: 170});
    }
  });
  function plot(id, series, data, format) {
    const place = byId(id);
    place.replaceChildren();
    if (!data[0].length) {
      place.textContent = "The first values come 10 seconds after the start.";
      return;
    }
    const end = data[0].at(-1);
    const axis = {stroke: colour("dim"), grid: {stroke: colour("line"), width: 1}, ticks: {stroke: colour("line"), width: 1}};
    const u = new uPlot({width: widthOf(place), height: 170, cursor: {y: false},
      scales: {x: {range: [end - 900, end + 15]}, y: {range: (_, lo, hi) => [0, Math.max(hi, 4)]}},
      axes: [{...axis, values: (_, all) => all.map((at) => clock(at).slice(0, 5))}, {...axis, size: 62, values: (_, all) => all.map(format)}],
      series: [{label: "at", value: (_, v) => (v == null ? "–" : clock(v))}, ...series.map(([label, name]) => ({label, stroke: colour(name), fill: colour(name) + "22", width: 1.5, points: {show: data[0].length < 3}, value: (_, v) => (v == null ? "–" : format(v))}))]}, data, place);
    plots.set(place, u);
    grown.observe(place);
  }
  function draw() {
    if (!history) return;
    for (const u of plots.values()) u.destroy();
    plots.clear();
    const h = history, whole = (n) => (Number.isInteger(n) ? String(n) : "");
    plot("bytes", [["up", "up"], ["down", "down"]], [h.time, h.up, h.down], bytes);
    plot("failures", [["ended", "up"], ["failed", "failed"]], [h.time, h.ended, h.failed], whole);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const live = byId("live");
  let stream, retry;
  function connect() {
    clearTimeout(retry);
    stream?.close();
    if (document.hidden) return;
    const q = byId("q").value.trim();
    stream = new EventSource("page/events" + (q ? "?q=" + encodeURIComponent(q) : ""));
    stream.addEventListener("parts", (e) => {
      show(JSON.parse(e.data));
      live.textContent = "Live, " + new Date().toLocaleTimeString([], {hour12: false}) + ".";
      live.className = "";
    });
    stream.addEventListener("history", (e) => { history = JSON.parse(e.data); draw(); });
    stream.onerror = () => {
      if (stream.readyState !== EventSource.CLOSED) return; // a stream is short; the browser connects again
      live.textContent = "Not live: the ambassador does not answer, or too many pages are open. Trying again.";
      retry = setTimeout(connect, 5000);
    };
  }
  // A page that nobody sees costs nothing.
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return connect();
    clearTimeout(retry);
    stream?.close();
    live.textContent = "Paused.";
  });
  let typing;
  byId("q").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(connect, 250); });
  byId("filter").addEventListener("submit", (e) => { e.preventDefault(); connect(); });

  const actions = byId("actions"), result = byId("result");
  actions?.addEventListener("submit", (e) => e.preventDefault());
  function say(text, good) { result.textContent = text; result.className = good ? "ok" : "bad"; }
  document.addEventListener("click", async (e) => {
    const button = e.target.closest("button.act");
    if (!button || button.dataset.ask && !confirm(button.dataset.ask)) return;
    const token = byId("token"), headers = {};
    if (token) {
      if (!token.value.trim()) { say("Give the token first.", false); token.focus(); return; }
      headers.Authorization = "Bearer " + token.value.trim();
    }
    try {
      const answer = await fetch(button.dataset.path, {method: "POST", headers, redirect: "error"});
      const body = await answer.json().catch(() => ({}));
      const failed = body.trials?.filter((t) => !t.ok).map((t) => t.error);
      if (answer.ok && failed?.length) say(button.textContent + ": " + failed.join("; "), false);
      else if (answer.ok) say(button.textContent + ": done.", true);
      else say(button.textContent + ": " + (body.error ?? "status " + answer.status) + (body.hint ? " (" + body.hint + ")" : ""), false);
    } catch (err) {
      say(button.textContent + ": " + err.message, false);
    }
  });
  connect();
})();
