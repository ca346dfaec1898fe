// Every text of a run enters the page as a text node, never as HTML.
const runs = JSON.parse(document.getElementById("texts").textContent);
const find = (id) => document.getElementById(id);
const reader = find("reader"), box = find("text"), inspector = find("inspector");
const NAT = 4096, SURE = 65535, MAX_NATS = 6; // at this surprisal and above, the shade is strongest
const chosen = { run: Math.max(0, runs.findIndex((run) => run.texts.length)), source: "", epoch: Infinity, temperature: 1, text: 0 };
let characters = [], cells = [], surprisals = [], likeliest = [], probabilities = [], current = 0;

function make(tag, name, ...children) {
  const made = document.createElement(tag);
  made.className = name;
  made.append(...children);
  return made;
}

const unpack = (packed) => Array.from(new Uint16Array(Uint8Array.from(atob(packed), (byte) => byte.charCodeAt(0)).buffer));
const steers = (character) => character !== " " && /[\p{C}\p{Z}]/u.test(character);
const written = (character) => `‹U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`;
const plain = (text) => Array.from(text, (character) => glyph(character)[0].textContent ?? character).join("");
const named = (character) => ({ " ": "space", "\n": "new line" })[character] ?? plain(character);
const percent = (p) => (p >= 0.0995 ? `${Math.round(100 * p)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");
const unique = (values) => [...new Set(values)];
const nearest = (values, wanted) => values.reduce((best, value) => (Math.abs(value - wanted) < Math.abs(best - wanted) ? value : best));

function glyph(character) {
  if (character === "\n") return [make("span", "mark", "↵"), "\n"];
  return [steers(character) ? make("span", "mark", written(character)) : character];
}

// A control is rebuilt only if its choices have changed, so that it keeps the focus.
function offer(control, values, labels, value) {
  const offered = JSON.stringify([values, labels]);
  if (control.dataset.offered !== offered) {
    control.replaceChildren(...values.map((each, place) => choice(control, each, labels[place])));
    control.dataset.offered = offered;
  }
  for (const choice of control.querySelectorAll("option, input"))
    choice.selected = choice.checked = choice.value === String(value);
}

function choice(control, value, label) {
  if (control.tagName === "SELECT") return new Option(label, value);
  const input = make("input", "");
  Object.assign(input, { type: "radio", name: control.id, value });
  return make("label", "", input, make("span", "", label));
}

function choose(change) {
  Object.assign(chosen, change);
  const run = runs[chosen.run];
  const sources = unique(run.texts.map((text) => text.source));
  if (!sources.includes(chosen.source)) chosen.source = sources[0];
  let texts = run.texts.filter((text) => text.source === chosen.source);
  const epochs = unique(texts.map((text) => text.epoch)).sort((a, b) => a - b);
  offer(find("run"), runs.map((_, place) => place), runs.map((each) => plain(each.name)), chosen.run);
  offer(find("source"), sources, sources, chosen.source);
  find("run").parentElement.hidden = runs.length < 2;
  find("source").parentElement.hidden = sources.length < 2;
  find("choices").hidden = find("page").hidden = !texts.length;
  find("notes").replaceChildren(...run.notes.map((note) => make("li", "", plain(note))));
  if (!texts.length) return find("summary").replaceChildren("This run has written no text yet.");
  chosen.epoch = nearest(epochs, Math.min(chosen.epoch, epochs.at(-1)));
  offer(find("epoch"), epochs, epochs, chosen.epoch);
  find("earlier").ariaDisabled = chosen.epoch === epochs[0];
  find("later").ariaDisabled = chosen.epoch === epochs.at(-1);
  texts = texts.filter((text) => text.epoch === chosen.epoch);
  const temperatures = unique(texts.map((text) => text.temperature)).sort((a, b) => a - b);
  chosen.temperature = nearest(temperatures, chosen.temperature);
  offer(find("temperature"), temperatures, temperatures, chosen.temperature);
  texts = texts.filter((text) => text.temperature === chosen.temperature);
  chosen.text = Math.min(chosen.text, texts.length - 1);
  const prompts = texts.map((text, place) => `${texts.length > 1 ? `${place + 1}: ` : ""}${plain(text.prompt.slice(-60))}`);
  offer(find("prompt"), texts.map((_, place) => place), prompts, chosen.text);
  show(run, texts[chosen.text]);
}

function show(run, { prompt, text, unknown, reading }) {
  characters = Array.from(text);
  surprisals = reading ? unpack(reading.surprisal).map((level) => level / NAT) : [];
  likeliest = reading ? Array.from(reading.likeliest) : [];
  probabilities = reading ? unpack(reading.probabilities).map((level) => level / SURE) : [];
  cells = characters.map((character, place) => {
    const cell = make("span", "cell", ...glyph(character));
    if (reading) cell.style.setProperty("--shade", Math.min(surprisals[place] / MAX_NATS, 1).toFixed(3));
    cell.dataset.place = place;
    return cell;
  });
  for (const [start, end] of unknown ?? []) for (let i = start; i < end; i++) cells[i].classList.add("unknown");
  box.replaceChildren(make("span", "prompt", ...Array.from(prompt).flatMap(glyph)), ...cells);
  box.tabIndex = reading ? 0 : -1;
  inspector.hidden = find("scale").hidden = !reading;
  const mean = surprisals.reduce((sum, nats) => sum + nats, 0) / surprisals.length;
  const facts = [`Epoch ${chosen.epoch}`, `temperature ${chosen.temperature}`, `${characters.length.toLocaleString("en")} characters`];
  if (reading) facts.push(`${mean.toFixed(2)} nats per character on average`);
  if (unknown) facts.push(unknown.length === 1 ? "1 unknown word" : `${unknown.length} unknown words`);
  find("summary").textContent = facts.join(" · ");
  const unshaded = run.step === null ? "" : "This text is not shaded: it has characters that the model does not know, or none at all.";
  find("shading").textContent = reading
    ? `Shaded by each character’s surprisal under this run’s best model, the one of step ${run.step.toLocaleString("en")}, at temperature 1.`
    : unshaded;
  if (reading) inspect(0);
}

function inspect(place) {
  current = place;
  box.querySelector(".current")?.classList.remove("current");
  cells[place].classList.add("current");
  const nats = surprisals[place], many = probabilities.length / characters.length, from = place * many;
  const rows = Array.from({ length: many }, (_, i) => {
    const [other, p] = [likeliest[from + i], probabilities[from + i]];
    const bar = make("span", "bar");
    bar.style.setProperty("--part", p);
    return make("li", other === characters[place] ? "taken" : "", make("b", "", named(other)), bar, make("span", "", percent(p)));
  });
  const beyond = nats > 15.99 ? "over " : "";
  inspector.replaceChildren(
    make("p", "", make("b", "", named(characters[place])), ` ${beyond}${nats.toFixed(1)} nats, ${percent(Math.exp(-nats))}`),
    make("p", "quiet", "The likeliest here:"),
    make("ol", "", ...rows),
  );
}

// The place in the line above (step -1) or below (step 1) that is horizontally nearest to another.
function acrossLines(place, step) {
  let edge = place;
  while (cells[edge]?.offsetTop === cells[place].offsetTop) edge += step;
  if (!cells[edge]) return place;
  const line = cells.filter((cell) => cell.offsetTop === cells[edge].offsetTop);
  const left = nearest(line.map((cell) => cell.offsetLeft), cells[place].offsetLeft);
  return cells.indexOf(line.find((cell) => cell.offsetLeft === left));
}

box.addEventListener("keydown", (event) => {
  const places = {
    ArrowLeft: () => current - 1,
    ArrowRight: () => current + 1,
    ArrowUp: () => acrossLines(current, -1),
    ArrowDown: () => acrossLines(current, 1),
    Home: () => 0,
    End: () => cells.length - 1,
  };
  if (!places[event.key] || event.ctrlKey || event.metaKey || event.altKey || !surprisals.length) return;
  event.preventDefault();
  inspect(Math.max(0, Math.min(cells.length - 1, places[event.key]())));
  cells[current].scrollIntoView({ block: "nearest" });
});
for (const gesture of ["pointerover", "click"])
  box.addEventListener(gesture, (event) => {
    const cell = event.target.closest(".cell");
    if (cell && surprisals.length) inspect(Number(cell.dataset.place));
  });
for (const name of ["run", "epoch", "temperature", "prompt"])
  find(name).addEventListener("change", (event) => choose({ [name === "prompt" ? "text" : name]: Number(event.target.value) }));
find("source").addEventListener("change", (event) => choose({ source: event.target.value }));
for (const [name, step] of [["earlier", -1], ["later", 1]])
  find(name).addEventListener("click", () => {
    const option = find("epoch").options[find("epoch").selectedIndex + step];
    if (option) choose({ epoch: Number(option.value) });
  });
choose({});
reader.hidden = false;
