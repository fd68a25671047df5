// The page: takes a slice, has worker.js answer it, and says what the answer is worth. Texts of classes and the notice
// come from the Python package by way of page.json; nothing of a file's name is ever read as HTML.

import { COVERAGES, DEFAULT_COVERAGE } from "./trust.js";

const SPACE = "\u00a0";
const REFUSED = "not-a-brain-mri";
const HEADINGS = {
  answer: "Model's answer",
  uncertain: "Uncertain",
  unfamiliar: "Unfamiliar brain MRI: an answer not to rely on",
  [REFUSED]: "No answer",
};
// an answer has no mark: a tick would read as "confirmed"
const MARKS = { uncertain: ["uncertain", "?"], unfamiliar: ["unfamiliar", "!"], [REFUSED]: ["refused", "✕"] };
const part = (id) => document.getElementById(id);
const page = await (await fetch("page.json")).json();
const classes = Object.fromEntries(page.classes.map((entry) => [entry.name, entry]));

/** Make an element; strings become text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  element.append(...children.filter((child) => child !== null));
  return element;
}

// --- the answer ---

/** A probability, without claiming the 0 % or 100 % that a softmax never reaches. */
function percent(probability) {
  if (probability > 0.999) return `>${SPACE}99.9${SPACE}%`;
  if (probability < 0.001) return `<${SPACE}0.1${SPACE}%`;
  return `${(100 * probability).toFixed(1)}${SPACE}%`;
}

function bars(answer) {
  const rows = page.classes.map(({ name, title }) => {
    const value = answer ? answer.probabilities[name] : 0;
    const text = answer ? percent(value) : "–";
    const fill = make("div", { class: "fill" });
    fill.style.width = `${100 * value}%`;
    const meter = {
      class: "track", role: "meter", "aria-label": title, "aria-valuemin": 0, "aria-valuemax": 100,
      "aria-valuenow": (100 * value).toFixed(1), "aria-valuetext": text,
    };
    return make(
      "li", { class: name === answer?.label ? "top" : "other" },
      make("span", {}, title), make("span", { class: "percent" }, text), make("div", meter, fill),
    );
  });
  return make("ul", { class: "bars" }, ...rows);
}

/** `Glioma, meningioma or no tumour` of class names. */
function inWords(names) {
  const titles = names.map((name, i) => (i ? classes[name].title.toLowerCase() : classes[name].title));
  return titles.length > 1 ? `${titles.slice(0, -1).join(", ")} or ${titles.at(-1)}` : titles[0];
}

function verdict(answer, coverage) {
  const { decision, reason, prediction_set: left } = answer.decisions[coverage];
  const mark = MARKS[decision] && make("span", { class: `mark ${MARKS[decision][0]}`, "aria-hidden": "true" },
    MARKS[decision][1]);
  const words = {
    answer: classes[left[0]].description,
    uncertain: "The model cannot tell these apart here.",
    unfamiliar: `Do not rely on this: ${reason}.`,
    [REFUSED]: `The model refuses this picture: ${reason}.`,
  }[decision];
  const set = left.map((name) => classes[name].title.toLowerCase()).join(", ");
  const promise = decision === "unfamiliar"
    ? "For such slices nobody measured how often the set holds the true class."
    : `For slices like those that it was fitted on, such sets hold the true class in about ${coverage} of 100.`;
  const note = `Prediction set at ${coverage} %: ${set}. ${promise}`;
  return make(
    "div", { class: "decision", "data-decision": decision },
    make("h2", {}, mark ?? null, HEADINGS[decision]),
    make("p", { class: "finding" }, decision === REFUSED ? "Not a brain MRI" : inWords(left)),
    make("p", { class: "words" }, words), decision === REFUSED ? null : make("p", { class: "words subdued" }, note),
  );
}

/** What the network says of a picture that is refused: small, grey, folded away. */
function meaningless(answer) {
  return make(
    "details", { class: "meaningless" },
    make("summary", {}, "What the network gives for its four classes all the same"),
    make("p", {}, "These numbers mean nothing for such a picture."), bars(answer),
  );
}

let coverage = DEFAULT_COVERAGE;
const PLACELESS = "notumor"; // what is everywhere or nowhere has no map

function coverageSwitch(answer) {
  const choices = COVERAGES.map((percentage) => {
    const input = make("input", { type: "radio", name: "coverage", value: percentage });
    input.checked = percentage === coverage;
    input.addEventListener("change", () => {
      coverage = percentage;
      part("answer").querySelector(".decision").replaceWith(verdict(answer, coverage));
    });
    return make("label", {}, input, make("span", {}, `${percentage} %`));
  });
  return make(
    "fieldset", { class: "switch" },
    make("legend", {}, "Coverage of the prediction set"), make("div", { class: "choices" }, ...choices),
  );
}

