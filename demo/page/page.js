"use strict";
const $ = (id) => document.getElementById(id);
const MAX_BYTES = 20e6;
let photo = null, name = "photo", result = null, running = false;

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function run(file, fileName) {
  if (running) return say("The photo before this one is still running.");
  if (file.size > MAX_BYTES) return say("This file has more than 20 MB.", true);
  photo = file;
  name = fileName || "photo";
  running = $("again").disabled = true;
  say(`Finding the hands in ${name} …`);
  const query = new URLSearchParams({ name });
  for (const [key, value] of new FormData($("options"))) if (typeof value === "string" && value) query.set(key, value);
  try {
    const answer = await fetch(`photo?${query}`, { method: "POST", body: file });
    const content = await answer.json();
    if (answer.ok) show(content);
    else say(content.error, true);
  } catch {
    say("The program does not answer. Is it still running?", true);
  }
  running = $("again").disabled = false;
}

function show(content) {
  result = content;
  const hands = Object.entries(content.hands), found = hands.filter(([, hand]) => !hand.dropped);
  say(`${content.name}: ${found.length ? found.map(([side]) => `${side} hand`).join(" and ") : "no hand"}.`);
  const lines = hands.map(([side, hand]) => fact(`${side} hand`, hand.dropped ? `left out: ${hand.dropped}`
    : `confidence ${hand.confidence.toPrecision(3)}`));
  lines.push(fact("depth", content.depth), fact("hand model", content.hand_model));
  if (content.note) lines.push(fact("network", content.note));
  const note = document.createElement("small");
  note.textContent = "Confidence is the height of the detector's heatmap, 0 to 1: a number to compare photos of one "
    + "network by, not a probability.";
  $("facts").replaceChildren(...lines, note);
  $("downloads").replaceChildren(...content.files.map(({ path, save_as }) => {
    const link = document.createElement("a");
    link.href = address(path);
    link.download = link.textContent = save_as;
    return link;
  }));
  $("view3d").hidden = !content.has_3d;
  $("result").hidden = false;
  view();
}

function fact(label, text) {
  const line = document.createElement("div"), bold = document.createElement("b");
  bold.textContent = `${label}: `;
  line.append(bold, text);
  return line;
}

function address(path) { return `result/${result.id}/${path}`; }

function view() {
  let kind = document.querySelector("[name=view]:checked").value;
  if (kind === "3d" && !result.has_3d) kind = "mesh";
  $("frame").hidden = kind !== "3d";
  $("image").hidden = kind === "3d";
  if (kind === "3d") {
    const page = new URL(address("3d"), document.baseURI).href;
    if ($("frame").src !== page) $("frame").src = page;
  } else {
    $("image").src = address(`render/${kind}`);
    $("image").alt = `${name}, ${kind}`;
  }
}

$("file").addEventListener("change", () => { if ($("file").files[0]) run($("file").files[0], $("file").files[0].name); });
$("options").addEventListener("submit", (event) => { event.preventDefault(); if (photo) run(photo, name); });
$("again").addEventListener("click", () => run(photo, name));
$("views").addEventListener("change", view);
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) run(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });
}
addEventListener("paste", (event) => { if (event.clipboardData.files[0]) run(event.clipboardData.files[0], "pasted.png"); });
