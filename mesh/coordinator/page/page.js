// The status page: draws what /v1 tells to who has a token, and changes nothing.
//
// The token stays in the tab's sessionStorage and goes into the header Authorization only. A *session* is one token in one
// namespace: it follows the event stream and asks for the lists every few seconds while somebody looks; when it ends, what it
// still asks for is dropped.
import { $, BAD, CHART_MS, Chart, List, bars, clock, duration, make, number, pairs, tone, words, write } from "./draw.js";

const EVERY_MS = 5_000; // the lists; seldom enough that asking takes a tenth of the time at most
const FAILURES_EVERY_MS = 60_000; // they come with events, so this is for what was missed
const SILENT_MS = 40_000; // a stream says something every 15 s
const LONGEST_PAUSE_MS = 30_000;
const FAILURES = 50;

const ENDS = [["succeeded", ["succeeded"]], ["failed", BAD], ["other", ["cancelled", "expired"]]];
const HEALTH = ["unhealthy", "degraded", "draining", "healthy", "offline"]; // what needs a look comes first

const view = { token: sessionStorage.getItem("mesh-token"), namespace: "", task: "", session: null, paused: false, states: {} };

// -- lists

const taskLink = (id) => `#${new URLSearchParams({ ns: view.namespace, task: id })}`;
const health = (agent) => {
  const flags = ["cordoned", "absent"].filter((name) => agent[name] && agent.status !== "offline");
  const text = [agent.status, ...flags].join(", ");
  return { text, tone: tone(flags[0] ?? agent.status), title: agent.condition };
};
const state = (name) => ({ text: words(name), tone: tone(name) });
const states = (queue, names) => number(names.reduce((sum, name) => sum + (queue.states[name] ?? 0), 0));

const LISTS = {
  agents: {
    title: "Agents",
    empty: "No agent has joined this namespace.",
    key: (agent) => agent.id,
    columns: [
      ["Agent", (agent) => ({ text: agent.id, title: agent.name })],
      ["Health", health],
      ["Running", (agent) => `${agent.running} of ${agent.slots}`, "number"],
      ["Region", (agent) => agent.region ?? "–"],
      ["Capabilities", (agent) => agent.capabilities.join(", ")],
      ["Condition", (agent) => agent.condition || "–"],
      ["Last beat", (agent) => `${duration(agent.silent_ms)} ago`, "number"],
    ],
  },
  capabilities: {
    title: "Capabilities",
    empty: "No agent offers any, and no task asks for one.",
    key: (one) => one.capability,
    columns: [
      ["Capability", (one) => one.capability],
      ["Agents", (one) => number(one.agents), "number"],
      ["Free slots", (one) => `${one.free_slots} of ${one.slots}`, "number"],
      ["Backlog", (one) => number(one.backlog), "number"],
      ["Run, p95", (one) => duration(one.p95_run_ms), "number"],
    ],
  },
  queues: {
    title: "Queues",
    empty: "No task was submitted yet.",
    key: (queue) => queue.queue,
    columns: [
      ["Queue", (queue) => queue.queue],
      ["Waiting", (queue) => number(queue.depth), "number"],
      ["Oldest", (queue) => duration(queue.oldest_age_ms), "number"],
      ["Due later", (queue) => states(queue, ["scheduled"]), "number"],
      ["Running", (queue) => states(queue, ["leased", "running"]), "number"],
      ["Succeeded", (queue) => states(queue, ["succeeded"]), "number"],
      ["Failed", (queue) => states(queue, BAD), "number"],
    ],
  },
  failures: {
    title: "Recent failures",
    empty: "None: no task that is still on record has failed, timed out or become a dead letter.",
    key: (task) => task.id,
    columns: [
      ["Ended", (task) => ({ text: clock(task.ended_at), title: task.ended_at ?? "" }), "time"],
      ["Task", (task) => ({ text: task.id, link: taskLink(task.id) })],
      ["Type", (task) => task.type],
      ["Outcome", (task) => state(task.state)],
      ["Attempts", (task) => number(task.attempt), "number"],
      ["Agent", (task) => task.agent ?? "–"],
      ["Error", (task) => task.error ?? task.reason ?? "–", "long"],
    ],
  },
};
const lists = {};

// -- charts

const charts = {};
let samples = []; // {at, ended: [number each], count, sum_ms, oldest_ms}: what counters said, so that differences are exact

function sample(queues, wait) {
  const total = (of) => queues.reduce((sum, queue) => sum + of(queue), 0);
  const now = Date.now();
  samples = samples.filter((one) => now - one.at <= CHART_MS);
  samples.push({
    at: now,
    ended: ENDS.map(([, names]) => total((queue) => names.reduce((sum, name) => sum + (queue.states[name] ?? 0), 0))),
    count: wait.buckets.reduce((sum, value) => sum + value, 0),
    sum_ms: wait.sum_ms,
    oldest_ms: queues.reduce((most, queue) => Math.max(most, queue.oldest_age_ms ?? 0), 0),
  });
  drawCharts();
}

