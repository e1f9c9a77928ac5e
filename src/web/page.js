// Follows the gateway by server-sent events and writes what it says as text. Nothing becomes markup here: names and reasons
// come from devices and clients.
"use strict";

const byId = (id) => document.getElementById(id);
/** Points by device, as they were heard last. */
const points = new Map();
/** [time in ms, delivered] of the last seconds, for the rate. */
let delivered = [];
let lastHeard = null;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function setText(id, text) {
  const place = byId(id);
  if (place.textContent !== text) place.textContent = text;
}

const number = (value) => value.toLocaleString("en");

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count >= 10 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

function span(seconds) {
  if (seconds < 1) return "under 1 s";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** A time of the gateway as the person's own. */
function when(text) {
  const time = new Date(text);
  const made = element("time", Number.isNaN(time.getTime()) ? text : time.toLocaleString());
  made.dateTime = text;
  return made;
}

/** Keeps the rows of a list by key: what stays is changed in place, so that focus and open details stay as well. */
function keep(parent, entries, make, fill) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const [key, value] of entries) {
    let row = known.get(key);
    if (row) {
      known.delete(key);
    } else {
      row = make(key);
      row.dataset.key = key;
    }
    if (row === place) {
      place = place.nextElementSibling;
    } else {
      parent.insertBefore(row, place);
    }
    fill(row, value, key);
  }
  for (const gone of known.values()) gone.remove();
}

function cells(row, values) {
  while (row.cells.length < values.length) row.insertCell();
  values.forEach((value, index) => {
    const cell = row.cells[index];
    const [text, className, why] = Array.isArray(value) ? value : [value, "", null];
    if (cell.className !== className) cell.className = className;
    const whole = why ? `${text}\n${why}` : text;
    if (cell.dataset.whole === whole) return;
    cell.dataset.whole = whole;
    cell.replaceChildren(text);
    if (why) cell.append(element("span", why, "why"));
  });
}

const UPLINK = { connected: ["connected", "good"], connecting: ["connecting", "warn"], starting: ["starting", "warn"], waiting: ["not connected", "bad"], stopped: ["stopped", "warn"] };
const DEVICE = { good: ["good", "good"], degraded: ["answers in part", "warn"], dead: ["does not answer", "bad"], starting: ["not read yet", "warn"] };

function uplinks(status) {
  const entries = Object.entries(status.uplinks);
  byId("no-uplinks").hidden = entries.length > 0;
  keep(byId("uplinks"), entries, () => document.createElement("tr"), (row, uplink, name) => {
    const [word, kind] = UPLINK[uplink.state] ?? [uplink.state, "warn"];
    row.className = kind;
    const since = uplink.since.startsWith("1970") ? "" : `since ${new Date(uplink.since).toLocaleString()}`;
    const again = uplink.again > 0 ? `${number(uplink.again)} are sent again` : "";
    const why = [[since, uplink.reason].filter(Boolean).join(": "), again].filter(Boolean).join("; ");
    cells(row, [name, [word, "state", why], [number(uplink.waiting), "n"], [number(uplink.in_flight), "n spare"], [number(uplink.delivered), "n spare"]]);
  });
}

function queue(status) {
  const { queue, uplinks } = status;
  setText("messages", number(queue.messages));
  setText("oldest", queue.oldest_age_s === null ? "–" : span(queue.oldest_age_s));
  setText("full", queue.full_in_s === null ? "not filling" : queue.full_in_s > 10 * 365 * 86400 ? "not within 10 years" : `in ${span(queue.full_in_s)} at this rate`);
  const share = queue.max_bytes > 0 ? queue.bytes / queue.max_bytes : 0;
  byId("bytes").value = share;
  const kept = queue.kept > 0 ? `, and ${bytes(queue.kept_bytes)} of ${number(queue.kept)} delivered messages that are kept` : "";
  setText("bytes-text", `${bytes(queue.bytes)} of ${bytes(queue.max_bytes)} (${Math.round(share * 100)} %)${kept}`);
  const all = Object.values(uplinks);
  const now = performance.now();
  delivered.push([now, all.reduce((sum, uplink) => sum + uplink.delivered, 0)]);
  delivered = delivered.filter(([time]) => now - time <= 10500);
  const [[from, before], [to, after]] = [delivered[0], delivered[delivered.length - 1]];
  setText("rate", to > from ? number(Math.round(((after - before) * 1000) / (to - from))) : "–");
  const drains = all.map((uplink) => uplink.drain).filter(Boolean);
  const left = drains.map((drain) => drain.left_s);
  setText("drained", drains.length === 0 ? "–" : left.includes(null) ? "not known yet" : span(Math.max(...left)));
}