function plainVerdict(answer) {
  return make(
    "div", { class: "decision" },
    make("h2", {}, "Most probable of the four"), make("p", { class: "finding" }, classes[answer.label].title),
    make("p", { class: "words" }, classes[answer.label].description),
    make("p", { class: "words subdued" }, "This model comes without a trust.json: nothing checks whether this is a " +
      "brain MRI, and no prediction set says how sure the answer is. It always chooses one of the four."),
  );
}

function showAnswer(answer, name) {
  const refused = answer.decisions?.[coverage].decision === REFUSED;
  const unfamiliar = answer.decisions?.[coverage].decision === "unfamiliar";
  const calibrated = unfamiliar ? "Probabilities" : "Calibrated probabilities";
  const kind = answer.decisions ? calibrated : "Probabilities, not calibrated";
  const { prepare, network } = answer.milliseconds;
  const whole = Math.round(prepare + network);
  part("answer").classList.remove("problem");
  part("answer").replaceChildren(
    answer.decisions ? verdict(answer, coverage) : plainVerdict(answer),
    ...(answer.decisions && !refused ? [coverageSwitch(answer)] : []),
    ...(refused ? [meaningless(answer)] : [make("h3", { class: "quantity" }, kind), bars(answer)]),
    make("p", { class: "source" }, `File: ${name} · Model: ${page.model} · ${whole}${SPACE}ms in this browser`),
  );
  part("answer").dataset.answer = JSON.stringify({ ...answer, maps: null });
  bringIntoView();
}

function showWaiting() {
  part("answer").replaceChildren(
    make("h2", {}, "Answer"),
    make("p", { class: "words subdued" }, "Choose, drop or paste one slice. The four probabilities appear here."),
    bars(null), make("p", { class: "source" }, `Model: ${page.model}`),
  );
}

function showProblem(title, message) {
  const panel = part("answer");
  panel.classList.add("problem");
  delete panel.dataset.answer;
  panel.replaceChildren(
    make("div", { role: "alert" }, make("h2", {}, title), make("p", { class: "words" }, message)),
  );
  bringIntoView();
}

/** On a phone the answer may lie outside the screen. */
function bringIntoView() {
  const box = part("answer").getBoundingClientRect();
  if (box.bottom < 120 || box.top < 0 || box.top > innerHeight - 120) part("answer").scrollIntoView({ block: "start" });
}

// --- the slice ---

function showSlice(file, answer) {
  const old = part("viewer").querySelector("img");
  if (old) URL.revokeObjectURL(old.src);
  if (!file) {
    part("viewer").replaceChildren(make("p", {}, "The slice appears here."));
    return;
  }
  const image = make("img", { src: URL.createObjectURL(file), alt: "The slice as it was read" });
  const caption = `Slice as read, ${answer.width} × ${answer.height} pixels`;
  part("viewer").replaceChildren(make("figure", {}, image, make("figcaption", {}, caption)), ...heatMaps(answer));
}

/** The heat map, for one tumour class at a time; none of a refused picture. */
function heatMaps(answer) {
  if (!answer.maps || answer.decisions?.[coverage].decision === REFUSED) return [];
  const { width, height, pixels } = answer.maps;
  const names = Object.keys(pixels);
  const first = answer.label === PLACELESS ? names.reduce((a, b) =>
    answer.probabilities[b] > answer.probabilities[a] ? b : a) : answer.label;
  const canvas = make("canvas", { width, height, role: "img" });
  const caption = make("figcaption", {});
  const show = (name) => {
    canvas.getContext("2d").putImageData(new ImageData(pixels[name], width, height), 0, 0);
    canvas.setAttribute("aria-label", `Heat map for ${classes[name].title.toLowerCase()}`);
    canvas.dataset.class = name;
    caption.textContent = `What speaks for ${classes[name].title.toLowerCase()} in the model's eyes, as strong as it ` +
      `is probable (${percent(answer.probabilities[name])}); no outline of a tumour.`;
  };
  const choices = names.map((name) => {
    const input = make("input", { type: "radio", name: "map", value: name });
    input.checked = name === first;
    input.addEventListener("change", () => show(name));
    return make("label", {}, input, make("span", {}, classes[name].title));
  });
  show(first);
  return [
    make("figure", { class: "heat" }, canvas, caption),
    make("fieldset", { class: "switch" }, make("legend", {}, "Where the model looked, for"),
      make("div", { class: "choices" }, ...choices)),
  ];
}

// --- the worker ---

// A worker with an address of its own would have a policy of its own; one from a blob is bound by this page's.
const starter = new Blob([`import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`], {
  type: "text/javascript",
});
const worker = new Worker(URL.createObjectURL(starter), { type: "module" });
const files = new Map();
let [asked, latest] = [0, 0];

function ask(file) {
  asked += 1;
  latest = asked;
  files.set(latest, file);
  part("answer").setAttribute("aria-busy", "true");
  worker.postMessage({ id: latest, file, withMaps: true });
}

// --- many files ---