function drawCharts() {
  const now = samples.at(-1)?.at ?? Date.now();
  const steps = samples.slice(1).map((one, index) => [one, samples[index]]);
  charts.throughput.show(
    steps.map(([one, former]) => ({
      at: one.at,
      values: one.ended.map((value, index) => Math.max(0, value - former.ended[index]) / ((one.at - former.at) / 1000)),
    })),
    now
  );
  charts.waits.show(
    steps.map(([one, former]) => {
      const started = one.count - former.count;
      return { at: one.at, values: [started > 0 ? (one.sum_ms - former.sum_ms) / started : null, one.oldest_ms] };
    }),
    now
  );
}

// -- asking

class Problem extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function ask(path, session) {
  let answer;
  try {
    const headers = { authorization: `Bearer ${view.token}` };
    answer = await fetch(`v1/namespaces/${encodeURIComponent(view.namespace)}/${path}`, { headers, signal: session.signal });
  } catch (error) {
    throw session.signal.aborted ? error : new Problem(0, "The coordinator does not answer.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, told.detail ?? `The answer was ${answer.status}.`);
}

async function read(path, session) {
  const answer = await ask(path, session);
  return answer.json().catch(() => Promise.reject(new Problem(0, "The answer of the coordinator broke off.")));
}

// What comes of asking goes to `shown`; what goes wrong to `failed`, unless it is the token: then there is nothing to see at all.
// Neither if the page was paused meanwhile.
async function load(session, asked, shown, failed) {
  const { paused } = view;
  const late = () => session.signal.aborted || (view.paused && !paused);
  try {
    const answers = await Promise.all(asked.map((path) => read(path, session)));
    if (!late()) shown(...answers);
  } catch (error) {
    if (late()) return;
    if (error.status === 401) leave(`${error.message} Paste another one.`);
    else if (error.status) failed(error.message);
    else if (!(error instanceof Problem)) throw error; // of the others, the state of the connection tells
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms)); // who wakes looks whether his session has ended

async function refresh(session) {
  const one = (name, shown, ...more) => load(session, [name, ...more], shown, (sentence) => lists[name].clear(sentence));
  await Promise.all([
    one("agents", ({ agents, counts }) => {
      const rank = (agent) => HEALTH.indexOf(agent.status);
      lists.agents.show(agents.sort((a, b) => rank(a) - rank(b) || (a.id < b.id ? -1 : 1)));
      view.agents = { counts, ...slots(agents) };
      total();
    }),
    one("capabilities", ({ capabilities }) => lists.capabilities.show(capabilities)),
    one("queues", queuesAndTimes, "top"),
    view.task && !view.ended ? showTask(session) : null,
  ]);
}

function queuesAndTimes({ queues }, top) {
  lists.queues.show(queues);
  sample(queues, top.all.wait);
  view.states = {};
  for (const queue of queues) for (const [name, tasks] of Object.entries(queue.states)) view.states[name] = (view.states[name] ?? 0) + tasks;
  total();
}

function slots(agents) {
  const taking = agents.filter((one) => ["healthy", "degraded"].includes(one.status) && !one.cordoned && !one.absent);
  const sum = (of) => taking.reduce((all, one) => all + of(one), 0);
  return { slots: sum((one) => one.slots), free: sum((one) => Math.max(0, one.slots - one.running)) };
}

async function failures(session) {
  const asked = [...BAD.slice(0, 2).map((name) => `tasks?state=${name}&limit=${FAILURES}`), `dead-letters?limit=${FAILURES}`];
  await load(
    session,
    asked,
    (failed, late, dead) => {
      const found = [...failed.tasks, ...late.tasks, ...dead.dead_letters];
      const known = new Map(found.map((task) => [task.id, task]));
      lists.failures.show([...known.values()].sort((a, b) => ((a.ended_at ?? "") < (b.ended_at ?? "") ? 1 : -1)).slice(0, FAILURES));
    },
    (sentence) => lists.failures.clear(sentence)
  );
}

function total() {
  const { counts = {}, slots: all = 0, free = 0 } = view.agents ?? {};
  const of = (...names) => number(names.reduce((sum, name) => sum + (view.states[name] ?? 0), 0));
  const there = Object.entries(counts).reduce((sum, [name, agents]) => sum + (name === "offline" ? 0 : agents), 0);
  const well = counts.healthy ?? 0;
  pairs($("totals"), [
    ["Healthy agents", `${number(well)} of ${number(there)}`, there && well === there ? "good" : "warn"],
    ["Free slots", `${number(free)} of ${number(all)}`],
    ["Waiting", of("queued")],
    ["Due later", of("scheduled")],
    ["Running", of("leased", "running")],
    ["Succeeded", of("succeeded")],
    ["Failed", of("failed")],
    ["Timed out", of("timed_out")],
    ["Dead-lettered", of("dead_lettered")],
    ["Expired", of("expired")],
    ["Cancelled", of("cancelled")],
  ]);
}

// -- following

function happened(name, told, session) {
  if (view.paused) return;
  if (name === "counts") {
    view.states = told.tasks;
    total();
  } else if (name === "missed" || (name === "task" && BAD.includes(told.state))) soon(failures, session);
  if (name === "task" && told.id === view.task) soon(showTask, session);
}

const due = new Set();

function soon(what, session) {
  if (due.has(what)) return; // a thousand failures a second are one look at the list
  due.add(what);
  setTimeout(() => {
    due.delete(what);
    if (!session.signal.aborted && !view.paused) what(session);
  }, 500);
}

async function follow(session) {
  let pause_ms = 1000;
  let first = true;
  while (!session.signal.aborted) {
    const silence = new AbortController();
    const stream = { signal: AbortSignal.any([session.signal, silence.signal]) };
    try {
      const answer = await ask("events", stream);
      say("live", "Live");
      pause_ms = 1000;
      if (first || !view.paused) {
        refresh(session);
        failures(session);
      }
      first = false;
      await listen(answer.body, silence, session);
    } catch (error) {
      if (session.signal.aborted) return;
      if (error.status === 401) return leave(`${error.message} Paste another one.`);
      if (error.status === 403 || error.status === 404) return say("lost", error.message);
    }
    if (session.signal.aborted) return;
    say("lost", `Connection lost: trying again in ${Math.round(pause_ms / 1000)} s`);
    await pause(pause_ms);
    if (!session.signal.aborted) say("lost", "Connection lost: trying again");
    pause_ms = Math.min(pause_ms * 2, LONGEST_PAUSE_MS);
  }
}

async function listen(body, silence, session) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const timer = setTimeout(() => silence.abort(), SILENT_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [, name, data] = /^event: (.*)\ndata: (.*)$/s.exec(block) ?? [];
      if (name) happened(name, JSON.parse(data), session);
    }
  }
}