function valueOf(point) {
  if (point.value === null) return "–";
  return point.unit ? `${point.value} ${point.unit}` : String(point.value);
}

function devices(status) {
  const entries = Object.entries(status.devices);
  byId("no-devices").hidden = entries.length > 0;
  const make = () => {
    const made = document.createElement("details");
    const summary = element("summary");
    summary.append(element("span", "", "title"), " ", element("span", "", "state"), " ", element("span", "", "meta"));
    const wide = element("div", undefined, "wide");
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const [title, className] of [["Point", ""], ["Value", ""], ["Quality", ""], ["Age", "n"]]) {
      const cell = element("th", title, className);
      cell.scope = "col";
      head.append(cell);
    }
    table.createTBody();
    wide.append(table);
    made.append(summary, wide);
    return made;
  };
  keep(byId("devices"), entries, make, (row, device, name) => {
    const [word, kind] = DEVICE[device.state] ?? [device.state, "warn"];
    row.className = kind;
    const write = (part, text) => {
      const place = row.querySelector(`summary .${part}`);
      if (place.textContent !== text) place.textContent = text;
    };
    write("title", name);
    write("state", word);
    const asked = device.asked_s === null ? "" : `every ${device.asked_s} s asked`;
    const got = device.interval_s === null ? "" : `${device.interval_s.toFixed(1)} s achieved`;
    const failures = device.failures > 0 ? `${number(device.failures)} of ${number(device.exchanges)} exchanges failed` : "";
    write("meta", [device.state === "good" ? "" : device.reason, asked, got, failures].filter(Boolean).join(" · "));
    if (!row.open) return;
    const known = [...(points.get(name) ?? new Map())];
    keep(row.querySelector("tbody"), known, () => document.createElement("tr"), (line, point, pointName) => {
      const quality = point.quality === "good" ? "good" : point.quality === "bad" ? "bad" : "warn";
      const age = (point.age_ms + performance.now() - point.heard) / 1000;
      // What is wrong with all of the device stands above already.
      const why = point.reason === device.reason ? null : point.reason;
      cells(line, [pointName, valueOf(point), [point.quality, `state ${quality}`, why], [span(age), "n"]]);
    });
  });
}

function clients(status, list) {
  const { connected, kept, waiting } = status.sessions;
  const sessions = kept === 1 ? "1 session is kept" : `${number(kept)} sessions are kept`;
  const messages = waiting === 1 ? "1 message waits" : `${number(waiting)} messages wait`;
  setText("clients-text", `${number(connected)} connected; ${sessions}, ${messages} for ${kept === 1 ? "it" : "them"}.`);
  const entries = Object.entries(list);
  keep(byId("clients"), entries, () => document.createElement("tr"), (row, client, name) => {
    cells(row, [name, client.user || "–", [client.peer, "spare"], [client.protocol, "spare"], client.is_kept ? "kept" : "ends with it"]);
  });
  const refused = status.sessions.refusals.slice().reverse().map((text) => [text, text]);
  byId("refused-part").hidden = refused.length === 0;
  keep(byId("refused"), refused, () => document.createElement("li"), (row, text) => {
    row.textContent = text;
  });
  const unkept = Object.entries(status.unkept_qos0);
  byId("unkept-part").hidden = unkept.length === 0;
  keep(byId("unkept"), unkept, () => document.createElement("li"), (row, count, name) => {
    row.textContent = `${name}: ${number(count)}`;
  });
}

function lists(status) {
  const losses = Object.entries(status.losses);
  byId("no-losses").hidden = losses.length > 0;
  keep(byId("losses"), losses, () => document.createElement("li"), (row, count, reason) => {
    row.textContent = `${reason}: ${number(count)}`;
  });
  const tell = (row, problem) => {
    const whole = `${problem.time} ${problem.text}`;
    if (row.dataset.whole === whole) return;
    row.dataset.whole = whole;
    row.replaceChildren(when(problem.time), ` ${problem.text}`);
  };
  const problems = status.problems.slice(-20).reverse().map((problem, index) => [String(index), problem]);
  byId("no-problems").hidden = problems.length > 0;
  keep(byId("problems"), problems, () => document.createElement("li"), tell);
  const alarms = Object.entries(status.alarms);
  byId("alarms-section").hidden = alarms.length === 0;
  keep(byId("alarms"), alarms, () => document.createElement("li"), tell);
}

