"use strict";
/* What the page holds, and helpers that every part uses. Texts only ever enter the page as text. */
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const format = (v) => v === null || v === undefined ? "–" : v === 0 ? "0"
  : Math.abs(v) >= 1e6 || Math.abs(v) < 1e-3 ? v.toExponential(3) : String(Number(v.toPrecision(5)));

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/* A row of buttons of which one is pressed. */
function choice(place, labels, chosen, onChoose) {
  const press = (i) => {
    [...place.children].forEach((b, j) => b.setAttribute("aria-pressed", String(i === j)));
    onChoose(i);
  };
  const button = (label, i) => make("button", {type: "button", onclick: () => press(i)}, label);
  place.replaceChildren(...labels.map(button));
  press(chosen);
}

/* Show the tip below a box of the window, or above it where there is no room. */
function placeTip(box, ...children) {
  const tip = byId("tip");
  tip.replaceChildren(...children);
  tip.hidden = false;
  const width = document.documentElement.clientWidth, below = box.bottom + tip.offsetHeight + 8 < innerHeight;
  tip.style.left = Math.max(8, Math.min(box.left, width - tip.offsetWidth - 8)) + scrollX + "px";
  tip.style.top = (below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + scrollY + "px";
}