const COLUMNS = ["file", "decision", "class", "confidence", ...page.classes.map(({ name }) => name), "error"];
let rows = new Map(); // of the latest lot: id -> what is known of its file
let told = 0;

function askAll(lot) {
  rows = new Map();
  told = 0;
  part("many").hidden = false;
  part("csv").hidden = true;
  const body = document.querySelector("#many tbody");
  body.replaceChildren();
  for (const file of lot) {
    asked += 1;
    const button = make("button", { type: "button", title: "Show it" }, file.name);
    button.addEventListener("click", () => ask(file));
    const row = make("tr", {}, make("th", { scope: "row" }, button), ...["…", "", ""].map((text) => make("td", {}, text)));
    rows.set(asked, { file, row, record: null });
    body.append(row);
    worker.postMessage({ id: asked, file, withMaps: false });
  }
  count();
}

function tell(entry, { kind, answer, message }) {
  const said = answer?.decisions?.[coverage];
  const refused = said?.decision === REFUSED;
  const cells = entry.row.querySelectorAll("td");
  if (kind === "answer") {
    cells[0].textContent = refused ? "–" : inWords(said?.prediction_set ?? [answer.label]);
    cells[1].textContent = refused ? "" : percent(answer.confidence);
    cells[2].textContent = said ? { ...HEADINGS, answer: "Answer", unfamiliar: "Unfamiliar" }[said.decision] : "";
    entry.record = [entry.file.name, said?.decision ?? "", answer.label, answer.confidence,
      ...page.classes.map(({ name }) => answer.probabilities[name]), ""];
  } else {
    cells[0].textContent = `Not readable: ${message}`;
    entry.record = [entry.file.name, ...COLUMNS.slice(1, -1).map(() => ""), message];
  }
  entry.row.dataset.kind = kind;
  told += 1;
  count();
  if (told === rows.size) offerCsv();
}

function count() {
  part("many-count").textContent = told < rows.size ? `${told} of ${rows.size} files` : `${rows.size} files`;
}

function offerCsv() {
  const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;
  const lines = [COLUMNS, ...[...rows.values()].map(({ record }) => record)].map((line) => line.map(quoted).join(","));
  if (part("csv").href) URL.revokeObjectURL(part("csv").href);
  part("csv").href = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
  part("csv").hidden = false;
}

/** One file is shown, several become a table. */
function take(list) {
  if (list.length === 1) ask(list[0]);
  else if (list.length) askAll([...list]);
}

function failed(message) {
  part("progress").hidden = true;
  part("status").textContent = "The model could not be loaded.";
  showProblem("The model is not available", `${message}. Load this page again, or build it anew.`);
}

const handlers = {
  progress: ({ loaded, size }) => {
    part("progress").value = loaded / size;
  },
  ready: () => {
    part("progress").hidden = true;
    part("status").textContent = "The model is ready; it answers without a network from now on.";
    document.documentElement.dataset.ready = "true";
  },
  failed: ({ message }) => failed(message),
  answer: ({ answer }, file) => {
    showSlice(file, answer);
    showAnswer(answer, file.name);
  },
  unreadable: ({ message }, file) => {
    showSlice(null);
    showProblem("This file cannot be read", `${file.name}: ${message}`);
  },
  broken: ({ message }) => showProblem("No answer", message),
};

worker.addEventListener("message", ({ data }) => {
  if (rows.has(data.id)) {
    tell(rows.get(data.id), data);
    return;
  }
  const file = files.get(data.id);
  files.delete(data.id);
  if (data.id !== undefined && data.id !== latest) return; // a newer file, or lot, is on its way
  if (data.id !== undefined) part("answer").removeAttribute("aria-busy");
  handlers[data.kind](data, file);
});
worker.addEventListener("error", (event) => failed(event.message || "its program could not be started"));

// --- input ---

part("file").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = ""; // the same file may be chosen again
});
const zone = document.querySelector(".drop");
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // or the browser would open the file in place of the page
    zone.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") take(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => {
  const pasted = event.clipboardData?.files ?? [];
  if (!pasted.length) return;
  event.preventDefault();
  take(pasted);
});

for (const { name, title, example } of page.classes) {
  if (!example) continue;
  const button = make(
    "button", { type: "button" },
    make("img", { src: example, alt: "", width: 72, height: 72 }), `Synthetic: ${title.toLowerCase()}`,
  );
  button.addEventListener("click", async () => {
    const content = await examples.get(name);
    ask(new File([content], example.split("/").at(-1), { type: "image/png" }));
  });
  document.querySelector("#examples .buttons").append(button);
  part("examples").hidden = false;
}
// fetched at once, so that they answer without a network too
const examples = new Map(
  page.classes.filter(({ example }) => example).map(({ name, example }) => [
    name, fetch(example).then((response) => response.blob()),
  ]),
);

part("facts").append(
  ...page.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]),
);
showWaiting();
