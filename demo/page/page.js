"use strict";
const $ = (id) => document.getElementById(id);
const MAX_PHOTO = 20e6, MAX_VIDEO = 200e6; // bytes
const VIDEO = /\.(mp4|mov|m4v|mkv|webm|avi)$/i;
const STAGES = {
  waiting: "waiting for the one before it",
  people: "reading it, step 1 of 3",
  hands: "finding the hands, step 2 of 3",
  overlay: "drawing them, step 3 of 3",
};
let photo = null, name = "photo", result = null, running = null, stage = null;

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function run(file, fileName) {
  if (running) return say("The file before this one is still running.");
  const isVideo = file.type.startsWith("video/") || VIDEO.test(fileName), limit = isVideo ? MAX_VIDEO : MAX_PHOTO;
  if (file.size > limit) return say(`This file has more than ${limit / 1e6} MB.`, true);
  photo = file;
  name = fileName || "photo";
  running = new AbortController();
  $("again").disabled = true;
  $("cancel").disabled = false;
  say(`Finding the hands in ${name} …`);
  const query = new URLSearchParams({ name });
  for (const [key, value] of new FormData($("options"))) if (typeof value === "string" && value) query.set(key, value);
  try {
    const request = { method: "POST", body: file, signal: running.signal };
    const answer = await fetch(`${isVideo ? "video" : "photo"}?${query}`, request);
    const content = answer.ok && isVideo ? await follow(answer.body) : await answer.json();
    if (content.error) end(content.error, true);
    else show(content);
  } catch {
    if (running.signal.aborted) end(`Cancelled: nothing of ${name} is kept.`);
    else end("The program does not answer. Is it still running?", true);
  }
  running = stage = null;
  $("progress").hidden = $("cancel").disabled = true;
  $("again").disabled = false;
}

function end(text, bad = false) {
  say(text, bad);
  if (stage?.shown) $("result").hidden = true; // what it shows is of no result
}

async function follow(body) { // the lines about a video's progress, to its result
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", content = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return content.id || content.error ? content : Promise.reject();
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      content = JSON.parse(line);
      if (content.stage) progress(content);
    }
  }
}

function progress(line) {
  if (line.stage !== stage?.name) {
    stage = { name: line.stage, begun: performance.now(), from: line.frame, shown: stage?.shown };
    say(`${name}: ${STAGES[line.stage]}.`);
    $("progress").hidden = false;
    $("bar").removeAttribute("value");
  }
  const { frame, frames } = line;
  $("step").textContent = frame ? `frame ${frame}${frames ? ` of ${frames}` : ""}` : "";
  if (frame && frames) $("bar").value = frame / frames;
  if (frame > stage.from && frame < frames) {
    const left = (frames - frame) / (frame - stage.from) * (performance.now() - stage.begun) / 1000;
    const rounded = left < 100 ? `${Math.ceil(left)} s` : `${Math.round(left / 60)} min`;
    $("step").textContent += `, ${rounded} left in this step`;
  }
  if (line.preview) {
    $("views").hidden = $("facts").hidden = $("downloads").hidden = stage.shown = true;
    $("image").src = line.preview;
    $("image").alt = `${name}, frame ${frame}`;
    showOnly("image");
  }
}

function showOnly(shown) {
  for (const id of ["image", "frame", "video"]) $(id).hidden = id !== shown;
  $("video").pause();
  $("result").hidden = false;
}

function show(content) {
  result = content;
  const lines = content.video ? videoFacts(content) : photoFacts(content);
  lines.push(fact("depth", content.depth), fact("hand model", content.hand_model));
  if (content.note) lines.push(fact("network", content.note));
  const note = document.createElement("small");
  note.textContent = content.video ? "The whole frame is taken for one person; demo.py also follows several."
    : "Confidence is the height of the detector's heatmap, 0 to 1: a number to compare photos of one network by, not a "
    + "probability.";
  $("facts").replaceChildren(...lines, note);
  $("downloads").replaceChildren(...content.files.map(({ path, save_as }) => {
    const link = document.createElement("a");
    link.href = address(path);
    link.download = link.textContent = save_as;
    return link;
  }));
  $("view3d").hidden = !content.has_3d;
  $("views").hidden = Boolean(content.video);
  $("facts").hidden = $("downloads").hidden = false;
  view();
}

function videoFacts(content) {
  const { frames, seconds, hands, shots } = content.video;
  const problems = content.problems.map((text) => ` ${text[0].toUpperCase()}${text.slice(1)}.`).join("");
  const found = hands ? "done" : "no hand was found; the overlay is the video";
  say(`${content.name}: ${found}.${problems}`, problems !== "");
  return [fact("frames", `${frames} in ${seconds.toFixed(1)} s${shots > 1 ? ` and ${shots} shots` : ""}, with ${hands} hands`)];
}

function photoFacts(content) {
  const hands = Object.entries(content.hands), found = hands.filter(([, hand]) => !hand.dropped);
  say(`${content.name}: ${found.length ? found.map(([side]) => `${side} hand`).join(" and ") : "no hand"}.`);
  return hands.map(([side, hand]) => fact(`${side} hand`, hand.dropped ? `left out: ${hand.dropped}`
    : `confidence ${hand.confidence.toPrecision(3)}`));
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
  if (result.video) {
    showOnly("video");
    $("video").src = address("overlay.mp4");
    return;
  }
  showOnly(kind === "3d" ? "frame" : "image");
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
$("cancel").addEventListener("click", () => running?.abort());
$("views").addEventListener("change", view);
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) run(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });
}
addEventListener("paste", (event) => { if (event.clipboardData.files[0]) run(event.clipboardData.files[0], "pasted.png"); });
