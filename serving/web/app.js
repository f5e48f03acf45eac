// The page's only script. It builds elements, never markup, from what the server and files say.

const POLL_MS = 2000;
const TOP_K = 5;
const SIDES = ["a", "b"];
const NONE = "";

const byId = (id) => document.getElementById(id);
const state = { tasks: new Map(), known: NONE, image: null, token: NONE, asked: { a: 0, b: 0 } };

function element(name, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: bytes < 1e7 ? 2 : 0 })} MB`;
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (state.token) headers.authorization = `Bearer ${state.token}`;
  const response = await fetch(path, { ...options, headers });
  let body = {};
  try {
    body = await response.json();
  } catch {
    // An answer that is no JSON has its status alone.
  }
  if (!response.ok) {
    if (response.status === 401) byId("access").open = true;
    throw new Error(body.error ?? `the server answered ${response.status}`);
  }
  return body;
}

function say(text, bad = false) {
  byId("state").textContent = text;
  byId("state").classList.toggle("bad", bad);
}

function fill(select, options, kept) {
  select.replaceChildren(
    ...options.map(([value, text, disabled]) => {
      const option = element("option", { text, value });
      option.disabled = Boolean(disabled);
      return option;
    }),
  );
  if (options.some(([value]) => value === kept)) select.value = kept;
}

function fillVersions(side) {
  const select = byId(`version-${side}`);
  const task = state.tasks.get(byId(`task-${side}`).value);
  const versions = task ? task.versions : [];
  const options = versions.map((one) => [
    one.version,
    one.state === "READY" ? one.version : `${one.version} (${one.state.toLowerCase()})`,
    one.state !== "READY",
  ]);
  fill(select, [[NONE, "current"], ...options.reverse()], select.value);
  select.disabled = !task;
}

async function loadTasks() {
  const { tasks } = await call("v1/tasks");
  state.tasks = new Map(tasks.map((task) => [task.task, task]));
  const names = tasks.map((task) => [
    task.task,
    `${task.task} (${task.n_classes} classes)`,
    !task.versions.some((one) => one.state === "READY"),
  ]);
  fill(byId("task-a"), names, byId("task-a").value);
  fill(byId("task-b"), [[NONE, "nothing"], ...names], byId("task-b").value);
  SIDES.forEach(fillVersions);
}

async function showStatus() {
  const status = await call("v1/status");
  const known = `${status.tasks} ${status.versions}`;
  if (known !== state.known) {
    await loadTasks();
    state.known = known;
  }
  say(
    `${status.ready ? "ready" : "not ready"}: ${status.tasks} tasks, ${status.versions} versions`,
    !status.ready,
  );
  const numbers = [
    ["Images waiting", status.queued_images],
    ["Requests under way", status.in_flight_requests],
    ["Swaps so far", status.swaps],
    ["Mean of a merge", status.swaps ? `${(status.merge_ms / status.swaps).toFixed(1)} ms` : "–"],
    ["Backbone", megabytes(status.backbone_bytes)],
  ];
  byId("numbers").replaceChildren(
    ...numbers.flatMap(([name, value]) => [
      element("dt", { text: name }),
      element("dd", { text: String(value) }),
    ]),
  );
  byId("budget").max = Math.max(status.budget_bytes, 1);
  byId("budget").value = status.weights_bytes;
  byId("budget-text").textContent =
    `${megabytes(status.weights_bytes)} of ${megabytes(status.budget_bytes)}`;
  byId("hot").replaceChildren(
    ...status.in_memory.map((one) =>
      element(
        "tr",
        {},
        element("td", { text: one.pinned ? `${one.task} (pinned)` : one.task }),
        element("td", { text: one.version }),
        element("td", { text: one.mixed ? "mixed" : megabytes(one.size_bytes) }),
      ),
    ),
  );
}

function bars(top) {
  return element(
    "ol",
    { className: "bars" },
    ...top.map(({ label, probability }) =>
      element(
        "li",
        {},
        element(
          "span",
          {},
          element("span", { className: "name", text: label }),
          element("span", { className: "share", text: `${(100 * probability).toFixed(1)} %` }),
        ),
        element("progress", { max: 1, value: probability, "aria-label": label }),
      ),
    ),
  );
}

function showAnswer(article, answer) {
  const { ms } = answer;
  article.replaceChildren(
    element("h3", { text: `${answer.task} ${answer.version}` }),
    bars(answer.predictions[0].top),
    element("p", {
      className: "meta latency",
      text:
        `${ms.total.toFixed(1)} ms: decode ${ms.decode.toFixed(1)}, ` +
        `queue ${(ms.queue - Math.min(ms.swap, ms.queue)).toFixed(1)}, ` +
        `swap ${ms.swap.toFixed(1)}, compute ${ms.compute.toFixed(1)}`,
    }),
    element(
      "p",
      { className: "meta" },
      "delta ",
      element("code", { text: answer.delta_sha256.slice(0, 16), title: answer.delta_sha256 }),
    ),
  );
}

async function ask(side) {
  const article = byId(`answer-${side}`);
  const task = byId(`task-${side}`).value;
  article.hidden = task === NONE && side === "b";
  if (!state.image || task === NONE) return;
  const number = ++state.asked[side];
  article.classList.add("waiting");
  const query = new URLSearchParams({ top_k: TOP_K });
  const version = byId(`version-${side}`).value;
  if (version) query.set("version", version);
  try {
    const answer = await call(`v1/tasks/${encodeURIComponent(task)}/predict?${query}`, {
      method: "POST",
      body: state.image,
      headers: { "content-type": state.image.type || "application/octet-stream" },
    });
    // Of two questions on one side the later one counts, whichever was answered first.
    if (number === state.asked[side]) showAnswer(article, answer);
  } catch (error) {
    if (number === state.asked[side]) {
      article.replaceChildren(
        element("h3", { text: task }),
        element("p", { className: "error", role: "alert", text: error.message }),
      );
    }
  } finally {
    if (number === state.asked[side]) article.classList.remove("waiting");
  }
}

async function askAll() {
  await Promise.all(SIDES.map(ask));
  await refresh();
}

function take(image) {
  if (!image) return;
  state.image = image;
  const preview = byId("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(image);
  preview.hidden = false;
  byId("again").disabled = false;
  askAll();
}

const imageOf = (items) => [...(items ?? [])].find((file) => file.type.startsWith("image/"));

// A poll also finds tasks and versions that came while the page was open.
async function refresh() {
  try {
    await showStatus();
  } catch (error) {
    say(error.message, true);
  }
}

for (const side of SIDES) {
  byId(`task-${side}`).addEventListener("change", () => {
    fillVersions(side);
    ask(side);
  });
  byId(`version-${side}`).addEventListener("change", () => ask(side));
}
byId("file").addEventListener("change", (event) => take(event.target.files[0]));
byId("again").addEventListener("click", askAll);
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = byId("token").value;
  refresh();
});
document.addEventListener("paste", (event) => take(imageOf(event.clipboardData?.files)));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  take(imageOf(event.dataTransfer?.files));
});

await refresh();
setInterval(() => {
  if (!document.hidden) refresh();
}, POLL_MS);