async function look(session) {
  let failures_ms = performance.now();
  while (!session.signal.aborted) {
    const began = performance.now();
    if (document.visibilityState === "visible" && !view.paused) {
      await refresh(session);
      if (began - failures_ms > FAILURES_EVERY_MS) {
        failures_ms = began;
        await failures(session);
      }
    }
    await pause(Math.max(EVERY_MS, 9 * (performance.now() - began)));
  }
}

function say(kind, sentence) {
  const shown = view.paused ? `Paused. ${sentence}` : sentence;
  $("connection").className = kind;
  $("connection").sentence = sentence;
  write($("connection"), shown);
}

// -- one task

async function showTask(session) {
  const id = view.task;
  const path = `tasks/${encodeURIComponent(id)}`;
  const problem = $("task").querySelector(".problem");
  await load(
    session,
    [path, `${path}/attempts`, `${path}/why`],
    (task, attempts, why) => {
      if (id !== view.task) return;
      write(problem, "");
      view.ended = Boolean(task.ended_at);
      const labels = Object.entries(task.labels).map(([name, value]) => `${name}=${value}`);
      const told = [
        ["State", words(task.state), tone(task.state)],
        ["Type", task.type],
        ["Queue", task.queue],
        ["Priority", String(task.priority)],
        ["Submitted", clock(task.created_at)],
        ["Ended", clock(task.ended_at)],
        ["By", task.by ?? "–"],
        ["Labels", labels.join(", ") || "–"],
        ["Progress", task.progress ? `${Math.round(task.progress.fraction * 100)} % ${task.progress.note ?? ""}` : "–"],
        ["Why", why.detail, "long"],
      ];
      pairs($("task").querySelector("dl"), told.filter(([, value]) => value !== "–"));
      timeline(task, [...attempts.past, ...(attempts.latest ? [attempts.latest] : [])]);
    },
    (sentence) => {
      if (id !== view.task) return;
      write(problem, sentence);
      $("task").querySelector("dl").replaceChildren();
      timeline(null, []);
    }
  );
}

