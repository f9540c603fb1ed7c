// Sends chosen files in parts, and goes on where an earlier try stopped. Without it they go with the form, if they are small.
import { Sha256 } from "./sha256.js";

const box = document.getElementById("upload");
if (box) {
  const CHUNK = +box.dataset.chunk, HEAD = +box.dataset.head, MOST = +box.dataset.most;
  const WAITS = [1, 2, 4, 8, 15, 30, 30, 30, 60, 60], SILENT = 180;    // seconds
  const $ = (selector, root = box) => root.querySelector(selector);
  const input = $("input[type=file][name]"), folder = $("#id_folder"), form = input.form, list = $("ul"), items = [];
  let sending = false, submits = false;

  // ---- the hash of a file as far as it was sent
  async function hashTo(item, end) {         // of the file from its start to `end`
    if (!item.hash || item.hash.length > end) item.hash = new Sha256();
    while (item.hash.length < end) {
      const at = item.hash.length;
      item.hash.update(new Uint8Array(await item.file.slice(at, Math.min(at + CHUNK, end)).arrayBuffer()));
      if (item.received > item.hash.length) show(item, `looking at what is here, ${percent(item.hash.length / item.received)}`);
    }
    return item.hash.hex();
  }

  // ---- talking with the server: what fails on the way is tried again, what is refused is said
  class Stopped extends Error { constructor(why, final) { super(why); this.final = final; } }   // final: the same again is of no use
  const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

  async function ask(item, method, url, body, headers = {}) {
    for (let tried = 0; ; tried++) {
      const signal = AbortSignal.any([item.stop.signal, AbortSignal.timeout(SILENT * 1000)]);
      try {
        const token = $("[name=csrfmiddlewaretoken]", form).value;
        const reply = await fetch(url, { method, body, headers: { ...headers, "X-CSRFToken": token }, signal });
        if (reply.redirected || reply.status === 403) throw new Stopped("You are signed out. Sign in in another tab, then go on.");
        if (reply.status < 500 || reply.status === 507) return { status: reply.status, ...(reply.status === 204 ? {} : await reply.json()) };
      } catch (error) {
        if (error instanceof Stopped || item.stop.signal.aborted) throw error;
      }
      if (tried === WAITS.length) throw new Stopped("The server does not answer. What was sent is kept.");
      for (let left = WAITS[tried]; left > 0 && !item.stop.signal.aborted; left--) {
        show(item, `no answer, trying again in ${left} s`);
        await sleep(1);
      }
      if (item.stop.signal.aborted) throw new Stopped("");
    }
  }

  async function begin(item) {
    const { file } = item, body = new FormData();
    for (const [name, value] of Object.entries({ name: file.name, size: file.size, modified: file.lastModified })) body.append(name, value);
    body.append("head", file.slice(0, HEAD), "head");
    const reply = await ask(item, "POST", box.dataset.url, body);
    if (reply.error) throw new Stopped(reply.error, reply.status < 429);
    item.url = `${box.dataset.url}${item.id = reply.id}/`;
    item.received = reply.received;
    if (reply.received && await hashTo(item, reply.received) !== reply.sha256) {   // another file after all
      await ask(item, "DELETE", item.url);
      return begin(item);
    }
    document.querySelectorAll(`[data-upload="${reply.id}"]`).forEach((line) => line.remove());
  }

  async function send(item) {
    item.stop = new AbortController();
    await begin(item);
    const first = item.received, since = Date.now();
    for (let wrong = 0; item.received < item.file.size;) {
      const at = item.received, end = Math.min(at + CHUNK, item.file.size);
      const reply = await ask(item, "PUT", item.url, item.file.slice(at, end),
        { "Content-Type": "application/octet-stream", "Upload-Offset": at, "Upload-Sha256": await hashTo(item, end) });
      if (reply.error && reply.status !== 409 && (reply.status !== 422 || ++wrong > 3)) throw new Stopped(reply.error, reply.status === 415);
      if (reply.received !== undefined) item.received = reply.received;    // 409: another tab was faster
      if (item.received > at) wrong = 0;
      const rate = (item.received - first) / (Date.now() - since) * 1000, left = (item.file.size - item.received) / rate;
      if (rate > 0) show(item, `${percent(item.received / item.file.size)} · ${size(rate)}/s · about ${left < 90 ? `${Math.ceil(left)} s` : `${Math.ceil(left / 60)} min`} left`);
    }
  }

  // ---- what the reader sees
  const percent = (share) => `${Math.floor(share * 100)} %`;
  function size(bytes) {
    const step = Math.min(4, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
    return `${(bytes / 1024 ** step).toFixed(step ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][step]}`;
  }
  const say = (text) => { $("[data-say]").textContent = text; };
  const on = (item, mark) => item.row.querySelectorAll(mark);

  function show(item, text, error = "", final = false) {
    on(item, "[data-about]")[0].textContent = `${size(item.file.size)} · ${text}`;
    on(item, "[data-bar]")[0].value = item.received / item.file.size || 0;
    on(item, "[data-bar]")[0].hidden = final;
    const [alarm] = on(item, "[data-error]");
    alarm.hidden = !error;
    alarm.lastElementChild.textContent = error;
    on(item, "[data-retry]")[0].hidden = !error || final;
  }

  async function pump() {                    // one file after the other
    if (sending) return;
    sending = true;
    for (let item; (item = items.find((one) => one.state === "waiting"));) {
      item.state = "sending";
      try {
        await send(item);
        item.state = "done";
        show(item, "uploaded");
        item.row.append(Object.assign(document.createElement("input"), { type: "hidden", name: "uploads", value: item.id }));
        say(`${item.file.name} is uploaded.`);
      } catch (error) {
        if (item.state === "gone") continue;
        item.state = "stopped";
        const why = error instanceof Stopped ? error.message : error.name === "NotReadableError"
          ? "The file was changed or moved meanwhile: choose it again." : String(error);
        show(item, item.received ? `stopped at ${percent(item.received / item.file.size)}` : "not sent", why, error.final);
        submits = false;
      }
    }
    sending = false;
    if (submits && items.every((item) => item.state === "done")) form.requestSubmit();
  }

  function remove(item) {
    item.state = "gone";
    item.stop?.abort();
    item.row.remove();
    items.splice(items.indexOf(item), 1);
    if (item.url) fetch(item.url, { method: "DELETE", headers: { "X-CSRFToken": $("[name=csrfmiddlewaretoken]", form).value } }).catch(() => {});
  }

  function add(file) {
    const row = $("#upload-row").content.firstElementChild.cloneNode(true), item = { file, row, state: "waiting", received: 0 };
    on(item, "[data-name]").forEach((part) => part.append(` ${file.name}`));
    on(item, "[data-bar]")[0].ariaLabel = file.name;
    on(item, "[data-remove]")[0].addEventListener("click", () => remove(item));
    on(item, "[data-retry]")[0].addEventListener("click", () => { item.state = "waiting"; show(item, "waiting"); pump(); });
    list.append(row);
    items.push(item);
    show(item, "waiting");
  }

  function choose(files, endings) {
    files.sort((a, b) => a.name < b.name ? -1 : 1);
    const known = files.filter((file) => !endings || endings.some((ending) => file.name.toLowerCase().endsWith(ending)));
    known.slice(0, MOST - items.length).forEach(add);
    const left = files.length - Math.min(known.length, MOST);
    if (left) say(`${left} files were left out: of other kinds, or more than ${MOST}.`);
    pump();
  }

  input.addEventListener("change", () => { choose([...input.files]); input.value = ""; });
  folder.addEventListener("change", () => { choose([...folder.files], input.accept.split(",")); folder.value = ""; });
  $("[data-folder]").addEventListener("click", () => folder.click());
  form.addEventListener("submit", (event) => {
    if (items.every((item) => item.state === "done")) return;
    event.preventDefault();
    submits = items.every((item) => item.state !== "stopped");
    say(submits ? "The dataset is added as soon as all files are here." : "A file stopped. Go on with it, or remove it.");
  });
}
