"use strict";
// Tokens come as data and are written by textContent alone, so no text of the prompt is ever markup.
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = Uint8Array.from(atob(data.attention), (c) => c.charCodeAt(0)); // layer, head, query, key; 255 = 1
const seq = data.tokens.length;
const spans = [...document.querySelectorAll(".token")]; // one a token, and one for what comes next
let chosen = seq; // the token whose prediction is shown; the position before it predicted it
let map = [data.layers - 1, 0]; // layer and head of the attention that is shown

const weight = (layer, head, query, key) =>
  bytes[((layer * data.heads + head) * seq + query) * seq + key] / 255;

function make(kind, text, parent) {
  const element = document.createElement(kind);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const percent = (share) => (100 * share).toFixed(share >= 0.1 ? 0 : 1) + " %";

function colours(mode) {
  const position = chosen - 1; // of the query
  if (mode === "loss") {
    return spans.map((_, n) => (n > 0 && n < seq
      ? [`rgba(214, 40, 40, ${Math.min(1, data.losses[n - 1] / data.most)})`,
         `${data.losses[n - 1].toFixed(3)} nats, probability ${percent(Math.exp(-data.losses[n - 1]))}`]
      : ["", n === 0 ? "nothing before it predicts it" : "what the model finds likeliest next"]));
  }
  if (mode === "attention") {
    return spans.map((_, n) => {
      if (n > position) return ["", ""];
      const share = weight(map[0], map[1], position, n);
      return [`rgba(11, 87, 208, ${share})`, `attention ${percent(share)}`];
    });
  }
  const row = data.attributions[position];
  const most = Math.max(...row.map(Math.abs)) || 1;
  return spans.map((_, n) => {
    if (n > position) return ["", ""];
    const part = Math.abs(row[n]) / most;
    const tone = row[n] >= 0 ? `rgba(20, 130, 60, ${part})` : `rgba(214, 40, 40, ${part})`;
    return [tone, `${row[n] >= 0 ? "+" : ""}${row[n].toPrecision(3)} nats to first order`];
  });
}

function showText() {
  const mode = document.querySelector("input[name=mode]:checked").value;
  colours(mode).forEach(([colour, title], n) => {
    spans[n].style.background = colour;
    spans[n].title = title;
    spans[n].classList.toggle("chosen", n === chosen);
    spans[n].setAttribute("aria-pressed", String(n === chosen));
  });
}

function showLens() {
  const position = chosen - 1;
  document.getElementById("asked").textContent =
    `after ${data.tokens[position]} (position ${position}); the token that follows: ${data.names[data.targets[position]]}`;
  const body = document.getElementById("lens");
  body.replaceChildren();
  for (let depth = data.layers; depth >= 0; depth--) {
    const row = make("tr", undefined, body);
    make("th", depth === 0 ? "input" : `block ${depth}`, row).scope = "row";
    make("td", `${percent(data.lens.target[depth][position])}, rank ${data.lens.rank[depth][position] + 1}`, row);
    data.lens.ids[depth][position].forEach((id, n) => {
      const share = data.lens.shares[depth][position][n];
      const cell = make("td", `${data.names[id]}  ${percent(share)}`, row);
      cell.style.background = `rgba(11, 87, 208, ${0.6 * share})`;
      cell.classList.toggle("target", id === data.targets[position]);
    });
  }
}

function draw(canvas, layer, head) {
  canvas.width = canvas.height = seq;
  const context = canvas.getContext("2d");
  const image = context.createImageData(seq, seq);
  for (let query = 0; query < seq; query++) {
    for (let key = 0; key < seq; key++) {
      const share = weight(layer, head, query, key);
      const fade = Math.sqrt(share); // so that small weights are seen
      const tone = key > query ? [238, 238, 238] : [255 - 244 * fade, 255 - 168 * fade, 255 - 47 * fade];
      image.data.set([...tone, 255], 4 * (query * seq + key));
    }
  }
  context.putImageData(image, 0, 0);
  if (canvas.id === "large") {
    context.fillStyle = "rgba(214, 40, 40, 0.2)";
    context.fillRect(0, chosen - 1, seq, 1);
  }
}

function showMap() {
  document.querySelectorAll(".heads canvas").forEach((each) => {
    each.classList.toggle("chosen", each.dataset.layer == map[0] && each.dataset.head == map[1]);
  });
  document.getElementById("which").textContent = `Block ${map[0] + 1}, head ${map[1] + 1}`;
  draw(document.getElementById("large"), ...map);
}

function show() {
  showText();
  showLens();
  showMap();
}

function acts(element, act) {
  element.tabIndex = 0;
  element.setAttribute("role", "button");
  element.addEventListener("click", act);
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    act();
  });
}

spans.forEach((span, n) => {
  if (n > 0) acts(span, () => { chosen = n; show(); });
});
document.querySelectorAll("input[name=mode]").forEach((each) => each.addEventListener("change", showText));
const grid = document.getElementById("heads");
grid.style.gridTemplateColumns = `auto repeat(${data.heads}, 76px)`;
for (let layer = 0; layer < data.layers; layer++) {
  make("span", `block ${layer + 1}`, grid);
  for (let head = 0; head < data.heads; head++) {
    const canvas = make("canvas", undefined, grid);
    Object.assign(canvas.dataset, { layer, head });
    canvas.title = `block ${layer + 1}, head ${head + 1}`;
    canvas.setAttribute("aria-label", canvas.title);
    draw(canvas, layer, head);
    acts(canvas, () => {
      map = [layer, head];
      document.querySelector("input[value=attention]").checked = true;
      show();
    });
  }
}
show();
