/* Token by token: each token coloured by a quantity, with its numbers under the pointer. */
let quantity = null, tokenStep = null;

/* The square root lets small numbers show beside large ones. */
function shade(value, scale) {
  if (value === null || value === undefined || !scale.reach) return "transparent";
  const share = (value - scale.centre) / scale.reach;
  const strength = 0.75 * Math.sqrt(Math.min(1, Math.abs(share)));
  return "rgb(var(" + (share < 0 ? "--below" : "--above") + ") / " + strength.toFixed(3) + ")";
}

function drawLegend() {
  const low = quantity.below ? -1 : 0, high = quantity.above ? 1 : 0;
  const at = (share) => quantity.centre + share * quantity.reach;
  const stops = [], ticks = [];
  for (let i = 0; i <= 16; i++) stops.push(shade(at(low + (high - low) * i / 16), quantity));
  for (let i = 0; i <= 4; i++) ticks.push(make("span", {}, format(at(low + (high - low) * i / 4))));
  const scale = make("div", {className: "scale"});
  scale.style.background = "linear-gradient(to right, " + stops.join(", ") + ")";
  byId("legend").replaceChildren(scale, make("div", {className: "ticks"}, ...ticks),
    make("p", {className: "note"}, quantity.label + (quantity.about ? ": " + quantity.about : "") + "."));
}

function tokenNode(sample, index) {
  const text = sample.tokens[index], node = make("span", {className: "token"});
  node.dataset.token = index;
  node.style.background = shade(sample.per_token[quantity.name]?.[index], quantity);
  if (text === "") node.append(make("span", {className: "mark"}, "▯"));
  for (const piece of text.split(/(\n)/)) {
    if (piece === "\n") node.append(make("span", {className: "mark"}, "⏎"), "\n");
    else if (piece) node.append(piece);
  }
  return node;
}

function drawTokens() {
  hideTip();
  drawLegend();
  byId("tokens").replaceChildren(...data.samples.tokens.filter((s) => s.step === tokenStep).map((sample) => {
    const text = make("div", {className: "text"}, make("span", {className: "prompt"}, sample.prompt),
      ...sample.tokens.map((_, i) => tokenNode(sample, i)));
    const card = make("article", {className: "card"}, facts(sample), text);
    card.dataset.sample = data.samples.tokens.indexOf(sample);
    return card;
  }));
}

function hideTip() {
  byId("tip").hidden = true;
  document.querySelectorAll(".token.chosen").forEach((node) => node.classList.remove("chosen"));
}

function showTip(node) {
  const sample = data.samples.tokens[node.closest(".card").dataset.sample], index = Number(node.dataset.token);
  const rows = data.samples.quantities.map((q) => make("tr", {className: q === quantity ? "shown" : ""},
    make("th", {scope: "row"}, q.label), make("td", {}, format(sample.per_token[q.name]?.[index]))));
  hideTip();
  node.classList.add("chosen");
  placeTip(node.getClientRects()[0], make("div", {}, make("code", {}, JSON.stringify(sample.tokens[index])),
    " · token " + (index + 1) + " of " + sample.tokens.length), make("table", {}, make("tbody", {}, ...rows)));
}

function startTokens() {
  const steps = [...new Set(data.samples.tokens.map((s) => s.step))];
  quantity = data.samples.quantities[0];
  tokenStep = steps.at(-1);
  choice(byId("token-step"), steps.map((s) => "Step " + s), steps.length - 1, (i) => {
    tokenStep = steps[i];
    drawTokens();
  });
  choice(byId("token-quantity"), data.samples.quantities.map((q) => q.label), 0, (i) => {
    quantity = data.samples.quantities[i];
    drawTokens();
  });
  const on = (event) => event.target.closest?.("#tokens .token");
  const follow = (event) => {
    const node = on(event);
    if (node) showTip(node);
    else if (!event.target.closest?.(".canvas")) hideTip();
  };
  document.addEventListener("pointerover", follow);
  document.addEventListener("pointerdown", follow);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
}