function certificates(status) {
  const entries = status.certificates.map((one) => [`${one.of}.${one.key}`, one]);
  byId("certificates-section").hidden = entries.length === 0;
  keep(byId("certificates"), entries, () => document.createElement("tr"), (row, one, name) => {
    const days = one.days_left;
    // Without a clock nobody knows how many are left.
    row.className = days === null ? "warn" : days >= 30 ? "good" : days >= 7 ? "warn" : "bad";
    const left = days === null ? "clock not set" : days < 0 ? "ended" : number(days);
    // May break behind each part.
    const parts = name.replaceAll(".", ".\u200b");
    cells(row, [[parts, "", one.file], [new Date(one.until).toLocaleDateString(), "whole"], [left, "n state"]]);
  });
  const kept = Object.entries(status.kept_streams);
  byId("kept-section").hidden = kept.length === 0;
  keep(byId("kept"), kept, () => document.createElement("li"), (row, count, name) => {
    row.textContent = `${name}: ${number(count)} messages`;
  });
}

function verdict(status) {
  const alarms = Object.values(status.alarms);
  const away = Object.entries(status.uplinks).filter(([, uplink]) => uplink.state !== "connected");
  const dead = Object.entries(status.devices).filter(([, device]) => device.state === "dead");
  const place = byId("verdict");
  let [kind, text] = ["good", "All is well."];
  if (alarms.length > 0) {
    [kind, text] = ["bad", alarms.map((alarm) => alarm.text).join(" ")];
  } else if (away.length > 0) {
    const names = away.map(([name, uplink]) => (uplink.reason ? `${name} (${uplink.reason})` : name)).join(", ");
    [kind, text] = ["warn", `Not connected: ${names}. What is acknowledged waits in the queue.`];
  } else if (dead.length > 0) {
    [kind, text] = ["warn", `No answer from ${dead.map(([name]) => name).join(", ")}.`];
  }
  place.className = `verdict ${kind}`;
  setText("verdict", text);
  document.title = `${kind === "good" ? "" : "⚠ "}${status.gateway} – Tidegate`;
}

function show({ status, points: seen, clients: list }) {
  lastHeard = performance.now();
  for (const [device, changed] of Object.entries(seen)) {
    const known = points.get(device) ?? new Map();
    for (const [name, point] of Object.entries(changed)) known.set(name, { ...point, heard: lastHeard });
    points.set(device, known);
  }
  setText("gateway", status.gateway);
  verdict(status);
  uplinks(status);
  queue(status);
  devices(status);
  clients(status, list);
  lists(status);
  certificates(status);
  const clock = status.clock.state === "synced" ? "clock synced" : `clock ${status.clock.state}: times may be wrong`;
  setText("foot", `Version ${status.version} · running for ${span(status.uptime_s)} · ${clock}`);
}

async function chart() {
  try {
    const samples = await (await fetch("api/v1/history")).json();
    if (samples.length < 2) {
      setText("chart-text", "The chart begins with the second sample, after half a minute.");
      return;
    }
    const [first, last] = [samples[0], samples[samples.length - 1]];
    const most = Math.max(1, ...samples.map((sample) => sample.messages));
    const width = Math.max(1, last.uptime_s - first.uptime_s);
    const line = samples.map((sample) => `${((sample.uptime_s - first.uptime_s) / width) * 600},${118 - (sample.messages / most) * 114}`);
    byId("line").setAttribute("points", line.join(" "));
    setText("chart-text", `Messages that wait, over the last ${span(width)}; at most ${number(most)}.`);
  } catch {
    // The next try follows; that the gateway is away is said above.
  }
}

function lost() {
  if (lastHeard !== null && performance.now() - lastHeard < 3500) return;
  const place = byId("verdict");
  place.className = "verdict bad";
  setText("verdict", lastHeard === null ? "The gateway does not answer." : `The gateway does not answer any more: what stands here is ${span((performance.now() - lastHeard) / 1000)} old.`);
}

const source = new EventSource("api/v1/events");
source.addEventListener("message", (event) => show(JSON.parse(event.data)));
setInterval(lost, 1000);
chart();
setInterval(chart, 30000);