function timeline(task, attempts) {
  const ms = (iso) => (iso ? Date.parse(iso) : null);
  $("task").querySelector("table").hidden = !attempts.length;
  const rows = attempts.map((one, index) => {
    const next = attempts[index + 1];
    const over = ms(one.ended_at) ?? (next ? ms(next.leased_at) : ms(task.ended_at));
    const bar = bars(ms(task.created_at), ms(task.ended_at) ?? Date.now(), ms(one.leased_at), ms(one.started_at), over ?? Date.now(), one.how);
    const took = one.started_at ? duration((over ?? Date.now()) - ms(one.started_at)) : "–";
    const badge = make("span", { class: `badge ${tone(one.how)}` }, words(one.how));
    const cells = [String(one.attempt), one.agent ?? "–", badge, clock(one.leased_at), clock(one.started_at), took, bar, one.error ?? "–"];
    const kinds = ["", "", "", "time", "time", "number", "wide", "long"];
    return make("tr", {}, ...cells.map((cell, at) => make("td", { class: kinds[at] }, cell)));
  });
  $("task").querySelector("tbody").replaceChildren(...rows);
}

// -- what is seen: the address says which namespace and which task

function begin() {
  view.session?.abort();
  view.session = new AbortController();
  samples = [];
  view.states = {};
  view.agents = null;
  for (const list of Object.values(lists)) list.clear();
  total();
  drawCharts();
  const seen = Boolean(view.token);
  for (const id of ["where", "seen"]) $(id).hidden = !seen;
  $("enter").hidden = seen;
  if (!seen) {
    say("", "");
    $("token").focus();
    return;
  }
  say("lost", "Connecting");
  follow(view.session);
  look(view.session);
}

function leave(sentence) {
  sessionStorage.removeItem("mesh-token");
  view.token = null;
  begin();
  write($("refusal"), sentence);
}

function route() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const namespace = asked.get("ns") || view.home;
  const former = view.task;
  view.task = asked.get("task") ?? "";
  view.ended = false;
  if (namespace !== view.namespace) {
    view.namespace = namespace;
    begin();
  }
  $("namespace").value = namespace;
  $("task-id").value = view.task;
  $("close").href = `#${new URLSearchParams({ ns: namespace })}`;
  $("task").hidden = !view.task;
  document.title = `${view.task || namespace} – Agent Mesh`;
  write($("task-title"), `Task ${view.task}`);
  if (view.task && view.token) {
    if (former !== view.task) {
      $("task").querySelector("dl").replaceChildren();
      timeline(null, []);
      $("task-title").focus();
    }
    showTask(view.session);
  } else if (former) {
    const link = [...document.querySelectorAll("#failures a")].find((one) => one.textContent === former);
    (link ?? $("task-id")).focus();
  }
}

function refuse(sentence) {
  write($("refusal"), sentence);
  $("token").select(); // what is pasted now takes its place
}

async function enter(submitted) {
  submitted.preventDefault();
  const token = $("token").value.trim();
  write($("refusal"), "");
  if (!/^[\x21-\x7e]+$/.test(token)) return refuse("A token is one word: paste what `mesh auth` has printed.");
  view.token = token;
  try {
    await read("tasks?limit=1", { signal: AbortSignal.timeout(20_000) });
  } catch (error) {
    if (![403, 404].includes(error.status)) {
      view.token = null;
      return refuse(error.status === 401 ? `${error.message} Paste another one.` : error.message);
    }
  }
  sessionStorage.setItem("mesh-token", token);
  $("token").value = "";
  begin();
  $("filter").focus();
}

function keys(pressed) {
  const writes = pressed.target.matches("input");
  if (pressed.key === "/" && !writes && !pressed.ctrlKey && !pressed.metaKey && !pressed.altKey && !$("where").hidden) {
    pressed.preventDefault();
    $("filter").focus();
  } else if (pressed.key === "Escape" && view.task && !writes) {
    location.hash = $("close").hash;
  }
}

async function start() {
  for (const [id, told] of Object.entries(LISTS)) lists[id] = new List(id, told);
  charts.throughput = new Chart("throughput", (value) => `${number(value)}/s`, ENDS.map(([name]) => name));
  charts.waits = new Chart("waits", (ms) => (ms < 60_000 ? duration(ms) : `${number(ms / 60_000)} min`), ["average", "oldest"]);
  $("login").addEventListener("submit", enter);
  $("where").addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    const asked = { ns: $("namespace").value.trim(), task: $("task-id").value.trim() };
    location.hash = new URLSearchParams(Object.entries(asked).filter(([, value]) => value));
  });
  $("filter").addEventListener("input", () => Object.values(lists).forEach((list) => list.draw()));
  $("pause").addEventListener("click", () => {
    view.paused = !view.paused;
    $("pause").setAttribute("aria-pressed", view.paused);
    say($("connection").className, $("connection").sentence);
    if (!view.paused) Promise.all([refresh(view.session), failures(view.session)]);
  });
  $("leave").addEventListener("click", () => leave(""));
  document.addEventListener("keydown", keys);
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && view.token && !view.paused) refresh(view.session);
  });
  window.addEventListener("resize", drawCharts);
  window.addEventListener("hashchange", route);
  view.home = (await (await fetch("./", { headers: { accept: "application/json" } })).json()).namespace;
  route();
}

start();
