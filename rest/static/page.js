// The page of kontext-serve: pictures and a prompt go to /v1/images/…, what comes back is shown and kept in IndexedDB.
// There is no build step: this file is what the browser runs.

const at = (id) => document.getElementById(id);
const SENT = ["image/png", "image/jpeg", "image/webp"]; // what the server reads; the rest is converted
const MOST_ENTRIES = 24;
const PREVIEWS = 30; // of an edit, at most one for each step
const MASK_SIDE = 1024; // pixels of a mask's longer side at most; the server fits it to the picture

const state = { pictures: [], strokes: [], stroke: null, cursor: null, running: null, result: null, previews: false };

// -- what the user is told --

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

function key() {
  return sessionStorage.getItem("key") ?? localStorage.getItem("key") ?? "";
}

function headers() {
  return key() ? { Authorization: `Bearer ${key()}` } : {};
}

async function explain(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status} ${response.statusText}`;
  }
}

async function look() {
  const server = at("server");
  try {
    const models = await fetch("/v1/models", { headers: headers() });
    at("key-form").hidden = models.status !== 401;
    if (!models.ok) {
      server.className = "gone";
      server.textContent = models.status === 401 ? "an API key is needed" : await explain(models);
      return;
    }
    const { data } = await models.json();
    state.previews = data[0].previews;
    const { problem } = await (await fetch("/health/ready")).json();
    server.className = problem ? "" : "ready";
    server.textContent = problem ? `${data[0].id}: ${problem}` : data[0].id;
  } catch {
    server.className = "gone";
    server.textContent = "the server does not answer";
  }
  if (server.className !== "ready") setTimeout(look, 3000);
}

// -- pictures --

async function addFiles(files) {
  fail("");
  for (const file of files) {
    try {
      const bitmap = await createImageBitmap(file);
      const blob = SENT.includes(file.type) ? file : await drawn(bitmap);
      state.pictures.push({ blob, url: URL.createObjectURL(blob), width: bitmap.width, height: bitmap.height });
      bitmap.close();
    } catch {
      fail(`${file.name || "What was pasted"} is not a picture that this browser can read.`);
    }
  }
  showPictures();
}

function drawn(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function setPictures(pictures) {
  state.pictures.forEach((each) => URL.revokeObjectURL(each.url));
  state.pictures = pictures;
  showPictures();
}

function showPictures() {
  const [first] = state.pictures;
  at("drop").hidden = Boolean(first);
  at("canvas-box").hidden = at("mask-tools").hidden = !first;
  if (first && at("picture").src !== first.url) {
    at("picture").src = first.url;
    at("canvas-box").style.setProperty("--aspect", first.width / first.height);
    const scale = Math.min(1, MASK_SIDE / Math.max(first.width, first.height));
    at("mask").width = Math.max(1, Math.round(first.width * scale));
    at("mask").height = Math.max(1, Math.round(first.height * scale));
    state.strokes = [];
  }
  at("pictures").replaceChildren(...state.pictures.map((each, index) => {
    const item = document.createElement("li");
    const image = Object.assign(new Image(), { src: each.url, alt: index ? `Reference ${index + 1}` : "The picture to edit" });
    const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "×" });
    remove.setAttribute("aria-label", `Remove picture ${index + 1}`);
    remove.onclick = () => {
      URL.revokeObjectURL(each.url);
      state.pictures.splice(index, 1);
      showPictures();
      (at("pictures").querySelector("button") ?? at("files")).focus();
    };
    item.append(image, remove);
    return item;
  }));
  drawMask();
  show("before");
}

function show(which) {
  for (const name of ["before", "after"]) {
    at(name).hidden = name !== which;
    at(`show-${name}`).setAttribute("aria-pressed", String(name === which));
  }
}

// -- the mask: strokes of points, drawn in the mask's own pixels --

function drawStrokes(context, colour) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const { width, points } of state.strokes) {
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points.length > 1 ? points.slice(1) : points) context.lineTo(...point);
    context.stroke();
  }
}

function drawMask() {
  const canvas = at("mask"), context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  drawStrokes(context, "#ff2d78");
  if (state.cursor && document.activeElement === canvas && canvas.matches(":focus-visible")) {
    context.strokeStyle = "#ff2d78";
    context.lineWidth = Math.max(1, canvas.width / 200);
    context.beginPath();
    context.arc(...state.cursor, brush() / 2, 0, 2 * Math.PI);
    context.stroke();
  }
  at("undo").disabled = at("clear").disabled = !state.strokes.length;
}

function brush() {
  return (Math.max(at("mask").width, at("mask").height) * at("brush").value) / 100;
}

function pointOf(event) {
  const canvas = at("mask"), box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
}

async function maskBlob() {
  if (!state.strokes.length) return null;
  const canvas = new OffscreenCanvas(at("mask").width, at("mask").height), context = canvas.getContext("2d");
  context.fillStyle = "black";
  context.fillRect(0, 0, canvas.width, canvas.height);
  drawStrokes(context, "white"); // white is repainted
  return canvas.convertToBlob({ type: "image/png" });
}

function paint(on) {
  at("paint").setAttribute("aria-pressed", String(on));
  at("mask").classList.toggle("painting", on);
}

function paintByKey(event) {
  const canvas = at("mask"), step = brush() / 2;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  state.cursor ??= [canvas.width / 2, canvas.height / 2];
  if (event.key === " ") {
    state.strokes.push({ width: brush(), points: [[...state.cursor]] });
  } else if (moves[event.key]) {
    const [dx, dy] = moves[event.key];
    state.cursor = [
      Math.min(canvas.width, Math.max(0, state.cursor[0] + dx)),
      Math.min(canvas.height, Math.max(0, state.cursor[1] + dy)),
    ];
  } else {
    return;
  }
  event.preventDefault();
  drawMask();
}

// -- an edit --

function options() {
  const value = (id) => at(id).value.trim();
  const found = { prompt: value("prompt"), seed: value("seed"), size: value("size") };
  for (const [name, id] of [["steps", "steps"], ["guidance", "guidance"], ["loras", "loras"], ["negative_prompt", "negative"]]) {
    if (value(id)) found[name] = value(id);
  }
  if (value("true-cfg") !== "1") found.true_cfg = value("true-cfg");
  if (state.pictures.length) {
    if (at("strength").valueAsNumber < 1) found.strength = value("strength");
    if (state.strokes.length) {
      found.mask_blur = value("mask-blur") || "0";
      found.paste_back = String(at("paste-back").checked);
    }
  }
  return found;
}

async function request(found, signal) {
  const streamed = { ...found, stream: true, progress: true, partial_images: state.previews ? PREVIEWS : 0 };
  if (!state.pictures.length) {
    const typed = Object.entries(streamed).map(([name, value]) =>
      [name, ["prompt", "negative_prompt", "size", "loras"].includes(name) || value === true ? value : Number(value)]);
    return fetch("/v1/images/generations", {
      method: "POST", signal, body: JSON.stringify(Object.fromEntries(typed)),
      headers: { "Content-Type": "application/json", ...headers() },
    });
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(streamed)) form.append(name, value);
  for (const { blob } of state.pictures) form.append("image[]", blob, "picture");
  const mask = await maskBlob();
  if (mask) form.append("mask", mask, "mask.png");
  return fetch("/v1/images/edits", { method: "POST", signal, body: form, headers: headers() });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const data = text.slice(0, end).split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

async function edit() {
  if (state.running) return;
  fail("");
  state.running = new AbortController();
  showRunning(true);
  try {
    const found = options();
    const response = await request(found, state.running.signal);
    if (!response.ok) {
      if (response.status === 401) at("key-form").hidden = false;
      throw new Error(await explain(response));
    }
    let finished = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.type === "kontext.progress") {
        at("progress").max = event.steps;
        at("progress").value = event.step;
        at("progress-text").textContent = `step ${event.step} of ${event.steps}`;
      } else if (event.type.endsWith(".partial_image")) {
        at("preview").src = `data:image/png;base64,${event.b64_json}`;
        at("preview").hidden = false;
      } else if (event.b64_json) {
        finished = event;
      }
    }
    if (!finished) throw new Error("The server ended its answer without a picture. Try again.");
    const after = toBlob(finished.b64_json);
    const entry = { time: Date.now(), options: found, size: finished.size, warnings: finished.warnings, after, before: state.pictures[0]?.blob ?? null };
    await remember(entry);
    showResult(entry);
  } catch (error) {
    if (error.name !== "AbortError") {
      fail(error instanceof TypeError ? "The server does not answer. Is it still running?" : sentence(error.message));
    }
  } finally {
    state.running = null;
    showRunning(false);
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function toBlob(base64) {
  const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

function showRunning(on) {
  at("running").hidden = at("cancel").hidden = !on;
  at("run").disabled = on;
  at("run").textContent = on ? "Editing…" : "Edit";
  at("preview").hidden = true;
  at("progress").removeAttribute("value");
  at("progress-text").textContent = on ? "waiting for its turn" : "";
  if (on) at("cancel").focus();
  else if (document.activeElement === document.body) at("run").focus();
}

function showResult(entry) {
  for (const id of ["compare-after", "compare-before"]) URL.revokeObjectURL(at(id).src);
  at("compare-after").src = at("download").href = URL.createObjectURL(entry.after);
  const [width, height] = entry.size.split("x");
  at("compare").style.setProperty("--aspect", width / height);
  at("compare").classList.toggle("alone", !entry.before);
  if (entry.before) at("compare-before").src = URL.createObjectURL(entry.before);
  else at("compare-before").removeAttribute("src");
  at("download").download = `edit-${entry.options.seed}.png`;
  at("facts").textContent = [`${entry.options.prompt}`, entry.size, `seed ${entry.options.seed}`, ...entry.warnings].join(" · ");
  at("show-after").disabled = false;
  state.result = entry;
  show("after");
}

// -- history --

const database = new Promise((resolve) => {
  const opening = indexedDB.open("kontext", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("edits", { keyPath: "id", autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => resolve(null); // as in a private window: then there is no history
});

async function store(mode, work) {
  const opened = await database;
  if (!opened) return null;
  return new Promise((resolve) => {
    const transaction = opened.transaction("edits", mode);
    const asked = work(transaction.objectStore("edits"));
    transaction.oncomplete = () => resolve(asked?.result ?? null);
    transaction.onerror = transaction.onabort = () => resolve(null);
  });
}

async function remember(entry) {
  await store("readwrite", (edits) => edits.add(entry));
  const ids = (await store("readonly", (edits) => edits.getAllKeys())) ?? [];
  for (const id of ids.slice(0, Math.max(0, ids.length - MOST_ENTRIES))) await store("readwrite", (edits) => edits.delete(id));
  await showHistory();
}

async function showHistory() {
  const entries = (await store("readonly", (edits) => edits.getAll())) ?? [];
  at("history").hidden = !entries.length;
  at("entries").querySelectorAll("img").forEach((image) => URL.revokeObjectURL(image.src));
  at("entries").replaceChildren(...entries.reverse().map((entry) => {
    const item = document.createElement("li");
    const open = Object.assign(document.createElement("button"), { type: "button", className: "open" });
    const label = Object.assign(document.createElement("span"), { textContent: entry.options.prompt });
    open.append(Object.assign(new Image(), { src: URL.createObjectURL(entry.after), alt: "" }), label);
    open.onclick = () => restore(entry);
    const remove = Object.assign(document.createElement("button"), { type: "button", className: "remove", textContent: "×" });
    remove.setAttribute("aria-label", `Forget “${entry.options.prompt}”`);
    remove.onclick = async () => {
      await store("readwrite", (edits) => edits.delete(entry.id));
      await showHistory();
    };
    item.append(open, remove);
    return item;
  }));
}

async function restore(entry) {
  const found = entry.options;
  const fields = { prompt: "prompt", seed: "seed", size: "size", steps: "steps", guidance: "guidance", loras: "loras", negative: "negative_prompt" };
  for (const [id, name] of Object.entries(fields)) at(id).value = found[name] ?? "";
  at("true-cfg").value = found.true_cfg ?? 1;
  at("strength").value = found.strength ?? 1;
  at("strength").dispatchEvent(new Event("input"));
  setPictures([]);
  if (entry.before) await addFiles([entry.before]);
  showResult(entry);
  scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

// -- what the user does --

for (const id of ["files", "more"]) {
  at(id).onchange = async () => {
    await addFiles(at(id).files);
    at(id).value = "";
  };
}
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) {
    event.preventDefault();
    addFiles(files);
  }
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  addFiles(event.dataTransfer.files);
});

at("paint").onclick = () => {
  paint(at("paint").getAttribute("aria-pressed") !== "true");
  if (at("mask").classList.contains("painting")) at("mask").focus();
};
at("mask").onkeydown = paintByKey;
at("mask").onfocus = at("mask").onblur = drawMask;
at("mask").onpointerdown = (event) => {
  at("mask").setPointerCapture(event.pointerId);
  state.stroke = { width: brush(), points: [pointOf(event)] };
  state.strokes.push(state.stroke);
  drawMask();
};
at("mask").onpointermove = (event) => {
  if (!state.stroke) return;
  state.stroke.points.push(pointOf(event));
  drawMask();
};
at("mask").onpointerup = at("mask").onpointercancel = () => (state.stroke = null);
at("undo").onclick = () => {
  state.strokes.pop();
  drawMask();
};
at("clear").onclick = () => {
  state.strokes = [];
  drawMask();
};

at("show-before").onclick = () => show("before");
at("show-after").onclick = () => show("after");
at("split").oninput = () => at("compare").style.setProperty("--split", `${at("split").value}%`);
at("strength").oninput = () => (at("strength-value").textContent = at("strength").valueAsNumber.toFixed(2));
at("dice").onclick = () => (at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]);
at("again").onclick = async () => {
  const { after } = state.result;
  setPictures([]);
  await addFiles([after]);
  at("prompt").focus();
};
at("controls").onsubmit = (event) => {
  event.preventDefault();
  edit();
};
at("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("controls").requestSubmit();
};
at("cancel").onclick = () => state.running?.abort();
at("forget").onclick = async () => {
  await store("readwrite", (edits) => edits.clear());
  await showHistory();
};
at("key-form").onsubmit = (event) => {
  event.preventDefault();
  (at("remember").checked ? localStorage : sessionStorage).setItem("key", at("key").value.trim());
  at("key").value = "";
  look();
};

look();
showHistory();
